#!/usr/bin/env bash
# Stage 1: a Perceiver autoencoder of 32 x 64 latents around a frozen mT5-base, on the English side of WMT14.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 3.1; hyper-parameters are ours: those of the published
#           ROCStories script (bart_base_roc.sh), around a model of many languages.
# Expect:   25.6 M trained parameters; no reconstruction figure was published for this corpus (on ROCStories BLEU 97.6).
# Cost:     no published hours; those of bart_base_roc.sh, 12.6 on one A6000, have the same steps and sizes.
# Needs:    WMT14 (sources: datasets/README.md), google/mt5-base or ENC_DEC_MODEL=FOLDER.
#           It overflows in float16: --mixed_precision bf16 is what makes it faster.
# Use:      bash scripts/autoencoder/mt5_base_wmt14_en.sh [flags], for example  --mixed_precision bf16 --save_dir FOLDER
set -euo pipefail
# shellcheck source=scripts/lib/autoencoder.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/autoencoder.sh"
language_model google/mt5-base

run train_latent_model.py \
  "${MODEL[@]}" \
  "${AUTOENCODER[@]}" \
  --dataset_name wmt14-en-en \
  --num_train_steps 50000 \
  "$@"
