"""The command lines: each program's configuration (pipelines.cli.configs) and the rules that its flags obey."""

from __future__ import annotations

from pipelines.cli import baseline_rules, decoder_rules, rules
from pipelines.cli.configs import (
    AutoencoderConfig,
    CausalLMConfig,
    ClassifierConfig,
    DiffusionConfig,
    DraftModelConfig,
    PretrainConfig,
    Seq2SeqConfig,
    TextDecoderConfig,
)
from pipelines.cli.corpus_rules import prefer_typed_corpus
from pipelines.cli.distillation_rules import inherit_teacher_flags
from pipelines.cli.embedding_rules import check_embedding_flags
from pipelines.cli.joint_rules import inherit_joint_flags
from pipelines.cli.unused_flags import warn_unused_flags
from utils.cli.settings import Program

PRETRAIN = Program(
    name="python -m latent_models.pretraining",
    description="Stage 0: train a small BART from scratch, by denoising, into a folder for --enc_dec_model.",
    config=PretrainConfig,
    rejected={"fsdp": "shards the language model of train_latent_model.py --lm_mode ft only; leave it out"},
    rules=(prefer_typed_corpus, rules.check_resume_mode, rules.apply_reference_kernels, warn_unused_flags),
)

AUTOENCODER = Program(
    name="train_latent_model.py",
    description="Stage 1: train the Perceiver autoencoder around a frozen language model. With --decoder_model, a "
    "language model learns to decode frozen latents: see python -m pipelines.train_text_decoder --help.",
    config=AutoencoderConfig,
    abbreviates=True,
    rules=(
        prefer_typed_corpus,
        rules.check_decoder_mode,
        rules.check_denoiser_run,
        rules.check_num_latents,
        rules.check_gen_data,
        rules.check_interpolation,
        rules.check_recovery,
        rules.check_latent_losses,
        rules.check_draft_model,
        rules.check_encoder_cache,
        rules.check_fsdp,
        rules.check_decoding_flags,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)

DIFFUSION = Program(
    name="train_text_diffusion.py",
    description="Stage 2: train a diffusion model on latents, sample from it, evaluate the samples.",
    config=DiffusionConfig,
    abbreviates=True,
    deprecated={
        "amp": "use --mixed_precision bf16 or fp16",
        "corruption_prob": "diffusion training corrupts no texts",
        "milestone": "the checkpoint is found in --resume_dir",
    },
    rejected={
        "fsdp": "shards the language model of train_latent_model.py --lm_mode ft only; here every process holds whole "
        "averaged weights; leave it out"
    },
    rules=(
        rules.check_resume_mode,
        inherit_teacher_flags,
        inherit_joint_flags,
        prefer_typed_corpus,
        rules.apply_preset,
        check_embedding_flags,
        rules.reset_grid_shift,
        rules.resolve_schedule_flags,
        rules.resolve_respacing,
        rules.check_class_flags,
        rules.check_time_width,
        rules.check_decoding_flags,
        rules.check_averages,
        rules.check_init_optimizer,
        rules.keep_cache_dtype,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)

CLASSIFIER = Program(
    name="python -m pipelines.train_classifier",
    description="Train a classifier on the noised latents of a diffusion run, for --latent_classifier.",
    config=ClassifierConfig,
    rules=(
        prefer_typed_corpus,
        rules.check_resume_mode,
        rules.keep_cache_dtype,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)

DRAFT_MODEL = Program(
    name="python -m pipelines.train_draft_model",
    description="Train a draft model for an autoencoder: greedy decoding verifies its drafts and gives the same texts "
    "sooner.",
    config=DraftModelConfig,
    rules=(
        prefer_typed_corpus,
        rules.check_resume_mode,
        rules.keep_cache_dtype,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)

CAUSAL_LM = Program(
    name="python -m pipelines.train_causal_lm",
    description="A baseline: fine-tune a causal language model, or train a small one, and sample it by nucleus.",
    config=CausalLMConfig,
    rejected={
        "fsdp": "shards the language model of train_latent_model.py --lm_mode ft only; leave it out",
        "num_beams": "searches with beams, and this program samples each token, or takes the likeliest; leave it out",
        "length_penalty": "compares beams, and this program samples each token, or takes the likeliest; leave it out",
    },
    rules=(
        prefer_typed_corpus,
        rules.check_resume_mode,
        baseline_rules.check_causal_strategies,
        baseline_rules.check_evaluation,
        baseline_rules.set_learning_rate,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)

SEQ2SEQ = Program(
    name="python -m pipelines.train_seq2seq",
    description="A baseline on pairs: train a small encoder-decoder, or fine-tune one, from sources to texts.",
    config=Seq2SeqConfig,
    rejected={
        "fsdp": "shards the language model of train_latent_model.py --lm_mode ft only; leave it out",
        "ignore_sources": "leaves nothing to read: python -m pipelines.train_causal_lm trains on texts alone",
    },
    rules=(
        prefer_typed_corpus,
        rules.check_resume_mode,
        baseline_rules.check_evaluation,
        baseline_rules.set_learning_rate,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)

TEXT_DECODER = Program(
    name="python -m pipelines.train_text_decoder",
    description="Stage 1 with frozen encodings: a language model learns to decode the latents of texts.",
    config=TextDecoderConfig,
    rejected={"fsdp": "shards the language model of train_latent_model.py --lm_mode ft only; leave it out"},
    rules=(
        prefer_typed_corpus,
        decoder_rules.check_resume,
        decoder_rules.resolve_space,
        decoder_rules.check_evaluation,
        decoder_rules.check_decoding_flags,
        rules.apply_reference_kernels,
        warn_unused_flags,
    ),
)
