#!/usr/bin/env bash
# AG News: 120k news in four classes.
# Terms:    non-commercial use (Zhang et al. 2015)
# Makes:    datasets/ag_news/{train,test}.jsonl, about 30 MB; under DATA_DIR, if that is set
# Cost:     seconds; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/ag_news.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch ag_news "$@"
