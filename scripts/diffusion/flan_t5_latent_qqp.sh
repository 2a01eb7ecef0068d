#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/flan_t5_base_qqp.sh,
# a question given another with the same meaning: QQP.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with source texts.
# Expect:   216.9 M trained parameters; published, test set, ROUGE-1/2/L: one sample
#           62.6 / 39.0 / 60.3 with BERTScore 85.8, MBR-5 63.3 / 40.3 / 61.1.
# Cost:     no published hours; bart_latent_v-pred.sh, with the same steps and sizes, took 35 on one A6000.
# Disk:     0.6 GB of latents in float16 (145,000 texts of 32 x 64), in --cache_dir, before the first step, and states
#           of the sources, 1.5 kB a token.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/qqp. Sources are read by the same language model;
#           --context_encoder FOLDER names another.
# Use:      bash scripts/diffusion/flan_t5_latent_qqp.sh [flags]; evaluate with scripts/eval/qqp.sh
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of qqp flan_t5_base_qqp.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  "${OF_SOURCES[@]}" \
  --dataset_name qqp \
  --num_train_steps 250000 \
  "$@"
