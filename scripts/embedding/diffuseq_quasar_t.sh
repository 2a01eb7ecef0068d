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
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"

run train_text_diffusion.py \
  "${DIFFUSEQ[@]}" \
  --dataset_name quasar-t \
  --num_train_steps 40000 \
  "$@"
