#!/usr/bin/env bash
# Every test that is not marked slow: all that continuous integration needs.
# How long: about nine minutes on 2 cores, and one more on first use, when .venv is made.
# Expect:   a summary line "N passed", exit status 0. Needs no network but the package index, no GPU.
# Use:      bash scripts/test.sh [pytest arguments], from any directory; for example  bash scripts/test.sh -k samplers
set -euo pipefail
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
environment core eval track pretrained dev

# Without this a look-up of a hub id waits half a minute where there is no network.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export SAME_EXAMPLES=1 # property tests draw the same examples every time; scripts/check.sh and test_slow.sh draw new ones
cd "$ROOT"
# a process for each core, at most four; a file stays in one of them, since its tests share what they trained
"$PYTHON" -m pytest -m "not slow" --durations=10 -n auto --maxprocesses 4 --dist loadfile "$@"
