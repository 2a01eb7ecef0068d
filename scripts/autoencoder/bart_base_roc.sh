#!/usr/bin/env bash
# Stage 1, LD4LG second release: a Perceiver autoencoder of 32 x 64 latents around a frozen BART-base, on ROCStories.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 3.1, with the published hyper-parameters.
# Expect:   25.6 M trained parameters; reconstruction BLEU of held-out stories 97.6 (published).
# Cost:     12.6 hours on one A6000 as published, without mixed precision; see the rate in the first minutes for yours.
# Needs:    ROCStories (sources: datasets/README.md), facebook/bart-base or ENC_DEC_MODEL=FOLDER.
# Use:      bash scripts/autoencoder/bart_base_roc.sh [flags], for example  --mixed_precision bf16 --save_dir FOLDER
set -euo pipefail
# shellcheck source=scripts/lib/autoencoder.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/autoencoder.sh"

run train_latent_model.py \
  "${MODEL[@]}" \
  "${AUTOENCODER[@]}" \
  --dataset_name roc \
  --num_train_steps 50000 \
  "$@"
