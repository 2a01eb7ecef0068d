#!/usr/bin/env bash
# Evaluate a run of embeddings without sources, as Diffusion-LM: 1,000 samples of 200 ancestral steps against 1,000 test
# texts, seeds 42 to 46.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5, whose table has Diffusion-LM with 2,000 steps.
# Expect:   ROCStories, --sampling_timesteps 2000: MAUVE .043, perplexity 47.3, diversity .128, memorization .434.
# Cost:     no published hours; a step is one call of the network for every text.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/embedding/eval.sh RUN_FOLDER [flags], a run of scripts/embedding/diffusion_lm_*.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${SCORED[@]}" --num_samples 1000 --sampler ddpm --sampling_timesteps 200 -- "$@"
