# shellcheck shell=bash
# Shared by the recipes in scripts/autoencoder: hyperparameters of LD4LG's published ROCStories script.
# A recipe adds its corpus, its number of steps and its language model.
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# Lovelace et al. 2023, arXiv:2212.09462, section 3.1, and the second release's bart_base_roc.sh. It validates every 1000
# steps, by beam search for 1,000 texts in batches of 32. Ours saves every 1000 steps and validates every 5000, in batches
# of 250, so that it costs less than a tenth of the time of a fast GPU. This changes no weight, only how many checkpoints
# are compared for best/. The precision is that of the publication.
# shellcheck disable=SC2034  # for the scripts that source this
AUTOENCODER=(
  --learning_rate 1e-4
  --lr_warmup_steps 1000
  --train_batch_size 256
  --num_encoder_latents 32
  --dim_ae 64
  --num_layers 3
  --l2_normalize_latents
  --lm_mode freeze
  --mixed_precision no
  --save_every 1000
  --eval_every 5000
  --eval_batch_size 250
)
