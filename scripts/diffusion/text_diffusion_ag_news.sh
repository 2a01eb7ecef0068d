#!/usr/bin/env bash
# LD4LG, first release: diffusion on BART-base's own encoder states (64 x 768, no autoencoder), on AG News by topic.
# Paper:    Lovelace et al. 2022, arXiv:2212.09462, with the hyper-parameters of the published script: discrete linear
#           chain of 1,000 steps, x0-prediction, l1, class-conditional, no dropout, 250k steps of batch 64.
# Expect:   214.3 M trained parameters. The second release's latents reach, MAUVE / perplexity / diversity /
#           memorization: .866 / 100.6 / .540 / .293; MAUVE by class .842, .845, .752, .813. For this model none are at
#           hand.
# Cost:     no published hours; half the steps of text_diffusion_roc.sh.
# Disk:     at most 12 GB of encoder states in float16 (120,000 texts, 768 per token), in --cache_dir, before the first
#           step; runs on this corpus share them.
# Needs:    AG News (sources: datasets/README.md), facebook/bart-base or ENC_DEC_MODEL=FOLDER.
# Use:      bash scripts/diffusion/text_diffusion_ag_news.sh [flags]; evaluate with eval_text_diffusion.sh beside it
set -euo pipefail
# shellcheck source=scripts/lib/states_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/states_diffusion.sh"

run train_text_diffusion.py \
  "${STATES_DIFFUSION[@]}" \
  --dataset_name ag_news \
  --num_train_steps 250000 \
  --class_conditional \
  --disable_dropout \
  "$@"
