# shellcheck shell=bash
# Starts the programs of the recipes in scripts/. The files of hyperparameters in this folder (autoencoder,
# latent_diffusion, states_diffusion, embedding_diffusion, evaluation) source it, and the recipes source those:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/../lib/autoencoder.sh"
#     run train_latent_model.py "${MODEL[@]}" "${AUTOENCODER[@]}" --flag value "$@"
#
# From the environment of the caller:
#   ENC_DEC_MODEL    encoder-decoder language model, a local folder or a hub id (default facebook/bart-base)
#   LATENT_MODEL_PATH  run folder of an autoencoder, for diffusion on its latents (default: the newest of the corpus)
#   DATA_DIR         folder of the corpus (default: datasets/ here or in the project; some corpora come from the hub)
#   SCORER           causal language model of the evaluation scripts, a local folder or a hub id
#   BERTSCORE_MODEL  encoder of BERTScore in the evaluations of pairs, a local folder or a hub id; none leaves it out
#   VOCAB            BERT-style tokenizer of DiffuSeq's recipes, a local folder or a hub id (default bert)
#   NUM_PROCESSES    processes, one GPU each (default 1); a batch size counts per process
# and, by environment.sh, USE_PYTHON. Flags at the end of the command line override those of a recipe.
set -euo pipefail
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment core eval track

# shellcheck disable=SC2034  # for the scripts that source this
MODEL=(--enc_dec_model "${ENC_DEC_MODEL:-facebook/bart-base}")
OWN_MODEL=()  # for runs that record their language model: only ENC_DEC_MODEL of the caller
# shellcheck disable=SC2034
if [[ -n "${ENC_DEC_MODEL:-}" ]]; then OWN_MODEL=("${MODEL[@]}"); fi

# language_model HUB_ID: the language model of a recipe other than BART, unless ENC_DEC_MODEL is set
language_model() {
  # shellcheck disable=SC2034
  MODEL=(--enc_dec_model "${ENC_DEC_MODEL:-$1}")
}

# run PROGRAM FLAGS...: one of the entry scripts, in place of this shell
run() {
  local program="$1" start=("$PYTHON")
  shift
  if [[ "${NUM_PROCESSES:-1}" -gt 1 ]]; then
    start+=(-m torch.distributed.run --standalone --nproc_per_node "$NUM_PROCESSES")
  fi
  if [[ -n "${DATA_DIR:-}" ]]; then set -- --data_dir "$DATA_DIR" "$@"; fi
  exec "${start[@]}" "$ROOT/$program" "$@"
}

# given FLAG ARGUMENTS...: whether the flag is among the arguments
given() {
  local flag="$1" argument
  shift
  for argument in "$@"; do
    if [[ "$argument" == "$flag" || "$argument" == "$flag="* ]]; then return 0; fi
  done
  return 1
}

# newest_run FOLDER: the newest run folder FOLDER/{date_time}/, or nothing
newest_run() {
  local run newest=""
  for run in "$1"/*/; do
    if [[ -f "${run}args.json" ]]; then newest="${run%/}"; fi  # sorted by name, which is the date
  done
  printf '%s' "$newest"
}

# run_folder ARGUMENTS...: the first argument, which must be a run folder
run_folder() {
  if [[ $# -eq 0 || "$1" == --* ]]; then
    fail "usage: bash scripts/$(basename "$(dirname "$0")")/$(basename "$0") RUN_FOLDER [flags]"
  fi
  if [[ ! -f "$1/args.json" ]]; then fail "$1 is not a run folder: it holds no args.json"; fi
  printf '%s' "$1"
}

# evaluate FLAGS... -- RUN_FOLDER MORE_FLAGS...: the diffusion program on a run; what the caller typed comes last
evaluate() {
  local flags=() folder
  while [[ "$1" != -- ]]; do
    flags+=("$1")
    shift
  done
  shift
  folder="$(run_folder "$@")"
  shift
  run train_text_diffusion.py --resume_dir "$folder" "${flags[@]}" "$@"
}
