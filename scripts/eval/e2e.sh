#!/usr/bin/env bash
# Evaluate a run on E2E: 1,000 samples of 250 DDPM steps against 1,000 test texts, seeds 42 to 46.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5; for this corpus the protocol is ours: that of ROCStories.
# Expect:   nothing was published for this corpus; what a run reaches stands in its metrics.json.
# Cost:     3 min 20 s a seed on one A6000 for 1,000 texts, as published.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/eval/e2e.sh RUN_FOLDER [flags], a run of scripts/diffusion/bart_latent_e2e.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" -- "$@"
