#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/bart_base_ag_news.sh,
# by topic of AG News.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with a class.
# Expect:   190.3 M trained parameters; published, on test texts: unconditional MAUVE .866,
#           perplexity 100.6, diversity .540, memorization .293;
#           MAUVE by class .842 (world), .845 (sports), .752 (business), .813 (sci_tech).
# Cost:     no published hours; bart_latent_v-pred.sh, with the same steps and sizes, took 35 on one A6000.
# Disk:     0.5 GB of latents in float16 (120,000 texts of 32 x 64), in --cache_dir, written before the first step.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/ag_news. The language model is that of the autoencoder.
# Use:      bash scripts/diffusion/bart_latent_ag_news.sh [flags]; evaluate with scripts/eval/ag_news.sh
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of ag_news bart_base_ag_news.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  "${BY_CLASS[@]}" \
  --dataset_name ag_news \
  --num_train_steps 250000 \
  "$@"
