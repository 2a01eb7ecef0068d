#!/usr/bin/env bash
# Stage 2, LD4LG second release: v-prediction on the latents of scripts/autoencoder/bart_base_roc.sh, on ROCStories.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, with the published hyper-parameters.
# Expect:   187.9 M trained parameters; on test texts, 250 steps, five seeds (eval.sh beside this, with --eval_test):
#           MAUVE .716 +- .019, perplexity 30.6, diversity .331, memorization .441
#           (human references: .951, 21.1, .414, .362).
# Cost:     35 hours on one A6000 as published, without mixed precision and with the language model in every step.
# Disk:     0.4 GB of latents in float16 (98,000 texts of 32 x 64), in --cache_dir, written before the first step.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/roc. The language model is that of the autoencoder.
# Use:      bash scripts/diffusion/bart_latent_v-pred.sh [flags], for example  --mixed_precision bf16
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of roc bart_base_roc.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  --dataset_name roc \
  --num_train_steps 250000 \
  "$@"
