#!/usr/bin/env bash
# Evaluate a run on E2E: five texts for each meaning representation of the test set, guided by a weight of 2.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5; for this corpus the protocol is ours: that of QQP.
# Expect:   nothing was published for this setting; what a run reaches stands in its metrics.json.
# Note:     the whole test set, with seeds 42 to 46. --num_samples takes fewer.
# Cost:     no published hours; each text costs two network calls a step and five candidates.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
#           For BERTScore FacebookAI/roberta-large, or BERTSCORE_MODEL=FOLDER; BERTSCORE_MODEL=none leaves it out.
# Use:      bash scripts/eval/e2e_mr.sh RUN_FOLDER [flags], a run of scripts/diffusion/bart_latent_e2e_mr.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" "${OF_SOURCES[@]}" --num_samples 4693 "${BERTSCORE[@]}" -- "$@"
