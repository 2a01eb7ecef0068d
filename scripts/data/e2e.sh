#!/usr/bin/env bash
# E2E: restaurant descriptions and what they say, about 42k in training (for e2e and e2e-mr).
# Terms:    CC BY-SA 4.0 (Novikova et al. 2017)
# Makes:    datasets/e2e_data/src1_{train,valid,test}.txt, about 10 MB; under DATA_DIR, if that is set
# Cost:     seconds; a download that broke off goes on, what is there is never written over
# Use:      bash scripts/data/e2e.sh [--dry_run | --from FOLDER]; --dry_run says what is fetched from where
set -euo pipefail
# shellcheck source=scripts/lib/fetch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/fetch.sh"
fetch e2e "$@"
