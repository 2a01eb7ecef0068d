#!/usr/bin/env bash
# LD4LG, first release: diffusion on BART-base's own encoder states (64 x 768, no autoencoder), on SST by sentiment.
# Paper:    Lovelace et al. 2022, arXiv:2212.09462, with the hyper-parameters of the published script: discrete linear
#           chain of 1,000 steps, x0-prediction, l1, weight decay 0.01, class-conditional, 100k steps of batch 64.
# Expect:   214.3 M trained parameters. No published figures for this corpus are at hand; what a run
#           reaches stands in its metrics.json.
# Cost:     no published hours; a fifth of the steps of text_diffusion_roc.sh.
# Disk:     at most 0.8 GB of encoder states in float16 (8,500 texts, 768 per token), in --cache_dir, before the first
#           step; runs on this corpus share them.
# Needs:    SST (sources: datasets/README.md), facebook/bart-base or ENC_DEC_MODEL=FOLDER.
# Use:      bash scripts/diffusion/text_diffusion_sst.sh [flags]; evaluate with eval_text_diffusion.sh beside it
set -euo pipefail
# shellcheck source=scripts/lib/states_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/states_diffusion.sh"

run train_text_diffusion.py \
  "${STATES_DIFFUSION[@]}" \
  --dataset_name sst \
  --adam_weight_decay 0.01 \
  --num_train_steps 100000 \
  --class_conditional \
  "$@"
