#!/usr/bin/env bash
# XSum: 204k articles with a summary of one sentence.
# Terms:    none stated; the articles are the BBC's (Narayan et al. 2018)
# Makes:    datasets/xsum/{train,valid,test}.jsonl, about 500 MB; under DATA_DIR, if that is set
# Cost:     minutes, most of it the network's; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/xsum.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch xsum "$@"
