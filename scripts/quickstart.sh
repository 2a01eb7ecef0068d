#!/usr/bin/env bash
# The whole way in one command: text -> language model -> latents -> diffusion -> text again, measured.
# Installs into .venv (or takes an active environment that satisfies the pins), writes the embedded corpus, pretrains a
# small BART, trains the autoencoder and the denoiser, samples 1,000 stories and evaluates them.
# How long: about 11 minutes on 2 cores, install included; no GPU, no network but the package index.
# Expect:   a dozen stories, then shares of grammatical (>= 0.98), agreeing (>= 0.97) and new (>= 0.5) ones, and
#           runs/quickstart/{lm,autoencoder,diffusion,report.json,report.html}. Run again, it goes on where it was.
# Use:      bash scripts/quickstart.sh [--output_dir FOLDER]
set -euo pipefail
began="$(date +%s)"
# shellcheck source=scripts/lib/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
environment core eval
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export WANDB_MODE="${WANDB_MODE:-disabled}"
export QUICKSTART_INSTALL_SECONDS="$(($(date +%s) - began))"
exec "$PYTHON" -m pipelines.quickstart "$@"
