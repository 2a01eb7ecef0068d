#!/usr/bin/env bash
# Minimal text diffusion on greetings: 298 short sentences.
# Source:   the published script, of the simple corpus, with 5,000 training steps.
# Expect:   no published figures.
# Cost:     no published hours; a fifth of simple.sh.
# Needs:    greetings (datasets/README.md says from where), as DATA_DIR/greetings/greetings-train.txt.
# Use:      bash scripts/embedding/greetings.sh [flags]; then bash scripts/text_sample.sh RUN 2000 10
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"

run train_text_diffusion.py \
  --dataset_name greetings \
  --latent_space embeddings \
  --denoiser_variant encoder \
  --objective pred_x0 \
  --beta_schedule sqrt \
  --timesteps 2000 \
  --adam_weight_decay 0 \
  --lr_schedule linear \
  --lr_warmup_steps 0 \
  --clip_grad_norm 0 \
  --posterior_variance small \
  --vocab word-level \
  --max_seq_len 50 \
  --embedding_dim 128 \
  --padding generated \
  --learning_rate 1e-4 \
  --num_train_steps 5000 \
  --train_batch_size 64 \
  --save_and_sample_every 1000 \
  --sampling_timesteps 2000 \
  --noise_bound 0.9 \
  --num_samples 50 \
  --eval_batch_size 50 \
  --random_seed 10708 \
  "$@"
