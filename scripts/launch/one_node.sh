#!/usr/bin/env bash
# Train on every GPU of this machine, one process each.
# Use:    bash scripts/launch/one_node.sh [--processes N] train_text_diffusion.py FLAGS
#         bash scripts/launch/one_node.sh --dry_run train_latent_model.py FLAGS   prints the command and what it would build
# N:      by default the number of GPUs (of those in CUDA_VISIBLE_DEVICES, if it is set), or 1 without any. --train_batch_size counts texts of one process.
# Needs:  an environment in which `python` finds this project's packages (see scripts/lib/environment.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
processes="" dry=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --processes) processes="${2:?--processes needs a number}"; shift 2 ;;
    --dry_run) dry=1; shift ;;
    *) break ;;
  esac
done
[[ $# -gt 0 ]] || { echo "error: name a program, such as train_text_diffusion.py, and its flags" >&2; exit 2; }
if [[ -z "$processes" ]]; then
  if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
    processes="$(tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -cv -e '^-' -e '^$' || true)"
  else
    processes="$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)"
  fi
  [[ "$processes" -gt 0 ]] || processes=1
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
launch=("${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node "$processes")
echo "+ ${launch[*]} $*"
if [[ -n "$dry" ]]; then
  exec "${PYTHON:-python}" "$@" --dry_run
fi
exec "${launch[@]}" "$@"
