#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/bart_base_e2e.sh,
# a text given its meaning representation: E2E.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with source texts, and the steps of the first release's E2E script.
# Expect:   216.9 M trained parameters; nothing was published for this setting.
# Cost:     no published hours; two fifths of the steps of bart_latent_v-pred.sh, which took 35 hours on one A6000.
# Disk:     0.2 GB of latents in float16 (42,000 texts of 32 x 64), in --cache_dir, before the first step, and states
#           of the sources, 1.5 kB a token.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/e2e. It reads the sources, too;
#           --context_encoder FOLDER names another language model.
# Use:      bash scripts/diffusion/bart_latent_e2e_mr.sh [flags]; evaluate with scripts/eval/e2e_mr.sh
set -euo pipefail
# shellcheck source=scripts/lib/latent_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/latent_diffusion.sh"
latents_of e2e bart_base_e2e.sh "$@"

run train_text_diffusion.py \
  "${LATENT_DIFFUSION[@]}" \
  "${OF_SOURCES[@]}" \
  --dataset_name e2e-mr \
  --num_train_steps 100000 \
  "$@"
