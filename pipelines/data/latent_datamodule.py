"""The spaces around a frozen language model in diffusion training: texts are encoded once, then read from a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from dataset_utils.corpus import Corpus
from latent_models.language_models import LanguageModel
from latent_models.normalisation import count_lengths, estimate
from latent_models.options import LatentOptions
from latent_models.pair_lengths import count_pairs
from latent_models.spaces import LatentSpace
from pipelines.building.drafters import drafter_folder, keep_drafter
from pipelines.building.models import AUTOENCODER_COPY, DiffusionModel, keep_autoencoder, relative
from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.cached_latents import Encoded, LatentSource, encoded_split, read_sources
from pipelines.data.context_encoder import context_facts
from pipelines.data.datamodule import Step
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.job import Job
from pipelines.parts import Parts
from pipelines.training.diffusion_step import DiffusionStep
from pipelines.training.distillation_step import DistillationStep
from pipelines.training.teacher import Teacher, find_teacher, load_teacher, network_of, teacher_facts
from pipelines.training.training_times import TrainingTimes

MEASURED_PAIRS = 100_000


class LatentSupply:
    """See Supply."""

    def __init__(self, job: Job, parts: Parts, corpus: Corpus) -> None:
        self.job, self.parts, self.times = job, parts, TrainingTimes(parts.process, job.ranks)
        self.language_model = cast(LanguageModel, parts.space.space.language_model)
        self.tokenizer = self.language_model.tokenizer
        limit = job.settings.max_seq_len
        self.data = tokenize_split(corpus.train, self.language_model, limit)
        self.held_out = tokenize_split(corpus.valid, self.language_model, limit)
        self.sources: dict[str, LatentSource] = {}
        self.teacher: Teacher | None = None
        if job.settings.distill_run is not None:
            self.teacher = load_teacher(job.settings, job.folder, parts.process.grid, job.device)

    def keep(self, folder: Path) -> None:
        settings = self.job.settings
        if settings.latent_model_path:
            source = Path(settings.latent_model_path)
            keep_autoencoder(source, folder, self.language_model.name)
            drafter, used = drafter_folder(settings, source), getattr(self.parts.space.space, "drafter", None)
            if drafter is not None and (used is not None or settings.drafting == "off"):  # else it is of another space
                keep_drafter(drafter, folder / AUTOENCODER_COPY)

    def facts(self, folder: Path) -> dict[str, Any]:
        model = self.language_model
        return {
            "enc_dec_model_relative": relative(model.name, folder),
            "language_model_fingerprint": model.fingerprint(),
            "language": model.language,
            **teacher_facts(self.job.settings, folder),
            **({} if self.parts.context is None else context_facts(self.parts.context, folder)),
        }

    def open(self, *, measure: bool) -> None:
        self.sources = {
            "train": make_source(self.job, self.parts, self.data, "train"),
            "valid": make_source(self.job, self.parts, self.held_out, "valid"),
        }
        if measure:
            measure_latents(self.job, self.parts.model, self.sources["train"])
            self._measure_pairs()

    def _measure_pairs(self) -> None:
        """How long the texts of sources of each length are; of a large corpus every n-th pair says it."""
        counts, context = self.parts.model.statistics.pair_counts, self.parts.context
        if counts is not None and context is not None:
            assert self.data.split.sources is not None, "a run with sources was built on a corpus without them"
            every = max(1, len(self.data) // MEASURED_PAIRS)
            read = context.tokens(self.data.split.sources[::every]).lengths
            counts.copy_(count_pairs(read, self.data.lengths[::every], counts.shape))

    def network(self) -> nn.Module:
        return network_of(self.parts)

    def step(self, network: nn.Module, split: str) -> Step:
        settings, source, training = self.job.settings, self.sources[split], split == "train"
        plan = self.job.plan() if training else self.job.held_out_plan(len(source))
        common = (network, source, self.parts.process, plan, settings.num_train_steps)
        if self.teacher is None:
            return DiffusionStep(*common, settings.self_condition, self.times if training else None)
        return DistillationStep(
            *common,
            self.teacher,
            settings.distill_steps,
            self_condition=settings.self_condition,
            all_jumps=not training,
        )


def make_source(job: Job, parts: Parts, data: TokenSplit, split: str) -> LatentSource:
    """Latents and conditions of a split: cached on disk unless --no_latent_cache asks for the models at each step."""
    options = job.settings.build(LatentOptions)
    folder = None if options.no_latent_cache else cache_folder(job, options)
    context, sources = parts.context, None

    def encoded(space: LatentSpace, tokens: TokenSplit, kept: bool, title: str, what: str) -> Encoded:
        where = folder if kept else None
        return encoded_split(space, tokens, where, title, f"{what} of the {split} split", job.ranks, on_device)

    on_device = options.latents_on_device
    texts = encoded(parts.space.space, data, not parts.space.trainable, split, "latents")
    if context is not None:
        assert data.split.sources is not None, "a run with sources was built on a corpus without them"
        tokens = context.tokens(data.split.sources)
        states = encoded(context.states, tokens, not context.trained, f"{split} sources", "source states")
        sources = read_sources(context, tokens, states)
    return LatentSource(parts.space, texts, job.settings.class_conditional, sources)


def cache_folder(job: Job, options: LatentOptions) -> Path:
    """Where encoded corpora are kept: of a student beside its teacher, if that one has any."""
    if options.latent_cache_dir is None and job.settings.distill_run is not None:
        known = find_teacher(job.settings, job.folder) / "latent_cache"
        if known.is_dir():
            return known
    return Path(options.latent_cache_dir or job.folder / "latent_cache")


def measure_latents(job: Job, model: DiffusionModel, training: LatentSource) -> None:
    """Fill the statistics that a run keeps: centre and scale where asked for, and the lengths of training texts."""
    settings, statistics = job.settings, model.statistics
    if training.space.masked:
        statistics.length_counts.copy_(count_lengths(training.data.lengths, training.space.length))
    if settings.normalize_latent:
        # Of whole batches, however many ranks and micro-batches share them: every rank finds the same statistics.
        plan = BatchPlan(settings.random_seed, job.plan().total)
        batches = (training.raw(plan.rows(step, 0, len(training))) for step in range(settings.normalize_batches))
        mean, scale = estimate(batches)
        statistics.mean.copy_(mean)
        statistics.scale.copy_(scale)
