"""The command lines as data: which groups of flags each entry point has, its own defaults, and how flags meet.

Spellings and defaults are those of the published systems (second release where releases differ); flags of ours stand
beside them and are typed whole, so that no old abbreviation becomes ambiguous. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import fields

from dataset_utils.options import DataOptions, PackingOptions
from diffusion.options import ProcessOptions, SamplingOptions
from evaluation.options import ClassOptions, EvaluationOptions, PairOptions
from latent_models.options import (
    AutoencoderOptions,
    ContextOptions,
    EmbeddingOptions,
    EncoderCacheOptions,
    LanguageModelOptions,
    LatentOptions,
    PretrainingOptions,
    ReconstructionOptions,
    TokenizerOptions,
)
from model.options import ClassifierOptions, DenoiserOptions, EncoderDenoiserOptions
from pipelines.embedding_rules import embeddings_meet
from pipelines.options import (
    AbsorbingOptions,
    AutoencoderIntervals,
    ClassifierRunOptions,
    ControlOptions,
    DiffusionIntervals,
    EmbeddingLossOptions,
    PretrainingIntervals,
    RoundingOptions,
    TrajectoryOptions,
)
from pipelines.presets import PRESETS
from utils.errors import UserError
from utils.options import (
    AverageOptions,
    CompileOptions,
    KernelOptions,
    LoopOptions,
    OptimizerOptions,
    RunOptions,
    ShardingOptions,
)
from utils.settings import MODES, Program, Settings

AUTOENCODER_REFERENCE = frozenset(
    [
        "dataset_name",
        "max_seq_len",
        "enc_dec_model",
        "train_batch_size",
        "eval_batch_size",
        "num_encoder_latents",
        "num_decoder_latents",
        "dim_ae",
        "num_layers",
        "l2_normalize_latents",
        "output_dir",
        "save_dir",
        "learning_rate",
        "num_train_steps",
        "lr_schedule",
        "lr_warmup_steps",
        "optimizer",
        "adam_beta1",
        "adam_beta2",
        "adam_weight_decay",
        "eval_every",
        "mixed_precision",
        "wandb_name",
        "lm_mode",
        "eval",
        "resume_training",
        "resume_dir",
    ]
)
DIFFUSION_REFERENCE = frozenset(
    [
        "dataset_name",
        "save_dir",
        "output_dir",
        "wandb_name",
        "corruption_prob",
        "random_seed",
        "optimizer",
        "T_schedule",
        "polynomial_T_power",
        "train_batch_size",
        "eval_batch_size",
        "num_train_steps",
        "gradient_accumulation_steps",
        "learning_rate",
        "clip_grad_norm",
        "lr_schedule",
        "lr_warmup_steps",
        "adam_beta1",
        "adam_beta2",
        "adam_weight_decay",
        "ema_decay",
        "ema_update_every",
        "objective",
        "loss_type",
        "train_schedule",
        "sampling_schedule",
        "beta_schedule",
        "scale",
        "p2_loss_weight_gamma",
        "timesteps",
        "sampling_timesteps",
        "normalize_latent",
        "save_and_sample_every",
        "num_samples",
        "seq2seq_candidates",
        "max_seq_len",
        "self_condition",
        "train_prob_self_cond",
        "sampler",
        "ddim_sampling_eta",
        "enc_dec_model",
        "tx_dim",
        "tx_depth",
        "scale_shift",
        "num_dense_connections",
        "disable_dropout",
        "class_conditional",
        "class_unconditional_prob",
        "seq2seq_unconditional_prob",
        "amp",
        "mixed_precision",
        "eval",
        "eval_test",
        "resume_training",
        "gen_data",
        "resume_dir",
        "latent_model_path",
        "init_path",
        "milestone",
    ]
)

# What may differ from args.json when a run folder is used again, beside INVOCATION of utils.settings.
ANYWHERE = frozenset({"data_dir", "train_file", "valid_file", "test_file", "log_every", "attention", "tf32"})
COMPILED = ANYWHERE | {"compile"}
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


def schedules_meet(settings: Settings) -> None:
    """Continuous and discrete processes exclude each other; eta has a default of its own in each."""
    typed = settings.typed
    if settings.beta_schedule is not None:
        clash = [flag for flag in ("train_schedule", "sampling_schedule") if flag in typed]
        if clash:
            raise UserError(
                f"--beta_schedule (a discrete chain) and --{clash[0]} (continuous time) exclude each other: give one"
            )
    elif "timesteps" in typed:
        raise UserError(
            "--timesteps is the length of a discrete chain and means nothing without one: add --beta_schedule NAME"
        )
    if "ddim_sampling_eta" in typed and settings.ddim_sampling_eta is not None:
        if "sampler" not in typed:
            settings.set("sampler", "ddim")
        elif settings.sampler != "ddim":
            raise UserError(
                f"--ddim_sampling_eta belongs to --sampler ddim, not to {settings.sampler}: drop one of them"
            )
    if settings.ddim_sampling_eta is None:
        settings.set("ddim_sampling_eta", 1.0 if settings.beta_schedule else 0.0)


def respacing_counts_the_steps(settings: Settings) -> None:
    """--timestep_respacing decides how many steps there are, and --sampling_timesteps then says so."""
    if settings.timestep_respacing is None:
        return
    if "timestep_respacing" not in settings.typed and "sampling_timesteps" in settings.typed:
        settings.set("timestep_respacing", None)  # a number typed at evaluation replaces the respacing of training
        return
    clash = [flag for flag in ("sampling_timesteps", "time_grid") if flag in settings.typed]
    if clash:
        raise UserError(f"--timestep_respacing and --{clash[0]} both choose the steps of sampling: give one")
    if settings.beta_schedule is None:
        raise UserError("--timestep_respacing chooses steps of a discrete chain: add --beta_schedule, or drop it")
    from diffusion.respacing import kept_steps  # torch, which --help does without

    settings.set("sampling_timesteps", len(kept_steps(settings.timestep_respacing, settings.timesteps)))


def own_files_replace_default_corpus(settings: Settings) -> None:
    """The corpus that a program takes by default steps back where the user names files."""
    if settings.train_file and settings.dataset_name and "dataset_name" not in settings.typed:
        settings.set("dataset_name", None)


def preset_fills_in(settings: Settings) -> None:
    """A preset that was asked for now gives every flag of its row that was not."""
    if "preset" in settings.typed and settings.preset is not None:
        for name, value in PRESETS[settings.preset].items():
            if name not in settings.typed:
                settings.set(name, value)


def resume_dir_says_what_for(settings: Settings) -> None:
    if settings.resume_dir and not any(settings.values.get(mode) for mode in MODES):
        modes = ", ".join(f"--{mode}" for mode in MODES if mode in settings.values)
        raise UserError(f"--resume_dir {settings.resume_dir} alone does nothing: add one of {modes}")


def decoder_latents_equal(settings: Settings) -> None:
    if settings.num_decoder_latents is None:
        settings.set("num_decoder_latents", settings.num_encoder_latents)
    if settings.num_decoder_latents != settings.num_encoder_latents:
        raise UserError(
            f"--num_decoder_latents {settings.num_decoder_latents} differs from --num_encoder_latents "
            f"{settings.num_encoder_latents}: the decoder turns each latent into one state, so leave it out"
        )


def autoencoders_generate_nothing(settings: Settings) -> None:
    if settings.gen_data:
        raise UserError(
            "--gen_data belongs to a run of train_text_diffusion.py: an autoencoder only writes texts out again"
        )


def only_frozen_states_are_cached(settings: Settings) -> None:
    if settings.cache_encoder_states != "no" and settings.lm_mode != "freeze":
        raise UserError(
            f"--cache_encoder_states {settings.cache_encoder_states} keeps what the language model's own encoder says, "
            f"and with --lm_mode {settings.lm_mode} another one speaks: drop one of them"
        )


def decoders_are_trained_of_a_run(settings: Settings) -> None:
    if settings.lm_mode == "decoder" and not settings.resume_dir:
        raise UserError(
            "--lm_mode decoder trains the decoder of an autoencoder that is there: name its run with --resume_dir"
        )


def classes_are_conditions(settings: Settings) -> None:
    for flag in ("class_id", "classifier"):
        if settings.values[flag] is not None and not settings.class_conditional:
            raise UserError(
                f"--{flag} {settings.values[flag]} belongs to a run with --class_conditional, and this one has no "
                "classes: leave it out"
            )


def only_what_trains_is_sharded(settings: Settings) -> None:
    if not settings.fsdp or any(settings.values.get(mode) for mode in ("eval", "eval_test")):
        return
    if settings.lm_mode == "freeze":
        raise UserError(
            "--fsdp spreads a language model that trains, and --lm_mode freeze trains none: add --lm_mode ft, or "
            "leave --fsdp out (the autoencoder alone is small)"
        )
    if settings.optimizer == "muon":
        raise UserError("--fsdp cuts matrices into pieces, and --optimizer muon needs them whole: use adamw or lion")


def numbers_in_range(settings: Settings) -> None:
    """Counts are at least one and probabilities lie between 0 and 1, whatever part they belong to."""
    for group in settings.program.groups.values():
        for f in fields(group):
            value, unit = settings.values[f.name], f.metadata.get("unit")
            if unit == "probability" and not 0 <= value <= 1:
                raise UserError(f"--{f.name} {value} is not a probability: give a number from 0 to 1")
            if isinstance(value, int) and not isinstance(value, bool) and value < (0 if f.name in MAY_BE_ZERO else 1):
                raise UserError(f"--{f.name} {value} is too small: give {0 if f.name in MAY_BE_ZERO else 1} or more")


MAY_BE_ZERO = {"lr_warmup_steps", "num_dense_connections", "random_seed", "seed", "num_train_steps"}

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
    free_at_resume=ANYWHERE | {"whole_logits"},
    rules=(resume_dir_says_what_for, numbers_in_range),
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
        "kernels": KernelOptions,
        "sharding": ShardingOptions,
        "compilation": CompileOptions,
        "loss": ReconstructionOptions,
        "encoder states": EncoderCacheOptions,
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
    reference_flags=AUTOENCODER_REFERENCE,
    free_at_evaluation=COMPILED
    | {"whole_logits", "cache_encoder_states", "latent_cache_dir", "fsdp"}
    | {"decoding", "scorer", "eval_texts", "eval_batch_size", "mixed_precision", "enc_dec_model"},
    free_at_resume=COMPILED | {"whole_logits", "cache_encoder_states", "latent_cache_dir", "fsdp", "enc_dec_model"},
    rules=(
        own_files_replace_default_corpus,
        decoders_are_trained_of_a_run,
        decoder_latents_equal,
        autoencoders_generate_nothing,
        only_frozen_states_are_cached,
        only_what_trains_is_sharded,
        numbers_in_range,
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
        "sampling": SamplingOptions,
        "rounding while sampling": RoundingOptions,
        "control by a classifier": ControlOptions,
        "seeing it happen": TrajectoryOptions,
        "optimisation": OptimizerOptions,
        "averaged weights": AverageOptions,
        "training": LoopOptions,
        "kernels": KernelOptions,
        "compilation": CompileOptions,
        "intervals": DiffusionIntervals,
        "evaluation": EvaluationOptions,
        "evaluation of classes": ClassOptions,
        "evaluation of pairs": PairOptions,
        "run": RunOptions,
    },
    defaults=dict(save_dir="saved_diff_models"),
    reference_flags=DIFFUSION_REFERENCE,
    ignored={
        "amp": "use --mixed_precision bf16 or fp16",
        "corruption_prob": "nothing is corrupted in diffusion training",
        "milestone": "checkpoints are found by --resume_dir",
    },
    free_at_evaluation=SAMPLING,
    free_at_resume=COMPILED
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
    },
    rules=(
        resume_dir_says_what_for,
        embeddings_meet,
        preset_fills_in,
        schedules_meet,
        respacing_counts_the_steps,
        classes_are_conditions,
        numbers_in_range,
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
        "kernels": KernelOptions,
        "run": RunOptions,
    },
    defaults=dict(
        save_dir="saved_classifiers", num_train_steps=2000, train_batch_size=64, learning_rate=1e-3, lr_warmup_steps=50
    ),
    free_at_resume=ANYWHERE | {"diffusion_run"},
    rules=(resume_dir_says_what_for, numbers_in_range),
)
