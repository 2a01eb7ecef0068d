#!/usr/bin/env bash
# Train on several machines: start this on each of them, with the same flags but for NODE_RANK.
# Use:    MASTER_ADDR=host0 NODES=2 NODE_RANK=0 bash scripts/launch/several_nodes.sh [--dry_run] PROGRAM FLAGS
#         MASTER_ADDR=host0 NODES=2 NODE_RANK=1 bash scripts/launch/several_nodes.sh PROGRAM FLAGS
# May be: MASTER_PORT (29500), PROCESSES (GPUs of this machine, of those in CUDA_VISIBLE_DEVICES if it is set, or 1).
# Needs:  the same code and environment everywhere, and an --output_dir that all machines share: without one, only the
#         main machine keeps checkpoints, no run can be resumed, and every machine encodes the corpus for itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
dry=""
if [[ "${1:-}" == "--dry_run" ]]; then dry=1; shift; fi
[[ $# -gt 0 ]] || { echo "error: name a program, such as train_text_diffusion.py, and its flags" >&2; exit 2; }
for name in MASTER_ADDR NODES NODE_RANK; do
  [[ -n "${!name:-}" ]] || { echo "error: set $name (see the head of ${BASH_SOURCE[0]})" >&2; exit 2; }
done
if [[ -z "${PROCESSES:-}" ]]; then
  if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
    PROCESSES="$(tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -cv -e '^-' -e '^$' || true)"
  else
    PROCESSES="$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)"
  fi
  [[ "$PROCESSES" -gt 0 ]] || PROCESSES=1
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
launch=("${PYTHON:-python}" -m torch.distributed.run --nnodes "$NODES" --node_rank "$NODE_RANK"
  --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" --nproc_per_node "$PROCESSES")
echo "+ ${launch[*]} $*"
if [[ -n "$dry" ]]; then
  exec "${PYTHON:-python}" "$@" --dry_run
fi
exec "${launch[@]}" "$@"
