# shellcheck shell=bash
# Shared by the recipes in scripts/embedding: published hyperparameters of the systems that diffuse learned token
# embeddings. A recipe adds its corpus, its number of training steps and its other flags.
set -euo pipefail
# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# All of them: BERT-base's layout from scratch, x0-prediction on a sqrt chain of 2,000 steps, no weight decay, no
# warm-up, no clipping, and padding that is generated like text. Li et al. 2022, arXiv:2205.14217, and its descendants.
EMBEDDING_DIFFUSION=(
  --latent_space embeddings
  --denoiser_variant encoder
  --objective pred_x0
  --beta_schedule sqrt
  --timesteps 2000
  --padding generated
  --learning_rate 1e-4
  --lr_schedule linear
  --lr_warmup_steps 0
  --adam_weight_decay 0
  --clip_grad_norm 0
)

# Diffusion-LM, Li et al. 2022, arXiv:2205.14217: batch 64, sampled in 200 of the 2,000 steps. The other values
# are ours, after the paper.
# shellcheck disable=SC2034  # for the scripts that source this
DIFFUSION_LM=(
  "${EMBEDDING_DIFFUSION[@]}"
  --vocab word-level
  --config vocab_lowercase=true
  --config vocab_strip_accents=true
  --config vocab_min_frequency=10
  --max_seq_len 64
  --train_batch_size 64
  --posterior_variance large
  --sampling_timesteps 200
  --save_and_sample_every 50000
  --num_samples 1000
  --eval_batch_size 100
  --mixed_precision no
  --random_seed 102
)

# minimal text diffusion, its script for the simple corpus; noise of more than 0.9 is drawn again while sampling
# shellcheck disable=SC2034
MINIMAL_TEXT_DIFFUSION=(
  "${EMBEDDING_DIFFUSION[@]}"
  --vocab word-level
  --config vocab_lowercase=true
  --config vocab_strip_accents=true
  --max_seq_len 50
  --embedding_dim 128
  --train_batch_size 64
  --posterior_variance small
  --sampling_timesteps 2000
  --truncate_noise 0.9
  --num_samples 50
  --eval_batch_size 50
  --mixed_precision no
  --random_seed 10708
)

# both versions of DiffuSeq: pairs of at most 128 tokens by BERT's vocabulary, times drawn where the loss is large
PAIRS_OF_DIFFUSEQ=(
  "${EMBEDDING_DIFFUSION[@]}"
  --vocab "${VOCAB:-bert}"
  --max_seq_len 128
  --truncate_sources
  --embedding_dim 128
  --schedule_sampler lossaware
  --config importance_bins=none
  --posterior_variance large
  --save_and_sample_every 10000
  --num_samples 100
  --seq2seq_candidates 1
  --random_seed 102
)

# Gong et al. 2023, arXiv:2210.08933: batch 2048 in micro-batches of 64, estimates rounded to tokens in every step
# shellcheck disable=SC2034
DIFFUSEQ=(
  "${PAIRS_OF_DIFFUSEQ[@]}"
  --train_batch_size 64
  --gradient_accumulation_steps 32
  --sampling_timesteps 2000
  --clamp
  --mixed_precision no
  --eval_batch_size 50
)

# Gong et al. 2023, arXiv:2310.05793: a learned soft absorbing state, discrete noise, mixed precision, solver steps
# shellcheck disable=SC2034
DIFFUSEQ_V2=(
  "${PAIRS_OF_DIFFUSEQ[@]}"
  --learned_mean_embed
  --denoise
  --denoise_rate 0.5
  --mixed_precision fp16
  --train_batch_size 425
  --sampler dpmpp
  --sampling_timesteps 10
  --eval_batch_size 100
)

# decoding of test sources with both versions: 10 candidates of each, chosen by their mutual BLEU
# shellcheck disable=SC2034
DECODING=(
  --bertscore_model "${BERTSCORE_MODEL:-microsoft/deberta-xlarge-mnli}"
  --seq2seq_candidates 10
  --mbr_utility diffuseq_bleu
  --num_samples 2500
  --eval_batch_size 100
)
