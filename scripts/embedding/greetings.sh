#!/usr/bin/env bash
# Minimal text diffusion on greetings: 298 short sentences.
# Source:   the published script, of the simple corpus, with 5,000 training steps.
# Expect:   no published figures.
# Cost:     no published hours; a fifth of simple.sh.
#           Published is a sampling of 50 texts every 1,000 steps, half of the network calls of training; here one
#           of 20, at the end. text_sample.sh draws as many as are wanted.
# Needs:    greetings (sources: datasets/README.md), as DATA_DIR/greetings/greetings-train.txt.
# Use:      bash scripts/embedding/greetings.sh [flags]; then bash scripts/text_sample.sh RUN 2000 10
set -euo pipefail
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"

run train_text_diffusion.py \
  "${MINIMAL_TEXT_DIFFUSION[@]}" \
  --dataset_name greetings \
  --num_train_steps 5000 \
  --save_and_sample_every 1000 \
  --sample_every 5000 \
  --num_samples 20 \
  "$@"
