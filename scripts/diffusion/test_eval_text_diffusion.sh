#!/usr/bin/env bash
# Evaluate a trained run, LD4LG first release and its annealed fork: 1,000 samples of 250 DDIM steps with eta 1,
# decoded by beams and by nucleus sampling, against the test texts, with seeds 42 to 46.
# Paper:    Lovelace et al. 2022, arXiv:2212.09462. Scores of other numbers of samples are not comparable in MAUVE.
# Expect:   ROCStories, encoder states, on test texts: MAUVE .605, perplexity 46.8, diversity .424 (published).
# Cost:     minutes, five times, on one GPU; sampling stands for most of it.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/diffusion/test_eval_text_diffusion.sh RUN_FOLDER [flags], for example  --ddim_sampling_eta 0
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${STATES_EVALUATION[@]}" -- "$@"
