#!/usr/bin/env bash
# Before a commit: style, format, types, and the fast tests of each package; scripts/test.sh adds those of whole programs.
# How long: two minutes on 2 cores (the first time the type checker fills its cache, half a minute more).
# Expect:   "ruff: ok", "format: ok", "mypy: ok", then the summary of pytest; it stops at the first that fails.
# Use:      bash scripts/check.sh [pytest arguments], from any directory
set -euo pipefail
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
environment core eval track pretrained dev

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
cd "$ROOT"
# each on a line of its own: set -e does not see a failure before &&
"$PYTHON" -m ruff check --quiet .
echo "ruff: ok"
"$PYTHON" -m ruff format --check --quiet .
echo "format: ok"
"$PYTHON" -m mypy --no-error-summary
echo "mypy: ok"
"$PYTHON" -m pytest -m "not slow" -q -x -n auto --maxprocesses 4 --dist loadfile --ignore=tests/pipelines --ignore=tests/test_scripts.py --ignore=tests/test_launch.py "$@"
