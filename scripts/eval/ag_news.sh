#!/usr/bin/env bash
# Evaluate a run on AG News: 1,000 samples of 250 DDPM steps against test texts, and each class, seeds 42 to 46.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5.
# Expect:   unconditional MAUVE .866, perplexity 100.6, diversity .540, memorization .293; MAUVE by class .842 (world),
#           .845 (sports), .752 (business), .813 (sci_tech). Every class is compared with the references of every class.
# Cost:     five times that of scripts/eval/roc.sh: all texts, then each of four classes.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/eval/ag_news.sh RUN_FOLDER [flags], a run of scripts/diffusion/bart_latent_ag_news.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" -- "$@"
