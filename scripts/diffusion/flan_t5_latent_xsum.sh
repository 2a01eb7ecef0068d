#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/flan_t5_base_xsum.sh,
# a summary given its article: XSum.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with source texts.
# Expect:   216.9 M trained parameters; published, test set, ROUGE-1/2/L: one sample
#           38.1 / 15.9 / 31.2, MBR-5 38.7 / 16.6 / 31.9, oracle-5 43.0 / 20.0 / 37.2.
# Cost:     no published hours; bart_latent_v-pred.sh, with the same steps and sizes, took 35 on one A6000.
# Disk:     0.8 GB of latents in float16 (204,000 texts of 32 x 64), in --cache_dir, before the first step. States of
#           the sources would take 80 GB and are encoded at each step; --max_cache_gb 100 caches them.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/xsum. Sources are read by the same language model;
#           --context_encoder FOLDER names another.
# Use:      bash scripts/diffusion/flan_t5_latent_xsum.sh [flags]; evaluate with scripts/eval/xsum.sh
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of xsum flan_t5_base_xsum.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  "${OF_SOURCES[@]}" \
  --dataset_name xsum \
  --num_train_steps 250000 \
  "$@"
