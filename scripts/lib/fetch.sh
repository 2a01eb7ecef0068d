# shellcheck shell=bash
# Shared by the scripts in scripts/data: fetch NAME FLAGS... downloads a corpus into DATA_DIR, by default datasets/.
set -euo pipefail
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment core

fetch() {
  local name="$1"
  shift
  exec "$PYTHON" -m dataset_utils.fetch "$name" --data_dir "${DATA_DIR:-$ROOT/datasets}" "$@"
}
