#!/usr/bin/env bash
# Stage 2: v-prediction on the latents of scripts/autoencoder/bart_base_e2e.sh,
# a text given its meaning representation: E2E.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462; hyper-parameters are ours: those of the published ROCStories script
#           (bart_latent_v-pred.sh) with source texts, and the steps of the first release's E2E script.
# Expect:   216.9 M trained parameters; nothing was published for this setting.
# Cost:     no published hours; two fifths of the steps of bart_latent_v-pred.sh, which took 35 hours on one A6000.
# Needs:    a run of the autoencoder: LATENT_MODEL_PATH=FOLDER, or --latent_model_path FOLDER, or the newest run below
#           saved_latent_models/e2e. It reads the sources, too;
#           --context_encoder FOLDER names another language model.
# Use:      bash scripts/diffusion/bart_latent_e2e_mr.sh [flags]; evaluate with scripts/eval/e2e_mr.sh
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"

latents_of e2e bart_base_e2e.sh "$@"

run train_text_diffusion.py \
  ${LATENTS[@]+"${LATENTS[@]}"} \
  ${OWN_MODEL[@]+"${OWN_MODEL[@]}"} \
  --dataset_name e2e-mr \
  --learning_rate 2e-4 \
  --num_train_steps 100000 \
  --train_batch_size 128 \
  --tx_dim 768 \
  --tx_depth 12 \
  --objective pred_v \
  --loss_type l2 \
  --train_schedule cosine \
  --self_condition \
  --train_prob_self_cond 0.5 \
  --scale_shift \
  --num_dense_connections 3 \
  --seq2seq_unconditional_prob 0.1 \
  --seq2seq_candidates 5 \
  --num_samples 1000 \
  --sampling_timesteps 250 \
  --save_and_sample_every 5000 \
  "$@"
