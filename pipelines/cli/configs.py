"""The typed configuration of each training program: option groups, and the defaults in which a program differs.

Defaults are those of the published systems (second release where releases differ). Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataset_utils.options import DataOptions, PackingOptions
from diffusion.options import ProcessOptions, SamplingOptions
from evaluation.options import ClassOptions, EvaluationOptions, MauveOptions, PairOptions
from latent_models.autoencoders import AUTOENCODERS
from latent_models.autoencoders.options import (
    AutoencoderOptions,
    LatentAugmentationOptions,
    LatentLossOptions,
    PerceiverOptions,
    ReconstructionOptions,
)
from latent_models.causal.options import (
    CausalModelOptions,
    CausalPromptOptions,
    DecodedLatentOptions,
    DecoderGenerationOptions,
    PromptOptions,
    TextDecoderOptions,
)
from latent_models.generation.options import (
    DecodingOptions,
    GenerationOptions,
    SearchDecodingOptions,
    TokenDecodingOptions,
)
from latent_models.options import (
    BaselineModelOptions,
    CacheOptions,
    ContextOptions,
    EncoderCacheOptions,
    LanguageModelOptions,
    LatentCacheOptions,
    Seq2SeqModelOptions,
)
from latent_models.pretraining.options import PretrainingOptions
from latent_models.spaces.options import EmbeddingOptions, FrozenModelOptions, LatentOptions, SentenceOptions
from latent_models.speculative.options import DraftModelOptions
from latent_models.tokenizers.options import TokenizerOptions
from model import DENOISERS
from model.options import ClassifierOptions, DenoiserOptions, EncoderDenoiserOptions
from pipelines.options import (
    AbsorbingOptions,
    AutoencoderValidationOptions,
    BaselineValidationOptions,
    ClampOptions,
    ClassifierRunOptions,
    ControlOptions,
    DenoiserAugmentationOptions,
    DistillationOptions,
    DraftModelRunOptions,
    EmbeddingLossOptions,
    IntervalOptions,
    JointOptions,
    PretrainingValidationOptions,
    TextDecoderValidationOptions,
    TrajectoryOptions,
)
from utils.cli.settings import group, groups_of_rows
from utils.options import (
    BestCheckpointOptions,
    CompileOptions,
    EMAOptions,
    KernelOptions,
    LoopOptions,
    OptimizerOptions,
    RunOptions,
    ShardingOptions,
    TrackingOptions,
    ValidationLossOptions,
)

INHERITED = {"student": "inherits"}
EMBEDDINGS = {"space": "embeddings", "student": "inherits"}
FREE_AT_EVAL = {"may_change": "eval"}
ALWAYS_FREE = {"may_change": "both"}
# settings of the optimizer of a small language model
SMALL_MODEL: dict[str, Any] = {
    "lr_schedule": "cosine", "lr_warmup_steps": 100, "adam_weight_decay": 0.01, "adam_beta2": 0.98
}  # fmt: skip


@dataclass
class TrainingConfig:
    """Option groups of every training program."""

    data: DataOptions = group(DataOptions, "corpus", flags={"student": "may_differ"})
    optimizer: OptimizerOptions = group(OptimizerOptions, "optimization")
    loop: LoopOptions = group(LoopOptions, "training")
    validation_loss: ValidationLossOptions = group(ValidationLossOptions, "validation losses")
    best: BestCheckpointOptions = group(BestCheckpointOptions, "best checkpoint")
    kernels: KernelOptions = group(KernelOptions, "kernels", flags=ALWAYS_FREE)
    run: RunOptions = group(RunOptions, "run")
    tracking: TrackingOptions = group(TrackingOptions, "tracking")


@dataclass
class PretrainConfig(TrainingConfig):
    optimizer: OptimizerOptions = group(OptimizerOptions, "optimization", learning_rate=1e-3, **SMALL_MODEL)
    loop: LoopOptions = group(LoopOptions, "training", num_train_steps=2000, train_batch_size=64)
    run: RunOptions = group(RunOptions, "run", save_dir="saved_language_models")
    model: PretrainingOptions = group(PretrainingOptions, "model")
    loss: ReconstructionOptions = group(ReconstructionOptions, "loss")
    validation: PretrainingValidationOptions = group(PretrainingValidationOptions, "validation")


@dataclass
class TextModelConfig(TrainingConfig):
    """Option groups that stages 1 and 2 share: a language model that generates texts, and their evaluation."""

    language_model: LanguageModelOptions = group(LanguageModelOptions, "language model", flags=INHERITED)
    generation: GenerationOptions = group(GenerationOptions, "generation of texts from latents", flags=ALWAYS_FREE)
    decoding: DecodingOptions = group(DecodingOptions, "settings of --decoding", flags=ALWAYS_FREE)
    compilation: CompileOptions = group(CompileOptions, "compilation")
    evaluation: EvaluationOptions = group(EvaluationOptions, "evaluation")


@groups_of_rows({name: row.options for name, row in AUTOENCODERS.items()}, "autoencoder")
@dataclass
class AutoencoderConfig(TextModelConfig):
    data: DataOptions = group(DataOptions, "corpus", dataset_name="roc")
    optimizer: OptimizerOptions = group(
        OptimizerOptions,
        "optimization",
        learning_rate=5e-5,
        lr_schedule="linear",
        lr_warmup_steps=500,
        adam_weight_decay=1e-2,
    )
    loop: LoopOptions = group(LoopOptions, "training", num_train_steps=50000, train_batch_size=32, random_seed=43)
    run: RunOptions = group(RunOptions, "run", save_dir="saved_latent_models")
    autoencoder: AutoencoderOptions = group(AutoencoderOptions, "autoencoder")
    perceiver: PerceiverOptions = group(PerceiverOptions, "Perceiver autoencoder")
    latent_losses: LatentLossOptions = group(LatentLossOptions, "further losses of the autoencoder")
    latent_augmentation: LatentAugmentationOptions = group(
        LatentAugmentationOptions, "augmentation in the training of the autoencoder"
    )
    sharding: ShardingOptions = group(ShardingOptions, "sharding")
    loss: ReconstructionOptions = group(ReconstructionOptions, "loss")
    encoder_cache: EncoderCacheOptions = group(EncoderCacheOptions, "cache of encoder states")
    augmentation: DenoiserAugmentationOptions = group(DenoiserAugmentationOptions, "a decoder for a denoiser")
    validation: AutoencoderValidationOptions = group(AutoencoderValidationOptions, "validation")
    mauve: MauveOptions = group(MauveOptions, "evaluation by embeddings", flags=ALWAYS_FREE)


@groups_of_rows({name: row.options for name, row in DENOISERS.items()}, "denoiser", flags=INHERITED)
@dataclass
class DiffusionConfig(TextModelConfig):
    run: RunOptions = group(RunOptions, "run", save_dir="saved_diff_models")
    latents: LatentOptions = group(LatentOptions, "latents", flags=INHERITED)
    frozen_models: FrozenModelOptions = group(FrozenModelOptions, "models of a text decoder")
    cache: LatentCacheOptions = group(LatentCacheOptions, "cache of encoded texts")
    context: ContextOptions = group(ContextOptions, "source texts", flags=INHERITED)
    tokenizer: TokenizerOptions = group(TokenizerOptions, "tokenizer of embeddings", flags=EMBEDDINGS)
    embeddings: EmbeddingOptions = group(EmbeddingOptions, "embeddings", flags=EMBEDDINGS)
    embedding_loss: EmbeddingLossOptions = group(EmbeddingLossOptions, "losses of embeddings", flags=EMBEDDINGS)
    absorbing: AbsorbingOptions = group(AbsorbingOptions, "absorbing state", flags=EMBEDDINGS)
    packing: PackingOptions = group(PackingOptions, "pairs and blocks of embeddings", flags=EMBEDDINGS)
    denoiser: DenoiserOptions = group(DenoiserOptions, "denoiser", flags=INHERITED)
    encoder_denoiser: EncoderDenoiserOptions = group(
        EncoderDenoiserOptions, "a Hugging Face encoder as denoiser", flags=INHERITED
    )
    process: ProcessOptions = group(ProcessOptions, "diffusion process", flags=INHERITED)
    distillation: DistillationOptions = group(DistillationOptions, "distillation to few steps")
    joint: JointOptions = group(JointOptions, "joint training of autoencoder and denoiser")
    sampling: SamplingOptions = group(SamplingOptions, "sampling", flags=FREE_AT_EVAL)
    clamp: ClampOptions = group(
        ClampOptions, "clamping to token embeddings", flags={"space": "embeddings", **FREE_AT_EVAL}
    )
    control: ControlOptions = group(ControlOptions, "control by a classifier", flags=FREE_AT_EVAL)
    trajectory: TrajectoryOptions = group(TrajectoryOptions, "trajectories", flags=FREE_AT_EVAL)
    ema: EMAOptions = group(EMAOptions, "averaged weights")
    intervals: IntervalOptions = group(IntervalOptions, "intervals")
    mauve: MauveOptions = group(MauveOptions, "evaluation by embeddings", flags=FREE_AT_EVAL)
    classes: ClassOptions = group(ClassOptions, "evaluation of classes", flags=FREE_AT_EVAL)
    pairs: PairOptions = group(PairOptions, "evaluation of pairs", flags=FREE_AT_EVAL)


@dataclass
class ClassifierConfig(TrainingConfig):
    optimizer: OptimizerOptions = group(OptimizerOptions, "optimization", learning_rate=1e-3, lr_warmup_steps=50)
    loop: LoopOptions = group(LoopOptions, "training", num_train_steps=2000, train_batch_size=64)
    run: RunOptions = group(RunOptions, "run", save_dir="saved_classifiers")
    task: ClassifierRunOptions = group(ClassifierRunOptions, "task")
    cache: LatentCacheOptions = group(LatentCacheOptions, "cache of encoded texts")
    classifier: ClassifierOptions = group(ClassifierOptions, "classifier")
    validation_loss: ValidationLossOptions = group(ValidationLossOptions, "validation losses", val_loss_examples=1024)


@dataclass
class DraftModelConfig(TrainingConfig):
    optimizer: OptimizerOptions = group(
        OptimizerOptions, "optimization", learning_rate=2e-3, lr_warmup_steps=50, adam_weight_decay=0.01
    )
    loop: LoopOptions = group(LoopOptions, "training", num_train_steps=1000, train_batch_size=64)
    run: RunOptions = group(RunOptions, "run", save_dir="saved_drafters")
    task: DraftModelRunOptions = group(DraftModelRunOptions, "task")
    cache: LatentCacheOptions = group(LatentCacheOptions, "cache of encoded texts")
    draft_model: DraftModelOptions = group(DraftModelOptions, "draft model")


@dataclass
class BaselineConfig(TrainingConfig):
    """A language model without latents: the learning rate of a pretrained model is set by a rule."""

    optimizer: OptimizerOptions = group(OptimizerOptions, "optimization", learning_rate=1e-3, **SMALL_MODEL)
    loop: LoopOptions = group(LoopOptions, "training", num_train_steps=5000, train_batch_size=64)
    validation_loss: ValidationLossOptions = group(ValidationLossOptions, "validation losses", val_loss_examples=1024)
    model: BaselineModelOptions = group(BaselineModelOptions, "model")
    prompts: PromptOptions = group(PromptOptions, "prompts")
    sampling: TokenDecodingOptions = group(TokenDecodingOptions, "sampling", flags=FREE_AT_EVAL)
    validation: BaselineValidationOptions = group(BaselineValidationOptions, "validation")
    evaluation: EvaluationOptions = group(EvaluationOptions, "evaluation", decoding="nucleus", eval_batch_size=250)
    mauve: MauveOptions = group(MauveOptions, "evaluation by embeddings", flags=FREE_AT_EVAL)
    classes: ClassOptions = group(ClassOptions, "evaluation of classes", flags=FREE_AT_EVAL)
    pairs: PairOptions = group(PairOptions, "evaluation of pairs", flags=FREE_AT_EVAL)


@dataclass
class CausalLMConfig(BaselineConfig):
    run: RunOptions = group(RunOptions, "run", save_dir="saved_causal_models")
    model: CausalModelOptions = group(CausalModelOptions, "model")
    prompts: CausalPromptOptions = group(CausalPromptOptions, "prompts")
    sampling: TokenDecodingOptions = group(
        TokenDecodingOptions, "sampling", flags=FREE_AT_EVAL, top_p=0.95, temperature=1.0
    )


@dataclass
class Seq2SeqConfig(BaselineConfig):
    """Nothing but the flags says how texts are generated: every setting has a value here."""

    # at 1e-3 a model from scratch learned the language of CommonGen, and not to read its sources
    optimizer: OptimizerOptions = group(OptimizerOptions, "optimization", learning_rate=3e-4, **SMALL_MODEL)
    run: RunOptions = group(RunOptions, "run", save_dir="saved_seq2seq_models")
    model: Seq2SeqModelOptions = group(Seq2SeqModelOptions, "model")
    sampling: SearchDecodingOptions = group(
        SearchDecodingOptions,
        "sampling",
        flags=FREE_AT_EVAL,
        top_p=0.95,
        top_k=0,
        temperature=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        num_beams=4,
        length_penalty=1.0,
    )


@dataclass
class TextDecoderConfig(TrainingConfig):
    """Stage 1 with frozen encodings: a language model learns to decode them."""

    optimizer: OptimizerOptions = group(
        OptimizerOptions,
        "optimization",
        learning_rate=1e-3,
        lr_schedule="cosine",
        lr_warmup_steps=50,
        adam_weight_decay=0.01,
        adam_beta2=0.98,
    )
    loop: LoopOptions = group(LoopOptions, "training", num_train_steps=2000, train_batch_size=32)
    validation_loss: ValidationLossOptions = group(ValidationLossOptions, "validation losses", val_loss_examples=256)
    run: RunOptions = group(RunOptions, "run", save_dir="saved_text_decoders")
    latents: DecodedLatentOptions = group(DecodedLatentOptions, "latents")
    cache: CacheOptions = group(CacheOptions, "cache of encoded texts")
    sentence: SentenceOptions = group(SentenceOptions, "frozen embeddings")
    language_model: LanguageModelOptions = group(LanguageModelOptions, "language model")
    decoder: TextDecoderOptions = group(TextDecoderOptions, "decoder")
    augmentation: DenoiserAugmentationOptions = group(DenoiserAugmentationOptions, "a decoder for a denoiser")
    generation: DecoderGenerationOptions = group(
        DecoderGenerationOptions, "generation of texts from latents", flags=ALWAYS_FREE
    )
    decoding: DecodingOptions = group(DecodingOptions, "settings of --decoding", flags=ALWAYS_FREE)
    validation: TextDecoderValidationOptions = group(TextDecoderValidationOptions, "validation")
    evaluation: EvaluationOptions = group(EvaluationOptions, "evaluation", decoding="greedy", eval_batch_size=100)
    mauve: MauveOptions = group(MauveOptions, "evaluation by embeddings", flags=ALWAYS_FREE)
