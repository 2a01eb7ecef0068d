#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/mt5_base_wmt14_de.sh,
# a translation, English to German: WMT14.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with source texts.
# Expect:   216.9 M trained parameters; published, test set: sacreBLEU 21.4.
# Cost:     no published hours; bart_latent_v-pred.sh, with the same steps and sizes, took 35 on one A6000.
# Disk:     18 GB of latents in float16 (4,500,000 texts of 32 x 64), in --cache_dir, before the first step. States of
#           the sources would take 208 GB and are encoded at each step; --max_cache_gb 250 caches them.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/wmt14-de-de. Sources are read by the same language model;
#           --context_encoder FOLDER names another.
# Use:      bash scripts/diffusion/mt5_latent_wmt14_en_de.sh [flags]; evaluate with scripts/eval/wmt14_en_de.sh
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of wmt14-de-de mt5_base_wmt14_de.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  "${OF_SOURCES[@]}" \
  --dataset_name wmt14-en-de \
  --num_train_steps 250000 \
  "$@"
