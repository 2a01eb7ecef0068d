#!/usr/bin/env bash
# Wiki-Auto: sentences of Wikipedia and their simple counterparts, without splitting of sentences.
# Terms:    CC BY-SA 3.0 (Jiang et al. 2020).
#           DiffuSeq's own rows: --from FOLDER with its train, valid and test.jsonl
# Makes:    datasets/wiki-auto/train.jsonl; validation and test are cut when it is read; under DATA_DIR, if that is set
# Cost:     a minute; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/wiki-auto.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch wiki-auto "$@"
