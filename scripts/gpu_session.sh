#!/usr/bin/env bash
# Checks and measures this project on one GPU: attention in half precision, denoiser and autoencoder at the size of the
# paper, sampling, the programs with SIGTERM and resume, gradient accumulation. No network.
# How long: at most 8 minutes (--minutes). Without a GPU the same phases run small on the CPU, in two minutes on 2 cores.
# Expect:   a table, and in the folder results.jsonl, record.json and table.txt. Exit status 0; 1 if a phase failed or, on
#           a GPU, one that is required had no time.
#           python benchmarks/gpu_session_record.py FOLDER --output_dir benchmarks/records/NAME   makes a record of it
# Use:      bash scripts/gpu_session.sh [--output_dir FOLDER] [--minutes 8] [--phases denoiser,sampling]
#           The folder is $OUT if the environment has it, else runs/gpu_session.
# Python:   USE_PYTHON; else python3 if its torch finds a GPU; else the environment of the other scripts. Nothing is
#           downloaded where torch finds a GPU. What it lacks can be brought as wheels in the folder wheels/ (WHEELS names
#           another): they are unpacked into runs/wheels, not installed. Training needs einops:
#               pip download --no-deps --dest wheels einops lion-pytorch
#           Without datasets, evaluate, mauve-text, spacy, rouge-score and wandb, what needs them is left out with a line.
set -euo pipefail
export SESSION_BEGAN="${EPOCHSECONDS:-$(date +%s)}"  # the eight minutes hold the imports of torch below, too
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export WANDB_MODE="${WANDB_MODE:-disabled}"
export OUT="${OUT:-$ROOT/runs/gpu_session}"
WHEELS="${WHEELS:-$ROOT/wheels}"

if [[ -n "${USE_PYTHON:-}" ]]; then
  PYTHON="$USE_PYTHON"
elif python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  PYTHON="$(command -v python3)"
else
  environment core eval
  SESSION_BEGAN="${EPOCHSECONDS:-$(date +%s)}"  # not the minutes of making it
fi
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  packages="$ROOT/runs/wheels"
  mkdir -p "$packages"
  for wheel in "$WHEELS"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$packages"; done
  export PYTHONPATH="$PYTHONPATH:$packages"
fi
"$PYTHON" -c 'import einops' 2>/dev/null ||
  fail "$PYTHON has no einops: run 'pip download --no-deps --dest wheels einops' where there is a network, and bring wheels/"
exec "$PYTHON" -m benchmarks.gpu_session "$@"
