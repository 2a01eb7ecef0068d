"""Latent spaces in training: the data module and the training step of each --latent_space."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn

from dataset_utils.corpus import Corpus
from latent_models.spaces.embeddings import EmbeddingSpace
from pipelines.builders.spaces import SPACES
from pipelines.cli.configs import DiffusionConfig
from pipelines.components import Components
from pipelines.data.batch_sampler import TrainingSampler, ValidationSampler
from pipelines.data.datamodule import DataModule
from pipelines.data.embedding_datamodule import EmbeddingDataModule
from pipelines.data.latent_datamodule import LatentDataModule
from pipelines.data.tokens import TokenSplit
from pipelines.run_context import RunContext
from pipelines.sampling.inputs import PackedSources
from pipelines.steps.diffusion import DiffusionStep, TimestepSampler
from pipelines.steps.distillation import DistillationStep
from pipelines.steps.embedded_texts import EmbeddedTexts
from pipelines.steps.embeddings import EmbeddingLoss, EmbeddingStep, TokenReader
from pipelines.steps.teacher import Teacher, find_teacher, network_of


class Step(Protocol):
    """(step, micro) -> losses (B,), and values (B,) to log by name."""

    num_steps: int  # number of steps of the whole run
    logs_quarters: bool  # whether the values to log hold the loss by quarter of the noise range, loss_q0 to loss_q3

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]: ...


class StepFactory(Protocol):
    """Makes the training step and the validation step of a run."""

    @property
    def network(self) -> nn.Module:
        """The module whose gradients are averaged over ranks."""

    def __call__(self, network: nn.Module, sampler: TrainingSampler | ValidationSampler) -> Step:
        """The step on the rows of a sampler: training rows, or fixed validation rows. network: in DDP or not."""


class LatentSteps:
    """Makes steps on cached latents: diffusion steps, or distillation steps if there is a teacher."""

    def __init__(
        self,
        run: RunContext[DiffusionConfig],
        components: Components,
        data: DataModule,
        timestep_sampler: TimestepSampler,
        teacher: Teacher | None = None,
    ) -> None:
        self.run, self.process, self.timestep_sampler, self.teacher = run, components.process, timestep_sampler, teacher
        self.data, self.network = cast(LatentDataModule, data), network_of(components)

    def __call__(self, network: nn.Module, sampler: TrainingSampler | ValidationSampler) -> Step:
        settings, training = self.run.settings, isinstance(sampler, TrainingSampler)
        latents = self.data.latents["train" if training else "valid"]
        common = (network, latents, self.process, sampler, settings.config.loop.num_train_steps)
        if self.teacher is None:
            timestep_sampler = self.timestep_sampler if training else None
            weights = self.process.hybrid_weights(settings.config.denoiser.learned_variance)
            return DiffusionStep(*common, settings.config.denoiser.self_condition, timestep_sampler, weights)
        return DistillationStep(
            *common,
            self.teacher,
            settings.config.distillation.distill_steps,
            self_condition=settings.config.denoiser.self_condition,
            average_steps=not training,
        )


class EmbeddingSteps:
    """Makes steps on token ids: the embeddings train together with the denoiser."""

    def __init__(
        self,
        run: RunContext[DiffusionConfig],
        components: Components,
        data: DataModule,
        timestep_sampler: TimestepSampler,
        teacher: Teacher | None = None,
    ) -> None:
        self.run, self.data, self.timestep_sampler, self.teacher = run, data, timestep_sampler, teacher
        self.components, self.is_packed = components, components.seq2seq
        self.loss = EmbeddingLoss(
            components.model.denoiser,
            cast(EmbeddingSpace, components.space.space),
            components.process,
            components.model.absorbing,
            run.settings.config.absorbing.denoise_rate if run.settings.config.absorbing.denoise else 0.0,
            run.settings.config.denoiser.learned_variance,
        )

    def __call__(self, network: nn.Module, sampler: TrainingSampler | ValidationSampler) -> Step:
        settings, training = self.run.settings, isinstance(sampler, TrainingSampler)
        tokens = self.data.tokens["train" if training else "valid"]
        if self.teacher is not None:
            return self._distillation(network, sampler, tokens, self.teacher)
        return EmbeddingStep(
            network,
            self.loss,
            tokens,
            sampler,
            settings.config.loop.num_train_steps,
            settings.config.embedding_loss,
            device=self.run.device,
            self_condition=settings.config.denoiser.self_condition,
            class_conditional=settings.config.denoiser.class_conditional,
            reg_rate=settings.config.absorbing.reg_rate,
            timestep_sampler=self.timestep_sampler if training else None,
            max_prefix_fraction=self._max_prefix_fraction,
            null_source_prob=self._null_source_prob,
        )

    @property
    def network(self) -> nn.Module:
        """Embeddings train with the denoiser, but not in a distillation."""
        return self.loss if self.teacher is None else self.components.model.denoiser

    @property
    def _max_prefix_fraction(self) -> float | None:
        options = self.run.settings.config.packing
        return options.max_prefix_fraction if options.pretrain_blocks else None

    @property
    def _null_source_prob(self) -> float:
        return self.run.settings.config.process.seq2seq_unconditional_prob if self.is_packed else 0.0

    def _distillation(
        self, network: nn.Module, sampler: TrainingSampler | ValidationSampler, tokens: TokenSplit, teacher: Teacher
    ) -> Step:
        settings, components, device = self.run.settings, self.components, self.run.device
        sources = None
        if self.is_packed:
            trim = settings.config.packing.truncate_sources
            has_null = settings.config.distillation.distill_guidance != 1 and self._null_source_prob > 0
            sources = PackedSources(components.space, device, trim, has_null)
        read = TokenReader(tokens, self.loss.space, device, self._max_prefix_fraction, self._null_source_prob)
        texts = EmbeddedTexts(components.space, read, settings.config.denoiser.class_conditional, sources)
        return DistillationStep(
            network,
            texts,
            components.process,
            sampler,
            settings.config.loop.num_train_steps,
            teacher,
            settings.config.distillation.distill_steps,
            self_condition=settings.config.denoiser.self_condition,
            average_steps=not isinstance(sampler, TrainingSampler),
            read=texts.read,
            absorbing=components.model.absorbing,
        )


class SpaceTraining(NamedTuple):
    """The data module and the training step of a kind of latent space; a value of TRAINING."""

    make_data: Callable[[RunContext[DiffusionConfig], Components, Corpus], DataModule]
    steps: Callable[[RunContext[DiffusionConfig], Components, DataModule, TimestepSampler, Teacher | None], StepFactory]


def _latent_data(run: RunContext[DiffusionConfig], components: Components, corpus: Corpus) -> DataModule:
    teacher_folder = (
        None if run.settings.config.distillation.distill_run is None else find_teacher(run.settings, run.folder)
    )
    linear = getattr(components.model.denoiser, "linear", None)
    return LatentDataModule(run, corpus, components.space, components.context, teacher_folder, linear)


def _embedding_data(run: RunContext[DiffusionConfig], components: Components, corpus: Corpus) -> DataModule:
    return EmbeddingDataModule(run, corpus, components.space, components.seq2seq)


TRAINING: dict[str, SpaceTraining] = {
    "latents": SpaceTraining(_latent_data, LatentSteps),
    "tokens": SpaceTraining(_embedding_data, EmbeddingSteps),
}


def space_training(name: str) -> SpaceTraining:
    """The data module and the training step for a value of --latent_space."""
    return TRAINING[SPACES[name].training]
