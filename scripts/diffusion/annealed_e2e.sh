#!/usr/bin/env bash
# LD4LG's annealed fork on E2E: the first release's model, trained on a range of noise levels that grows over the first
# half of training, from the lowest fifth to all: T(step) = T/5 + (step / (N/2))^2 (T - T/5), then T.
# Source:   the README of "Offline Implementation for Efficient Training of Diffusion Language Models", its example:
#           80k steps of batch 64, weight decay 0.01, seed 41. The method is Lovelace et al. 2022, arXiv:2212.09462.
# Expect:   214.3 M trained parameters; the fork's README prints no figures. Compare with --T_schedule normal.
# Cost:     no published hours; 80k steps against the 100k of text_diffusion_e2e.sh.
# Disk:     at most 4.1 GB of encoder states in float16 (42,000 texts, 768 per token), in --cache_dir, before the first
#           step; runs on this corpus share them.
# Needs:    E2E (sources: datasets/README.md), facebook/bart-base or ENC_DEC_MODEL=FOLDER.
# Use:      bash scripts/diffusion/annealed_e2e.sh [flags], for example  --T_schedule cosine, --random_seed 42
set -euo pipefail
# shellcheck source=scripts/lib/states_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/states_diffusion.sh"

run train_text_diffusion.py \
  "${STATES_DIFFUSION[@]}" \
  --dataset_name e2e \
  --adam_weight_decay 0.01 \
  --num_train_steps 80000 \
  --T_schedule polynomial \
  --polynomial_T_power 2 \
  --optimizer adamW \
  --random_seed 41 \
  "$@"
