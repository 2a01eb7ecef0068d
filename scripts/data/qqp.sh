#!/usr/bin/env bash
# QQP: questions asked in other words, 145k pairs in training.
# Terms:    Quora's terms of service, non-commercial use.
#           DiffuSeq's own division: bash scripts/data/qqp.sh --from FOLDER with its train, valid and test.jsonl
# Makes:    datasets/qqp/{train,valid,test}.jsonl, about 20 MB; under DATA_DIR, if that is set
# Cost:     seconds; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/qqp.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch qqp "$@"
