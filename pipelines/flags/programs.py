"""The command lines as data: which groups of flags each entry point has, its own defaults, and the rules they obey.

Defaults are those of the published systems (second release where releases differ). Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import fields

from dataset_utils.options import DataOptions, PackingOptions
from diffusion.options import ProcessOptions, SamplingOptions
from evaluation.options import ClassOptions, EvaluationOptions, PairOptions
from latent_models.options import (
    AutoencoderOptions,
    ContextOptions,
    DrafterOptions,
    EmbeddingOptions,
    EncoderCacheOptions,
    LanguageModelOptions,
    LatentOptions,
    PretrainingOptions,
    ReconstructionOptions,
    TokenizerOptions,
    WritingOptions,
)
from model.options import ClassifierOptions, DenoiserOptions, EncoderDenoiserOptions
from pipelines.flags import published_flags, rules
from pipelines.flags.embedding_rules import embeddings_meet
from pipelines.flags.options import (
    AbsorbingOptions,
    AutoencoderIntervals,
    ClassifierRunOptions,
    ControlOptions,
    DiffusionIntervals,
    DistillationOptions,
    DrafterRunOptions,
    EmbeddingLossOptions,
    PretrainingIntervals,
    PriorOptions,
    RoundingOptions,
    TrajectoryOptions,
)
from pipelines.flags.students import students_take_after_their_teacher
from pipelines.flags.without_effect import said_where_without_effect
from utils.options import (
    AverageOptions,
    CompileOptions,
    HeldOutOptions,
    KernelOptions,
    LoopOptions,
    OptimizerOptions,
    RunOptions,
    ShardingOptions,
)
from utils.settings import Program

# What may differ from args.json when a run folder is used again, beside INVOCATION of utils.settings.
ANYWHERE = frozenset(
    {"data_dir", "train_file", "valid_file", "test_file", "log_every", "attention", "tf32", "freed_memory"}
)
# How a step's texts are shared out, while the number of all of them stays (pipelines.job.refuse_another_batch);
# and what a run may go on with whose loss was no number (utils.hooks.Report.check).
GOING_ON = frozenset({"train_batch_size", "gradient_accumulation_steps", "clip_grad_norm", "mixed_precision"})
COMPILED = ANYWHERE | {"compile", "val_loss_texts"} | {f.name for f in fields(WritingOptions)}
SAMPLING = (
    COMPILED
    | frozenset(f.name for f in fields(SamplingOptions))
    | frozenset(f.name for f in fields(ClassOptions))
    | frozenset(f.name for f in fields(PairOptions))
    | frozenset(f.name for f in fields(RoundingOptions))
    | frozenset(f.name for f in fields(ControlOptions))
    | frozenset(f.name for f in fields(TrajectoryOptions))
    | frozenset(
        [
            "num_samples",
            "scale",
            "denoise",
            "denoise_rate",
            "decoding",
            "scorer",
            "enc_dec_model",
            "context_encoder",
            "latent_model_path",
            "eval_batch_size",
            "mixed_precision",
        ]
    )
)


PRETRAIN = Program(
    name="python -m latent_models.pretraining",
    description="Stage 0: train a small BART from scratch, by denoising, into a folder for --enc_dec_model.",
    groups={
        "corpus": DataOptions,
        "model": PretrainingOptions,
        "optimisation": OptimizerOptions,
        "training": LoopOptions,
        "kernels": KernelOptions,
        "loss": ReconstructionOptions,
        "validation": PretrainingIntervals,
        "run": RunOptions,
    },
    defaults=dict(
        learning_rate=1e-3,
        lr_schedule="cosine",
        lr_warmup_steps=100,
        adam_weight_decay=0.01,
        adam_beta2=0.98,
        num_train_steps=2000,
        train_batch_size=64,
        save_dir="saved_language_models",
    ),
    reference_flags=frozenset(),
    refused={"fsdp": "is for train_latent_model.py --lm_mode ft: what is trained here is small; leave it out"},
    free_at_resume=ANYWHERE | GOING_ON | {"whole_logits"},
    rules=(rules.resume_dir_says_what_for, rules.numbers_in_range, said_where_without_effect),
)

AUTOENCODER = Program(
    name="train_latent_model.py",
    description="Stage 1: train the Perceiver autoencoder around a frozen language model.",
    groups={
        "corpus": DataOptions,
        "language model": LanguageModelOptions,
        "autoencoder": AutoencoderOptions,
        "optimisation": OptimizerOptions,
        "training": LoopOptions,
        "validation losses": HeldOutOptions,
        "kernels": KernelOptions,
        "sharding": ShardingOptions,
        "compilation": CompileOptions,
        "loss": ReconstructionOptions,
        "encoder states": EncoderCacheOptions,
        "a decoder for a denoiser": PriorOptions,
        "writing texts": WritingOptions,
        "validation": AutoencoderIntervals,
        "evaluation": EvaluationOptions,
        "run": RunOptions,
    },
    defaults=dict(
        dataset_name="roc",
        train_batch_size=32,
        save_dir="saved_latent_models",
        learning_rate=5e-5,
        num_train_steps=50000,
        lr_schedule="linear",
        lr_warmup_steps=500,
        adam_weight_decay=1e-2,
        random_seed=43,
    ),
    reference_flags=published_flags.AUTOENCODER,
    free_at_evaluation=COMPILED
    | {"whole_logits", "cache_encoder_states", "latent_cache_dir", "states_on_device", "fsdp"}
    | {"decoding", "scorer", "eval_texts", "midpoints", "eval_batch_size", "mixed_precision", "enc_dec_model"},
    free_at_resume=COMPILED
    | GOING_ON
    | {"whole_logits", "cache_encoder_states", "latent_cache_dir", "states_on_device", "fsdp", "enc_dec_model"},
    rules=(
        rules.own_files_replace_default_corpus,
        rules.decoders_are_trained_of_a_run,
        rules.priors_are_for_decoders,
        rules.decoder_latents_equal,
        rules.autoencoders_generate_nothing,
        rules.middles_are_of_a_trained_space,
        rules.drafters_are_of_a_trained_space,
        rules.only_frozen_states_are_cached,
        rules.only_what_trains_is_sharded,
        rules.numbers_in_range,
        said_where_without_effect,
    ),
)

DIFFUSION = Program(
    name="train_text_diffusion.py",
    description="Stage 2: train a diffusion model on latents, sample from it, evaluate the samples.",
    groups={
        "corpus": DataOptions,
        "language model": LanguageModelOptions,
        "latents": LatentOptions,
        "source texts": ContextOptions,
        "tokenizer of embeddings": TokenizerOptions,
        "embeddings": EmbeddingOptions,
        "losses of embeddings": EmbeddingLossOptions,
        "absorbing state": AbsorbingOptions,
        "pairs and blocks of embeddings": PackingOptions,
        "denoiser": DenoiserOptions,
        "a Hugging Face encoder as denoiser": EncoderDenoiserOptions,
        "diffusion process": ProcessOptions,
        "distillation to few steps": DistillationOptions,
        "sampling": SamplingOptions,
        "rounding while sampling": RoundingOptions,
        "control by a classifier": ControlOptions,
        "seeing it happen": TrajectoryOptions,
        "writing texts": WritingOptions,
        "optimisation": OptimizerOptions,
        "averaged weights": AverageOptions,
        "training": LoopOptions,
        "validation losses": HeldOutOptions,
        "kernels": KernelOptions,
        "compilation": CompileOptions,
        "intervals": DiffusionIntervals,
        "evaluation": EvaluationOptions,
        "evaluation of classes": ClassOptions,
        "evaluation of pairs": PairOptions,
        "run": RunOptions,
    },
    defaults=dict(save_dir="saved_diff_models"),
    reference_flags=published_flags.DIFFUSION,
    ignored={
        "amp": "use --mixed_precision bf16 or fp16",
        "corruption_prob": "nothing is corrupted in diffusion training",
        "milestone": "checkpoints are found by --resume_dir",
    },
    refused={
        "fsdp": "is for train_latent_model.py --lm_mode ft: here every process keeps whole averages of what trains, "
        "a context encoder too; leave it out"
    },
    free_at_evaluation=SAMPLING,
    free_at_resume=COMPILED
    | GOING_ON
    | {
        "class_id",
        "classifier",
        "num_samples",
        "sampling_timesteps",
        "ddim_sampling_eta",
        "cls_free_guidance",
        "save_and_sample_every",
        "seq2seq_candidates",
        "bertscore_model",
        "enc_dec_model",
        "context_encoder",
        "latent_model_path",
        "latent_cache_dir",
        "latents_on_device",
        "distill_run",
    },
    rules=(
        rules.resume_dir_says_what_for,
        students_take_after_their_teacher,
        rules.preset_fills_in,
        embeddings_meet,
        rules.a_shift_goes_with_its_grid,
        rules.schedules_meet,
        rules.respacing_counts_the_steps,
        rules.classes_are_conditions,
        rules.numbers_in_range,
        said_where_without_effect,
    ),
)

CLASSIFIER = Program(
    name="python -m pipelines.train_classifier",
    description="Train a classifier on the noised latents of a diffusion run, for --latent_classifier.",
    groups={
        "what to judge": ClassifierRunOptions,
        "corpus": DataOptions,
        "classifier": ClassifierOptions,
        "optimisation": OptimizerOptions,
        "training": LoopOptions,
        "validation losses": HeldOutOptions,
        "kernels": KernelOptions,
        "run": RunOptions,
    },
    defaults=dict(
        save_dir="saved_classifiers",
        num_train_steps=2000,
        train_batch_size=64,
        learning_rate=1e-3,
        lr_warmup_steps=50,
        val_loss_texts=1024,
    ),
    free_at_resume=ANYWHERE | GOING_ON | {"diffusion_run", "val_loss_texts"},
    rules=(rules.resume_dir_says_what_for, rules.numbers_in_range, said_where_without_effect),
)

DRAFTER = Program(
    name="python -m pipelines.train_drafter",
    description="Train a drafter for an autoencoder, with which greedy decoding writes the same texts sooner.",
    groups={
        "what to draft": DrafterRunOptions,
        "corpus": DataOptions,
        "drafter": DrafterOptions,
        "optimisation": OptimizerOptions,
        "training": LoopOptions,
        "validation losses": HeldOutOptions,
        "kernels": KernelOptions,
        "run": RunOptions,
    },
    defaults=dict(
        save_dir="saved_drafters",
        num_train_steps=1000,
        train_batch_size=64,
        learning_rate=2e-3,
        lr_warmup_steps=50,
        adam_weight_decay=0.01,
    ),
    free_at_resume=ANYWHERE | GOING_ON | {"latent_model_path", "enc_dec_model", "val_loss_texts", "latent_cache_dir"},
    rules=(rules.resume_dir_says_what_for, rules.numbers_in_range, said_where_without_effect),
)
