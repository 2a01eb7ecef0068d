#!/usr/bin/env bash
# Evaluate a run on WMT14, German to English: five translations of each test sentence, guided by a weight of 2.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5.
# Expect:   sacreBLEU 26.2.
# Note:     the whole test set, with seeds 42 to 46; the published figures are of one pass. --num_samples takes fewer.
# Cost:     no published hours; each text costs two network calls a step and five candidates.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/eval/wmt14_de_en.sh RUN_FOLDER [flags], a run of scripts/diffusion/mt5_latent_wmt14_de_en.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" "${OF_SOURCES[@]}" --num_samples 3003 -- "$@"
