#!/usr/bin/env bash
# Decode the test sources of a DiffuSeq run, one sample and MBR of 10 candidates:
# 10 steps of second-order DPM-Solver++.
# Paper:    Gong et al. 2023, arXiv:2210.08933 and 2310.05793: metrics of section 4.1, candidates chosen by BLEU.
# Expect:   the figures in the header of the training script; five seeds, mean and standard deviation.
# Cost:     10 candidates of 2,500 sources and five seeds: give --num_samples for fewer.
# Needs:    the run folder and its corpus. For BERTScore microsoft/deberta-xlarge-mnli, or BERTSCORE_MODEL=FOLDER;
#           BERTSCORE_MODEL=none leaves it out.
# Use:      bash scripts/embedding/decode_solver.sh RUN [flags]
set -euo pipefail
# shellcheck source=scripts/lib/embedding_diffusion.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/embedding_diffusion.sh"
evaluate --eval_test "${DECODING[@]}" --sampler dpmpp --sampling_timesteps 10 -- "$@"
