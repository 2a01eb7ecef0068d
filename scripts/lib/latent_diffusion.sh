# shellcheck shell=bash
# Shared by the recipes of diffusion on the latents of an autoencoder: hyperparameters of LD4LG's published ROCStories
# script. A recipe adds its corpus, its number of steps and its conditions.
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# Lovelace et al. 2023, arXiv:2212.09462, and the second release's bart_latent_v-pred.sh. It samples every 5000 steps: a
# ninth of the network calls of training, and the beam search and scoring beside, which a fast GPU speeds up less than
# training. Ours saves every 5000 steps and samples every 25,000. This changes no weight, only how many checkpoints are
# compared for best/. The precision is that of the publication.
LATENT_DIFFUSION=(
  --learning_rate 2e-4
  --train_batch_size 128
  --tx_dim 768
  --tx_depth 12
  --objective pred_v
  --loss_type l2
  --train_schedule cosine
  --self_condition
  --train_prob_self_cond 0.5
  --scale_shift
  --num_dense_connections 3
  --num_samples 1000
  --sampling_timesteps 250
  --mixed_precision no
  --save_and_sample_every 5000
  --sample_every 25000
)

# conditions, section 4: one text in ten is trained without a condition, for classifier-free guidance
# shellcheck disable=SC2034
BY_CLASS=(--class_conditional --class_unconditional_prob 0.1)
# five candidates of 500 sources are 2,500 texts: half as often as 1,000
# shellcheck disable=SC2034
OF_SOURCES=(--seq2seq_unconditional_prob 0.1 --seq2seq_candidates 5 --num_samples 500 --sample_every 50000)

# latents_of DATASET SCRIPT ARGUMENTS...: put the trained autoencoder before LATENT_DIFFUSION, unless it is among the
# arguments: the one of LATENT_MODEL_PATH, else the newest run below saved_latent_models/DATASET, which SCRIPT makes
latents_of() {
  local dataset="$1" script="$2" found
  shift 2
  LATENT_DIFFUSION=(${OWN_MODEL[@]+"${OWN_MODEL[@]}"} "${LATENT_DIFFUSION[@]}")
  if given --latent_model_path "$@"; then return; fi
  found="${LATENT_MODEL_PATH:-$(newest_run "saved_latent_models/$dataset")}"
  if [[ -z "$found" ]]; then
    fail "no run below saved_latent_models/$dataset: train scripts/autoencoder/$script, or set LATENT_MODEL_PATH"
  fi
  LATENT_DIFFUSION=(--latent_model_path "$found" "${LATENT_DIFFUSION[@]}")
}
