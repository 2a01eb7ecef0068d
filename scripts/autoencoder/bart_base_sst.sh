#!/usr/bin/env bash
# Stage 1: a Perceiver autoencoder of 32 x 64 latents around a frozen BART-base, on SST's film reviews.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 3.1; hyper-parameters are ours: those of the published
#           ROCStories script (bart_base_roc.sh), with fewer steps for a smaller corpus.
# Expect:   25.6 M trained parameters; no reconstruction figure was published for this corpus (on ROCStories BLEU 97.6).
# Cost:     no published hours; a fifth of the steps of bart_base_roc.sh, which took 12.6 hours on one A6000.
# Needs:    SST (sources: datasets/README.md), facebook/bart-base or ENC_DEC_MODEL=FOLDER.
# Use:      bash scripts/autoencoder/bart_base_sst.sh [flags], for example  --mixed_precision bf16 --save_dir FOLDER
set -euo pipefail
# shellcheck source=scripts/lib/autoencoder.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/autoencoder.sh"

run train_latent_model.py \
  "${MODEL[@]}" \
  "${AUTOENCODER[@]}" \
  --dataset_name sst \
  --num_train_steps 10000 \
  "$@"
