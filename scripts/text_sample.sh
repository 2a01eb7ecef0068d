#!/usr/bin/env bash
# Samples of a trained run with intermediate texts of the sampler: the script of this name of minimal text diffusion.
# Use:      bash scripts/text_sample.sh CHECKPOINT STEPS N [flags], CHECKPOINT a run folder or a checkpoint in one
# Writes:   samples/ of the run folder. SEED=1 samples other texts. Flags are those of python -m pipelines.sample.
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"
if [[ $# -lt 3 ]]; then fail "usage: bash scripts/text_sample.sh CHECKPOINT STEPS N [flags]"; fi
checkpoint="$(cd "$1" 2>/dev/null && pwd || true)"
if [[ -z "$checkpoint" ]]; then fail "$1 is no folder: name a run folder, or a checkpoint in one"; fi
steps="$2" count="$3"
shift 3

cd "$ROOT"
exec "$PYTHON" -m pipelines.sample --run "$checkpoint" --sampling_timesteps "$steps" --num_samples "$count" \
  --seed "${SEED:-42}" --trajectory "$@"
