#!/usr/bin/env bash
# Evaluate a run on XSum: five summaries of each test article, guided by a weight of 2.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5.
# Expect:   ROUGE-1/2/L: one sample 38.1 / 15.9 / 31.2, MBR-5 38.7 / 16.6 / 31.9, oracle-5 43.0 / 20.0 / 37.2.
# Note:     the whole test set, with seeds 42 to 46; the published figures are of one pass. --num_samples takes fewer.
# Cost:     no published hours; each text costs two network calls a step and five candidates.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
#           For BERTScore FacebookAI/roberta-large, or BERTSCORE_MODEL=FOLDER; BERTSCORE_MODEL=none leaves it out.
# Use:      bash scripts/eval/xsum.sh RUN_FOLDER [flags], a run of scripts/diffusion/flan_t5_latent_xsum.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" "${OF_SOURCES[@]}" --num_samples 11334 "${BERTSCORE[@]}" -- "$@"
