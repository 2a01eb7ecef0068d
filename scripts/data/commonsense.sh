#!/usr/bin/env bash
# Commonsense Conversation: posts and replies from Reddit, 3.4M pairs in training.
# Terms:    none stated; Reddit posts (Zhou et al. 2018).
#           DiffuSeq's own rows: --from FOLDER with its train, valid and test.jsonl
# Makes:    datasets/commonsense/{train,valid,test}.jsonl; under DATA_DIR, if that is set
# Cost:     tens of minutes; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/commonsense.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch commonsense "$@"
