#!/usr/bin/env bash
# Quasar-T: questions from passages that answer them, as OpenQA prepared them.
# Terms:    BSD 3-clause (Dhingra et al. 2017; Lin et al. 2018).
#           DiffuSeq's own choice of passages: --from FOLDER with its train, valid and test.jsonl
# Makes:    datasets/quasar-t/{train,valid,test}.jsonl; under DATA_DIR, if that is set
# Cost:     minutes to tens of minutes: the archive holds other corpora too; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/quasar-t.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch quasar-t "$@"
