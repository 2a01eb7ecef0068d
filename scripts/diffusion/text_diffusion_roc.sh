#!/usr/bin/env bash
# LD4LG, first release: diffusion on BART-base's own encoder states (64 x 768, no autoencoder), on ROCStories.
# Paper:    Lovelace et al. 2022, arXiv:2212.09462, with the hyper-parameters of the published script: discrete linear
#           chain of 1,000 steps, x0-prediction, l1, no dropout, 500k steps of batch 64.
# Expect:   214.3 M trained parameters. The paper's uncompressed encoder states reach, on test texts:
#           MAUVE .605, perplexity 46.8, diversity .424 (with latents: .716, 30.6, .331).
# Cost:     no published hours; to the same MAUVE 3.86 times those of the latent recipe.
# Disk:     at most 9.6 GB of encoder states in float16 (98,000 texts, 768 per token), in --cache_dir, before the first
#           step; runs on this corpus share them.
# Needs:    ROCStories (sources: datasets/README.md), facebook/bart-base or ENC_DEC_MODEL=FOLDER.
# Use:      bash scripts/diffusion/text_diffusion_roc.sh [flags]; evaluate with eval_text_diffusion.sh beside it
set -euo pipefail
# shellcheck source=scripts/lib/states_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/states_diffusion.sh"

run train_text_diffusion.py \
  "${STATES_DIFFUSION[@]}" \
  --dataset_name roc \
  --num_train_steps 500000 \
  --disable_dropout \
  "$@"
