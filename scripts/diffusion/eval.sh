#!/usr/bin/env bash
# Evaluate a trained run, LD4LG second release: 1,000 samples of 250 DDPM steps against the validation texts.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5. For the test texts with seeds 42 to 46 add --eval_test.
# Expect:   for the ROCStories recipe, on test texts: MAUVE .716 +- .019, perplexity 30.6, diversity .331,
#           memorization .441. By number of steps (MAUVE / perplexity / diversity): 50 .684 / 52.6 / .407,
#           100 .719 / 38.5 / .368, 1000 .667 / 25.9 / .295. Scores hold for GPT-2-large as scorer and 1,000 samples.
# Cost:     3 min 20 s a seed on one A6000.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/diffusion/eval.sh RUN_FOLDER [flags], for example  --eval_test, --sampler dpmpp
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
split=--eval
if given --eval_test "$@"; then split=--eval_test; fi
evaluate "$split" "${EVALUATION[@]}" -- "$@"
