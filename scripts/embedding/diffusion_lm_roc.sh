#!/usr/bin/env bash
# Diffusion-LM on roc: word-level embeddings of 128 channels, learned along.
# Paper:    Li et al. 2022, arXiv:2205.14217: 2,000 steps of the sqrt chain, x0-prediction, batch 64, lr 1e-4. Steps
#           of training, width and vocabulary are ours: after the paper, whose own script is not at hand.
# Expect:   Lovelace et al. 2023 measured MAUVE .043, perplexity 47.3, diversity .128, memorisation .434.
# Cost:     no published hours at hand.
# Needs:    roc (scripts/data or datasets/README.md).
# Use:      bash scripts/embedding/diffusion_lm_roc.sh [flags]; evaluate with eval.sh beside it
set -euo pipefail
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"

run train_text_diffusion.py \
  "${DIFFUSION_LM[@]}" \
  --dataset_name roc \
  --embedding_dim 128 \
  --num_train_steps 800000 \
  "$@"
