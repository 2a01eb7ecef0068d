#!/usr/bin/env bash
# Minimal text diffusion: "The COLOR FOOD is ADJECTIVE." with word-level embeddings, which train with the model.
# Source:   the published script: 2,000 steps of the sqrt chain, 25,001 training steps of batch 64, learning rate
#           1e-4, embeddings of 128 channels, BERT-base's layout from scratch, dropout 0.1.
# Expect:   no published figures. A network a hundredth of this size, 2,378 steps: all of 250 samples by 20 solver
#           steps are grammatical; see benchmarks/records/2026-11-21_embedding_simple_cpu, which takes 20 minutes of two
#           CPU cores.
# Cost:     no published hours.
#           Published is a sampling every 5,000 steps, a tenth of the network calls of training; here every 13,000.
# Needs:    simple (sources: datasets/README.md), as DATA_DIR/simple/simple-train.txt.
# Use:      bash scripts/embedding/simple.sh [flags]; then bash scripts/text_sample.sh RUN 2000 10
set -euo pipefail
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"

run train_text_diffusion.py \
  "${MINIMAL_TEXT_DIFFUSION[@]}" \
  --dataset_name simple \
  --num_train_steps 25001 \
  --save_and_sample_every 5000 \
  --sample_every 13000 \
  "$@"
