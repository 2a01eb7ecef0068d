# shellcheck shell=bash
# Finds or creates the Python environment. The scripts source this file:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
#     environment core eval            # levels: core, or an extra of pyproject.toml (eval, track, pretrained, dev)
#     "$PYTHON" -m latent_models.pretraining ...
#
# Afterwards ROOT is the top of the project, PYTHON the interpreter, and our packages can be imported from any directory.
# It looks for an environment in this order:
#   1. USE_PYTHON=/path/to/python   used unchanged if it meets the lower bounds of pyproject.toml
#   2. an active one (venv, conda)  used if it has exactly the versions of constraints.txt; nothing is installed into it
#   3. .venv in the project         created when needed: about a minute, 2 GB; later calls reuse it
set -euo pipefail

unset CDPATH # with it, cd prints where it goes
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PYTHON=""
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

# A spinning OpenMP thread beside any other busy process costs a hundredfold: let idle threads sleep, but only after some
# 25 microseconds (GNU's OpenMP, which PyTorch brings on Linux), since the next operation of a small network comes sooner:
# that is 1.3 times as fast on two quiet cores, and no slower beside two busy processes.
[[ -n "${OMP_WAIT_POLICY:-}" ]] || export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

say() { printf '%s\n' "[environment] $*" >&2; }
fail() { printf '%s\n' "error: $*" >&2; exit 2; }

environment() {
  local levels=("$@")
  if [[ -n "${USE_PYTHON:-}" ]]; then
    local short
    short="$("$USE_PYTHON" "$ROOT/scripts/lib/pins.py" below "${levels[@]}")" ||
      fail "USE_PYTHON=$USE_PYTHON lacks: $(paste -sd ' ' - <<<"$short")"
    PYTHON="$USE_PYTHON"
  elif _active_satisfies "${levels[@]}"; then
    PYTHON="$(command -v python)"
  else
    PYTHON="$ROOT/.venv/bin/python"
    _fill_venv "${levels[@]}"
    # .venv is filled uncompiled; what the first import compiles must be kept, or every start would pay ten seconds again.
    unset PYTHONDONTWRITEBYTECODE
  fi
  export PYTHON
}

_active_satisfies() {
  [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && command -v python >/dev/null &&
    python "$ROOT/scripts/lib/pins.py" missing "$@" >/dev/null 2>&1
}

_fill_venv() {
  # The stamp has hashes of the files that determine the packages, so that a second run needs no Python.
  local stamp="$ROOT/.venv/.installed" wanted base
  wanted="$(cat "$ROOT/constraints.txt" "$ROOT/pyproject.toml" | cksum) $*"
  if [[ -x "$PYTHON" ]] && grep -qxF -- "$wanted" "$stamp" 2>/dev/null; then return; fi

  # Two scripts that start together must not install into .venv at the same time.
  mkdir -p "$ROOT/.venv"
  if command -v flock >/dev/null; then
    exec 9>"$ROOT/.venv/.lock" # a number: bash 3.2 of macOS does not choose one
    flock 9
  fi
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    say "making $ROOT/.venv"
    base="$(_base_python)" || exit 2
    "$base" -m venv "$ROOT/.venv" || fail "$base could not make a virtual environment (Debian: install python3-venv)"
  fi
  if ! "$PYTHON" "$ROOT/scripts/lib/pins.py" missing "$@" >/dev/null; then
    rm -f "$stamp"  # packages of older pins are out of date
    _install "$@"
  fi
  printf '%s\n' "$wanted" >>"$stamp"
  exec 9>&-
}

_base_python() {
  local name
  for name in python3 python3.11 python3.12 python3.13 python; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "Python 3.11 or newer with its venv module is needed; install it (Debian: python3-venv), or name one with USE_PYTHON"
}

_install() {
  local start=$SECONDS missing torch
  missing="$("$PYTHON" "$ROOT/scripts/lib/pins.py" missing "$@")" || true
  torch="$(grep '^torch==' <<<"$missing" || true)"
  missing="$(grep -v '^torch==' <<<"$missing" || true)"
  say "first use: installing into .venv, about a minute when the package index is near"
  # torch first and by itself: transformers does not ask for it, and which build is right depends on the machine.
  if [[ -n "$torch" ]]; then _install_torch "$torch"; fi
  if [[ -n "$missing" ]]; then
    say "installing $(wc -l <<<"$missing" | tr -d ' ') more packages and what they need"
    # shellcheck disable=SC2086  # one requirement per word is meant
    _pip $missing || fail "pip could not install the packages; its message stands above. Run the same command again to go on"
  fi
  say "ready after $((SECONDS - start)) s"
}

_install_torch() {
  # On Linux the package index gives a CUDA build of several GB even without a GPU: in that case PyTorch's CPU index comes first.
  if [[ "$(uname -s)" == Linux ]] && ! nvidia-smi >/dev/null 2>&1; then
    if _answers "$TORCH_CPU_INDEX/torch/"; then
      say "installing $1, CPU build"
      if _pip --timeout 15 --retries 1 --extra-index-url "$TORCH_CPU_INDEX" "$1"; then return; fi
    fi
    say "PyTorch's CPU index does not answer: installing $1 from the package index"
  else
    say "installing $1"
  fi
  _pip "$1" || fail "pip could not install $1; its message stands above"
}

_pip() {
  # --no-compile: modules are compiled when first imported, and most never are. -qq: errors only.
  "$PYTHON" -m pip install -qq --disable-pip-version-check --no-compile -c "$ROOT/constraints.txt" "$@"
}

_answers() {
  # The inner limit does not cover name resolution; the thread does.
  "$PYTHON" - "$1" <<'PY' 2>/dev/null
import os, sys, threading, urllib.request
ok = []
probe = threading.Thread(target=lambda: ok.append(urllib.request.urlopen(sys.argv[1], timeout=4).status), daemon=True)
probe.start()
probe.join(6)
os._exit(0 if ok == [200] else 1)
PY
}
