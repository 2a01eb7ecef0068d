#!/usr/bin/env bash
# WMT14 German-English: 4.5M pairs in training, for the four wmt14 corpora.
# Terms:    research use, by the terms of its parts (https://www.statmt.org/wmt14)
# Makes:    datasets/wmt14/{train,valid,test}.jsonl, more than 1 GB; under DATA_DIR, if that is set
# Cost:     tens of minutes; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/wmt14.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch wmt14 "$@"
