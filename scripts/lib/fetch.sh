# shellcheck shell=bash
# What the scripts below scripts/data share: fetch NAME FLAGS... brings a corpus into DATA_DIR, else datasets/ here.
set -euo pipefail
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment core

fetch() {
  local name="$1"
  shift
  exec "$PYTHON" -m dataset_utils.fetch "$name" --data_dir "${DATA_DIR:-$ROOT/datasets}" "$@"
}
