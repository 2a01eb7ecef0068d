# shellcheck shell=bash
# Shared by the evaluation scripts: the protocols of LD4LG's two releases, with the published scorer.
#
#     evaluate --eval_test "${EVALUATION[@]}" --flag value -- "$@"
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# a run records its language model: ENC_DEC_MODEL is only for one that was moved
SCORED=(${OWN_MODEL[@]+"${OWN_MODEL[@]}"} --scorer "${SCORER:-openai-community/gpt2-large}")

# latents, second release. Lovelace et al. 2023, arXiv:2212.09462, section 5
# shellcheck disable=SC2034  # for the scripts that source this
EVALUATION=(
  "${SCORED[@]}"
  --num_samples 1000
  --sampling_timesteps 250
  --sampler ddpm
  --sampling_schedule cosine
)

# encoder states, first release
# shellcheck disable=SC2034
STATES_EVALUATION=(
  "${SCORED[@]}"
  --num_samples 1000
  --sampling_timesteps 250
  --ddim_sampling_eta 1
  --decoding "beam,nucleus"
)

# of source texts: guided by a weight of 2, five candidates each
# shellcheck disable=SC2034
OF_SOURCES=(--cls_free_guidance 2.0 --seq2seq_candidates 5)
# shellcheck disable=SC2034
BERTSCORE=(--bertscore_model "${BERTSCORE_MODEL:-FacebookAI/roberta-large}")
