#!/usr/bin/env bash
# DiffuSeq on Quasar-T, questions from answers: the source stays clean.
# Paper:    Gong et al. 2023, arXiv:2210.08933: 2,000 steps of the sqrt chain, importance-sampled times, batch 2048 in
#           micro-batches of 64, 40,000 steps, BERT's vocabulary and layout from scratch, 128 channels, 128 tokens.
# Expect:   the paper has figures; none are at hand here.
# Cost:     more than 2 days on 4 A100 (QQP), as published.
# Needs:    quasar-t (scripts/data), bert-base-uncased's tokenizer or VOCAB=FOLDER. 32 micro-batches are for one GPU:
#           with NUM_PROCESSES=4 pass --gradient_accumulation_steps 8.
# Use:      bash scripts/embedding/diffuseq_quasar_t.sh [flags]; then decode_*.sh beside it
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"

run train_text_diffusion.py \
  --dataset_name quasar-t \
  --vocab "${VOCAB:-bert}" \
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
  --max_seq_len 128 \
  --trim_sources \
  --embedding_dim 128 \
  --padding generated \
  --schedule_sampler lossaware \
  --time_bins none \
  --learning_rate 1e-4 \
  --num_train_steps 40000 \
  --train_batch_size 64 \
  --gradient_accumulation_steps 32 \
  --save_and_sample_every 10000 \
  --sampling_timesteps 2000 \
  --clamp \
  --num_samples 100 \
  --seq2seq_candidates 1 \
  --eval_batch_size 50 \
  --random_seed 102 \
  "$@"
