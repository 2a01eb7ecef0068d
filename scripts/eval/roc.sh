#!/usr/bin/env bash
# Evaluate a run on ROCStories: 1,000 samples of 250 DDPM steps against 1,000 test texts, seeds 42 to 46.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5.
# Expect:   MAUVE .716 +- .019, perplexity 30.6, diversity .331, memorization .441 (human references: .951, 21.1, .414,
#           .362); without self-conditioning .480, 79.3, .427. Of other numbers of steps: scripts/diffusion/eval.sh.
# Cost:     3 min 20 s a seed on one A6000 for 1,000 texts, as published.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/eval/roc.sh RUN_FOLDER [flags], a run of scripts/diffusion/bart_latent_v-pred.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" -- "$@"
