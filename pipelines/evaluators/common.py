"""Parts that all evaluations of diffusion runs share: models that score texts, reference texts, and the protocol.

evaluator.Evaluator runs a list of Parts per seed: samples (unconditional, classes, pairs) and real texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from dataset_utils.corpus import Corpus
from diffusion.samplers import nfe
from evaluation import classifiers, encoders, local_classifier, local_lm, scorers
from evaluation.classifiers import Classifier
from evaluation.distributed import on_rank0
from evaluation.encoders import SentenceEncoder
from evaluation.memorization import NgramIndex
from evaluation.scorers import Scorer
from latent_models.generation.decoding import given_settings, strategies
from pipelines.builders.models import adapted_copy
from pipelines.builders.text_decoders import decoded_space_of
from pipelines.cli.configs import DiffusionConfig
from pipelines.evaluators.spelling import Spelling, respelled, tokenizer_of
from pipelines.options import ClampOptions, ControlOptions
from pipelines.run_context import RunContext
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.language_model import LanguageModelGenerator
from pipelines.sampling.sampler_call import ConditionFn
from utils.seeding import seeded_generator
from utils.shared import make_folder_on_main
from utils.terminal import single_line

T = TypeVar("T")
Metrics = dict[str, Any]  # numbers by key; "protocol": everything that they depend on
SPLIT_KEYS = {"train": "train", "valid": "val", "test": "test"}  # splits in the published keys
EXTRA_OPTIONS = (ClampOptions, ControlOptions)  # in the protocol if they differ from their defaults


class EvaluationContext:
    """One run under evaluation: its generator, its corpus, and the models that score texts, each loaded when needed."""

    def __init__(
        self, run: RunContext[DiffusionConfig], generator: TextGenerator | LanguageModelGenerator, corpus: Corpus
    ) -> None:
        self.run, self._corpus = run, corpus
        self.generator: Any = generator
        self.config = run.settings.config
        self.options, self.classes = self.config.evaluation, self.config.classes
        self.strategies = list(strategies(self.options.decoding))

    # ---- conditions: by the names of flags, since programs have different ones --------------------------------------

    @property
    def class_conditional(self) -> bool:
        return bool(self.run.settings.get("class_conditional"))

    @property
    def null_class_prob(self) -> float:
        """How often a class was dropped in training; 0 for a program that never drops it."""
        return self.run.settings.values.get("class_unconditional_prob", 0.0)

    @property
    def guidance(self) -> float:
        return self.run.settings.values.get("cls_free_guidance", 1.0)

    # ---- texts -------------------------------------------------------------------------------------------------------

    @cached_property
    def _respelled(self) -> tuple[Corpus, Spelling]:
        generator = self.generator
        has_own = isinstance(generator, LanguageModelGenerator)
        tokenizer = generator.tokenizer if has_own else tokenizer_of(generator.space.space)
        corpus, spelling = respelled(self._corpus, tokenizer)
        if self.run.is_eval:  # training has printed it with the statistics of the corpus
            self.run.log("\n".join(spelling.lines()))
        return corpus, spelling

    @property
    def corpus(self) -> Corpus:
        """The corpus in the spelling of the run's tokenizer, which samples have: all texts that are compared."""
        return self._respelled[0]

    @property
    def spelling(self) -> Spelling:
        return self._respelled[1]

    # ---- models that score texts -----------------------------------------------------------------------------------

    @property
    def has_scorer(self) -> bool:
        """Whether a language model scores the samples: while training not without training_scores."""
        return self.run.is_eval or bool(self.run.settings.values.get("training_scores", True))

    @cached_property
    def scorer(self) -> Scorer | None:
        """The language model of --scorer, or a small one trained on the corpus and saved in the run folder.

        A trained run is scored by SmolLM2 without --scorer, if it has been unpacked on this machine. None
        where has_scorer is False.
        """
        if not self.has_scorer:
            return None
        source = scorers.source_of(self.options.scorer, or_default=self.run.is_eval)
        if source and source != self.options.scorer:
            self.run.log(f"scorer: {source}, unpacked on this machine (--scorer names another)")
        source = source or self._kept("scorer", local_lm.INFO_FILE)
        texts, folder = None if source else self.corpus.train.texts, self._trained_models / "scorer"
        if texts is not None:
            train = partial(local_lm.train_local, texts, folder, device=self.run.device)
            make_folder_on_main(self.run.dist, folder, train)
        scorer = scorers.load(source, texts=texts, folder=folder, device=self.run.device)
        scorer.cache_dir = self.cache_dir
        return scorer

    @cached_property
    def encoder(self) -> SentenceEncoder | None:
        """The encoder of --mauve_encoder; None without the flag."""
        source = self.config.mauve.mauve_encoder
        if source is None:
            return None
        encoder = encoders.load(source, device=self.run.device)
        encoder.cache_dir = self.cache_dir
        return encoder

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier of --classifier, or a small one trained on the corpus and saved in the run folder."""
        train, valid, folder = self.corpus.train, self.corpus.valid, self._trained_models / "classifier"
        source = self.classes.classifier or self._kept("classifier", local_classifier.INFO_FILE)
        load = partial(
            classifiers.load,
            source,
            self.corpus.class_names,
            texts=train.texts,
            labels=train.labels,
            held_out=(valid.texts, valid.labels or []),
            folder=folder,
            device=self.run.device,
        )
        if not source:
            make_folder_on_main(self.run.dist, folder, load)
        return load()

    @property
    def _trained_models(self) -> Path:
        """The folder of a scorer and a classifier that are trained here: those of a run know its corpus alone."""
        folder = self.run.folder
        return folder / "evaluation" / "another_corpus" if self._is_another_corpus else folder

    @property
    def _is_another_corpus(self) -> bool:
        return self.run.corpus_record is not None and self.run.corpus_record.is_another

    def _kept(self, name: str, info_file: str) -> str | None:
        """On another corpus than the run's: the run's own model, which is not replaced; None if it has none."""
        folder = Path(self.config.run.resume_dir or self.run.folder) / name
        if not self._is_another_corpus or not (folder / info_file).is_file():
            return None
        self.run.log(f"note: {name}: the run's own, {folder}, which was trained on the run's corpus")
        return str(folder)

    @cached_property
    def training_ngrams(self) -> NgramIndex:
        """The n-grams of the training texts, for the memorization metric."""
        return NgramIndex(self.corpus.train.texts, self.cache_dir)

    @property
    def cache_dir(self) -> Path:
        """Disk cache of results for real texts, shared by all evaluations that write to this folder."""
        return self.run.folder / "evaluation" / "references"

    def load_models(self) -> None:
        """Load the models that the flags name. Called before training, so that a missing model raises at once."""
        if self.options.scorer:
            _ = self.scorer
        _ = self.encoder
        if self.classes.classifier and self.class_conditional:
            _ = self.classifier

    def on_rank0(self, fn: Callable[[], T]) -> T:
        """Call fn on rank 0, while the other ranks share the scorer's forward passes; every rank gets its result."""
        return on_rank0(self.run.dist, self.scorer, fn)

    # ---- reference texts -------------------------------------------------------------------------------------------

    def num_samples(self, split: str) -> int:
        """Return --num_samples, or the size of the split or of the training set if that is smaller."""
        most, asked = self.available(split), self.options.num_samples
        if asked > most and "num_samples" in self.run.settings.explicit:
            self.run.log_once(
                f"note: --num_samples {asked} is cut to {most}: the samples are compared with as many held-out and as "
                f"many training texts, and the {split} split holds {len(self.corpus.splits[split])}, the training "
                f"split {len(self.corpus.train)}",
                f"num_samples of {split}",
            )
        return min(asked, most)

    def available(self, split: str) -> int:
        """Return the largest number of samples for which there are as many references."""
        return min(len(self.corpus.splits[split]), len(self.corpus.train))

    def shuffled_rows(self, split: str, seed: int) -> list[int]:
        """Return all rows of a split in an order that depends on the seed."""
        generator = seeded_generator(seed, "references", split)
        return torch.randperm(len(self.corpus.splits[split]), generator=generator).tolist()

    def shuffled_texts(self, split: str, seed: int) -> list[str]:
        texts = self.corpus.splits[split].texts
        return [texts[i] for i in self.shuffled_rows(split, seed)]

    # ---- protocol --------------------------------------------------------------------------------------------------

    def sampling_metadata(self) -> dict[str, Any]:
        """Return every flag that changes samples, the step of the weights, and the number of network calls per text."""
        record = self.run.corpus_record
        of_run = self.run.weights_metadata() | ({} if record is None else record.metadata())
        if isinstance(self.generator, LanguageModelGenerator):
            return {**self.generator.sampling_metadata(), **of_run, **self.spelling.metadata()}
        settings, process, sampling = self.run.settings, self.config.process, self.config.sampling
        blocks, decoded = self.generator.block_size, decoded_space_of(self.generator.space)
        guided = 2 if sampling.cls_free_guidance != 1 else 1
        adapted = None if settings.mode is None else adapted_copy(settings, settings.path("resume_dir"))
        metadata = {name: value for name, value in asdict(sampling).items() if name != "preset"}  # it set other flags
        values, flags = settings.values, settings.program.flags
        extra = [f.name for group in EXTRA_OPTIONS for f in fields(group) if values[f.name] != flags[f.name].default]
        return {
            **metadata,
            **of_run,
            **{name: values[name] for name in extra},
            **({} if decoded is None else {"decoder_noise": decoded.noise}),
            **({} if adapted is None else {"decoder": adapted.name}),
            **given_settings(self.config.decoding),
            "sampling_schedule": process.beta_schedule or sampling.sampling_schedule or process.train_schedule,
            "network_calls": guided * nfe(sampling.sampler, sampling.sampling_timesteps),
            "texts_together": self.generator.batch_size,
            **({} if blocks == self.generator.batch_size else {"texts_drawn_together": blocks}),
            "max_seq_len": self.config.language_model.max_seq_len,
            **self.spelling.metadata(),
        }


@dataclass
class FirstInputs:
    """Inputs of the first texts of a seed."""

    conditions: ConditionFn | None = None
    sources: Sequence[str] = ()


@dataclass
class PartResult:
    """Results of one part of an evaluation for one seed."""

    metrics: Metrics
    # (prefix of file names, decoding strategy) -> texts, or records of pairs
    samples: dict[tuple[str, str], list[Any]] = field(default_factory=dict)


class Part(ABC):
    """One part of an evaluation: samples, or real texts, and their metrics."""

    def __init__(self, context: EvaluationContext) -> None:
        self.context = context

    @abstractmethod
    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        """Compute the metrics of one seed against a split (valid, test). Every rank calls it."""

    def first_inputs(self, split: str, seed: int, n: int) -> FirstInputs | None:
        """Inputs of the first n texts that this part samples for a seed; None if it samples none."""
        return None

    def load_models(self) -> None:  # noqa: B027 most parts need no further models
        """Load the models that only this part needs and the flags name."""

    def write_extras(self, split: str) -> None:  # noqa: B027 most parts write none
        """Write files besides eval-{split}.json, on rank 0 after the last seed."""


def to_lines(texts: Sequence[str]) -> str:
    """Format one text per line, without control characters."""
    return "".join(single_line(text) + "\n" for text in texts)


def numbers_of(metrics: Metrics) -> dict[str, float]:
    """Return the entries that are numbers, which trackers accept."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}
