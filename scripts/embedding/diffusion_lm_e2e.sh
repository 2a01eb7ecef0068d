#!/usr/bin/env bash
# Diffusion-LM on e2e: word-level embeddings of 16 channels, learned along.
# Paper:    Li et al. 2022, arXiv:2205.14217: 2,000 steps of the sqrt chain, x0-prediction, batch 64, lr 1e-4. Steps
#           of training, width and vocabulary are ours: after the paper, whose own script is not at hand.
# Expect:   the paper judges control on E2E; no unconditional figures are published.
# Cost:     no published hours at hand.
# Needs:    e2e (scripts/data or datasets/README.md).
# Use:      bash scripts/embedding/diffusion_lm_e2e.sh [flags]; evaluate with eval.sh beside it
set -euo pipefail
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"

run train_text_diffusion.py \
  "${DIFFUSION_LM[@]}" \
  --dataset_name e2e \
  --embedding_dim 16 \
  --num_train_steps 200000 \
  "$@"
