#!/usr/bin/env bash
# Stanford Sentiment Treebank: film reviews with a score, 8,544 in training.
# Terms:    none stated; research use (Socher et al. 2013)
# Makes:    datasets/sst/{train,valid,test}.jsonl, about 1.5 MB; under DATA_DIR, if that is set
# Cost:     seconds; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/sst.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch sst "$@"
