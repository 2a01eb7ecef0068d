#!/usr/bin/env bash
# DiffuSeq-v2 on Quasar-T, questions from answers: a learned soft absorbing state, discrete noise, few solver steps.
# Paper:    Gong et al. 2023, arXiv:2310.05793: mixed precision and batch 425 on each of 2 GPUs, published for QQP; the
#           steps are ours: those of the first version on this corpus.
# Expect:   a quality like that of DiffuSeq after a quarter of its training and 10 solver steps; figures in the paper.
# Cost:     about 11 hours on 2 A100 (QQP), as published.
# Needs:    quasar-t (scripts/data), bert-base-uncased's tokenizer or VOCAB=FOLDER.
# Use:      NUM_PROCESSES=2 bash scripts/embedding/diffuseq_v2_quasar_t.sh [flags]; then decode_solver.sh
set -euo pipefail
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"

run train_text_diffusion.py \
  "${DIFFUSEQ_V2[@]}" \
  --dataset_name quasar-t \
  --num_train_steps 40000 \
  "$@"
