#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/bart_base_sst.sh,
# by sentiment of SST.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with a class, and the steps of the first release's SST script.
# Expect:   190.3 M trained parameters; nothing was published for this corpus and model.
# Cost:     no published hours; two fifths of the steps of bart_latent_v-pred.sh, which took 35 hours on one A6000.
# Disk:     35 MB of latents in float16 (8,500 texts of 32 x 64), in --cache_dir, written before the first step.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/sst. The language model is that of the autoencoder.
# Use:      bash scripts/diffusion/bart_latent_sst.sh [flags]; evaluate with scripts/eval/sst.sh
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of sst bart_base_sst.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  "${BY_CLASS[@]}" \
  --dataset_name sst \
  --num_train_steps 100000 \
  "$@"
