#!/usr/bin/env bash
# Diffusion-LM on e2e: word-level embeddings of 16 channels, learned along.
# Paper:    Li et al. 2022, arXiv:2205.14217: 2,000 steps of the sqrt chain, x0-prediction, batch 64, lr 1e-4.
# Expect:   the paper judges control on E2E; no unconditional figures are published.
# Cost:     not known here; steps and width are ours, after the paper.
# Needs:    e2e (scripts/data or datasets/README.md).
# Use:      bash scripts/embedding/diffusion_lm_e2e.sh [flags]
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"

run train_text_diffusion.py \
  --dataset_name e2e \
  --latent_space embeddings \
  --denoiser_variant encoder \
  --objective pred_x0 \
  --beta_schedule sqrt \
  --timesteps 2000 \
  --adam_weight_decay 0 \
  --lr_schedule linear \
  --lr_warmup_steps 0 \
  --clip_grad_norm 0 \
  --posterior_variance large \
  --vocab word-level \
  --vocab_min_frequency 10 \
  --max_seq_len 64 \
  --embedding_dim 16 \
  --padding generated \
  --learning_rate 1e-4 \
  --num_train_steps 200000 \
  --train_batch_size 64 \
  --save_and_sample_every 50000 \
  --sampling_timesteps 200 \
  --num_samples 1000 \
  --eval_batch_size 100 \
  --random_seed 102 \
  "$@"
