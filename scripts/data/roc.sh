#!/usr/bin/env bash
# ROCStories: five-sentence stories, 98k; the copies that published systems train on, or your own tables.
# Terms:    research use; the authors ask that you register: https://cs.rochester.edu/nlp/rocstories.
#           With the .csv files that they send: bash scripts/data/roc.sh --from FOLDER
# Makes:    datasets/ROCstory/roc_{train,valid}.json, about 25 MB; under DATA_DIR, if that is set
# Cost:     seconds; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/roc.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch roc "$@"
