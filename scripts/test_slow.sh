#!/usr/bin/env bash
# The tests that scripts/test.sh leaves out: small trainings to convergence, whole programs, long comparisons.
# How long: up to half an hour on 2 cores.
# Expect:   a summary line "N passed", exit status 0.
# Use:      bash scripts/test_slow.sh [pytest arguments], from any directory
set -euo pipefail
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
environment core eval track pretrained dev

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
cd "$ROOT"
status=0
"$PYTHON" -m pytest -m slow --durations=10 "$@" || status=$?
# pytest says 5 when nothing was selected: no slow test is no failure
if [[ $status -ne 5 ]]; then exit "$status"; fi
