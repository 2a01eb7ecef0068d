# shellcheck shell=bash
# Shared by the recipes of diffusion on encoder states of a language model: hyperparameters of LD4LG's first
# release, whose four scripts differ in corpus, steps, dropout, weight decay and classes. Its annealed fork uses the same.
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# Lovelace et al. 2022, arXiv:2212.09462, first version, and the first release's text_diffusion_*.sh. They sample
# every 5000 steps: a fifth of the network calls of training. Ours saves every 5000 steps and samples every 50,000, which
# changes no weight. The precision is that of the publication.
# shellcheck disable=SC2034  # for the scripts that source this
STATES_DIFFUSION=(
  "${MODEL[@]}"
  --learning_rate 1e-4
  --train_batch_size 64
  --denoiser_variant states
  --tx_dim 768
  --tx_depth 12
  --objective pred_x0
  --loss_type l1
  --beta_schedule linear
  --timesteps 1000
  --self_condition
  --scale_shift
  --normalize_latent
  --num_samples 1000
  --sampling_timesteps 250
  --ddim_sampling_eta 1
  --mixed_precision no
  --save_and_sample_every 5000
  --sample_every 50000
)
