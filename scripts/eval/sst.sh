#!/usr/bin/env bash
# Evaluate a run on SST: 1,000 samples of 250 DDPM steps against test texts, and each class, seeds 42 to 46.
# Paper:    Lovelace et al. 2023, arXiv:2212.09462, section 5; for this corpus the protocol is ours: that of ROCStories.
# Expect:   nothing was published for this corpus; what a run reaches stands in its metrics.json.
# Cost:     three times that of scripts/eval/roc.sh: all texts, then each of two classes.
# Needs:    openai-community/gpt2-large, or SCORER=FOLDER; SCORER=none trains a small one, not comparable.
# Use:      bash scripts/eval/sst.sh RUN_FOLDER [flags], a run of scripts/diffusion/bart_latent_sst.sh
set -euo pipefail
# shellcheck source=scripts/lib/evaluation.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/evaluation.sh"
evaluate --eval_test "${EVALUATION[@]}" -- "$@"
