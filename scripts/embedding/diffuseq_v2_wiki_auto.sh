#!/usr/bin/env bash
# DiffuSeq-v2 on Wiki-auto, sentences made simple: a learned soft absorbing state, discrete noise, few solver steps.
# Paper:    Gong et al. 2023, arXiv:2310.05793: as DiffuSeq, with mixed precision and batch 425 on each of 2 GPUs.
# Expect:   a quality like that of DiffuSeq after a quarter of its training and 10 solver steps; figures in the paper.
# Cost:     about 11 hours on 2 A100 (QQP), as published.
# Needs:    wiki-auto (scripts/data), bert-base-uncased's tokenizer or VOCAB=FOLDER.
# Use:      NUM_PROCESSES=2 bash scripts/embedding/diffuseq_v2_wiki_auto.sh [flags]; then decode_solver.sh
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"

run train_text_diffusion.py \
  --dataset_name wiki-auto \
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
  --learned_mean_embed \
  --denoise \
  --denoise_rate 0.5 \
  --schedule_sampler lossaware \
  --time_bins none \
  --mixed_precision fp16 \
  --learning_rate 1e-4 \
  --num_train_steps 80000 \
  --train_batch_size 425 \
  --save_and_sample_every 10000 \
  --sampler dpmpp \
  --sampling_timesteps 10 \
  --num_samples 100 \
  --seq2seq_candidates 1 \
  --eval_batch_size 100 \
  --random_seed 102 \
  "$@"
