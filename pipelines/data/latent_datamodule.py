"""Data module of the spaces around a frozen language model: texts are encoded once, then read from a cache on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dataset_utils.corpus import Corpus
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import copy_autoencoder
from latent_models.spaces.length_prior import count_pairs
from latent_models.spaces.normalization import NormalizedSpace, count_lengths, estimate_mean_std
from latent_models.speculative.draft_model import copy_draft_model, has_draft_model
from model.linear_denoiser import LinearDenoiser
from pipelines.builders.draft_models import DRAFT_MODEL_COPY, draft_model_folder
from pipelines.builders.models import AUTOENCODER_COPY, autoencoder_folder
from pipelines.builders.text_decoders import decoded_space_of, save_text_decoder
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.cached_latents import (
    ConditionalLatents,
    EncodedSplit,
    ScaledSplit,
    different_sources,
    encode_or_load,
    make_source_reader,
)
from pipelines.data.context_encoder import ContextEncoder, context_metadata
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.run_context import RunContext, dataset_label
from utils.cache_folder import encoded_folder
from utils.pretrained import relative_path

COUNTED_AT_ONCE = 4096  # texts whose latents are read together to count them
MAX_COVARIANCE_TEXTS = 50_000  # texts from which --linear_denoiser estimates the covariance of latents
MAX_COUNTED_PAIRS = 100_000  # in a larger corpus every n-th pair is counted


class LatentDataModule:
    """See DataModule. latents: by split, ready after setup."""

    def __init__(
        self,
        run: RunContext[DiffusionConfig],
        corpus: Corpus,
        space: NormalizedSpace,
        context: ContextEncoder | None = None,
        teacher_folder: Path | None = None,
        linear: LinearDenoiser | None = None,
    ) -> None:
        """context: the encoder of the sources; None without sources. teacher_folder: folder of the distilled run.

        linear: gets its statistics in setup (--linear_denoiser).
        """
        self.linear = linear
        self.run, self.space, self.context, self.teacher_folder = run, space, context, teacher_folder
        self.language_model = cast(LanguageModel, space.space.language_model)
        decoded = decoded_space_of(space)
        self.tokenizer = self.language_model.tokenizer if decoded is None else decoded.writer_tokenizer
        limit = run.settings.config.language_model.max_seq_len
        self.tokens = {
            "train": tokenize_split(corpus.train, self.language_model, limit),
            "valid": tokenize_split(corpus.valid, self.language_model, limit),
        }
        self.latents: dict[str, ConditionalLatents] = {}

    def save_artifacts(self, folder: Path) -> None:
        settings = self.run.settings
        decoded = decoded_space_of(self.space)
        if decoded is not None:
            save_text_decoder(decoded, autoencoder_folder(settings, folder), folder)
        elif settings.config.latents.latent_model_path:
            source = Path(settings.config.latents.latent_model_path)
            copy_autoencoder(source, folder / AUTOENCODER_COPY, self.language_model.name)
            drafter, used = draft_model_folder(settings, source), has_draft_model(self.space.space)
            if self.space.learned_with_denoiser:
                return  # --joint_run changes the latents for which it drafts
            # with drafting on, an unused draft model belongs to another space
            if drafter is not None and (used or settings.config.generation.speculative == "off"):
                copy_draft_model(drafter, folder / AUTOENCODER_COPY / DRAFT_MODEL_COPY)

    def metadata(self, folder: Path) -> dict[str, Any]:
        model = self.language_model
        of_context = {} if self.context is None else context_metadata(self.context, folder)
        if decoded_space_of(self.space) is not None:  # its models are in the record of its own folder
            return {"text_decoder": True, "language": model.language, **of_context}
        return {
            "enc_dec_model_relative": relative_path(model.name, folder),
            "language_model_fingerprint": model.fingerprint(),
            "language": model.language,
            **of_context,
        }

    def setup(self, *, estimate_stats: bool) -> None:
        cache = corpus_cache(self.run, self.teacher_folder)
        self.latents = {
            split: make_conditional_latents(self.run, self.space, self.context, tokens, split, cache)
            for split, tokens in self.tokens.items()
        }
        if estimate_stats:
            self._estimate_statistics()
            if self.linear is not None:
                self.linear.estimate(self._normalized_latents)
            self._count_pairs()

    def _estimate_statistics(self) -> None:
        """Estimate mean and scale of the latents if --normalize_latent is set, and record the lengths of the texts."""
        run, statistics, latents = self.run, self.space.statistics, self.latents["train"]
        if self.space.variable_length:
            statistics.length_counts.copy_(count_lengths(self._positions(), self.space.length))
        if run.settings.config.latents.normalize_latent:
            # Global batches, for any number of ranks and micro-batches: every rank computes the same statistics.
            sampler = TrainingSampler(run.settings.config.loop.random_seed, run.batch_sampler().global_batch_size)
            steps = range(run.settings.config.latents.normalize_batches)
            mean, scale = estimate_mean_std(latents.unnormalized(sampler.rows(step, 0, len(latents))) for step in steps)
            statistics.mean.copy_(mean)
            statistics.scale.copy_(scale)

    def _normalized_latents(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents and masks of at most MAX_COVARIANCE_TEXTS training texts, evenly spread."""
        latents = self.latents["train"]
        every = -(-len(latents) // MAX_COVARIANCE_TEXTS)
        for rows in torch.arange(0, len(latents), every).split(COUNTED_AT_ONCE):
            batch = self.space.normalize(latents.unnormalized(rows))
            yield batch.x0, batch.mask

    def _count_pairs(self) -> None:
        """How many pairs have each length of source and of text."""
        counts, tokens = self.space.statistics.pair_counts, self.tokens["train"]
        if counts is not None and self.context is not None:
            assert tokens.split.sources is not None, "a run with sources was built on a corpus without them"
            every = max(1, len(tokens) // MAX_COUNTED_PAIRS)
            source_lengths = self.context.tokens(tokens.split.sources[::every]).lengths
            counts.copy_(count_pairs(source_lengths, self._positions()[::every], counts.shape))

    def _positions(self) -> Tensor:
        """(n,) latents of each training text: as many as tokens, or what their masks say."""
        latents = self.latents["train"]
        if self.space.space.one_latent_per_token:
            return latents.tokens.lengths
        rows = torch.arange(len(latents)).split(COUNTED_AT_ONCE)
        return torch.cat([latents.unnormalized(part).mask.sum(1).cpu() for part in rows])


def make_conditional_latents(
    run: RunContext[DiffusionConfig],
    space: NormalizedSpace,
    context: ContextEncoder | None,
    tokens: TokenSplit,
    split: str,
    cache: Path | None,
) -> ConditionalLatents:
    """Latents and conditions of a split. cache: folder of the encoded corpora; None: encode each batch anew."""
    sources, options = None, run.settings.config.cache

    def encoded(space: LatentSpace, tokens: TokenSplit, frozen: bool, title: str, what: str) -> EncodedSplit:
        return encode_or_load(
            space,
            tokens,
            cache if frozen else None,
            title,
            f"{what} of the {split} split",
            run.dist,
            run.settings.config.latents.latents_on_device,
            options.latent_cache_dtype,
            max_bytes=1e9 * options.max_cache_gb,
            corpus=dataset_label(run.settings),
        )

    decoded = decoded_space_of(space)
    if decoded is None:
        texts = encoded(space.space, tokens, not space.learned_with_denoiser, split, "latents")
    else:
        texts = ScaledSplit(encoded(decoded.unscaled, tokens, True, split, "latents"), decoded.unscaled)
    if context is not None:
        assert tokens.split.sources is not None, "a run with sources was built on a corpus without them"
        different, number = different_sources(tokens.split.sources)
        source_tokens = context.tokens(different)
        states = encoded(context.states, source_tokens, not context.trained, f"{split} sources", "source states")
        sources = make_source_reader(context, source_tokens, states, number)
    return ConditionalLatents(space, texts, run.settings.config.denoiser.class_conditional, sources)


def corpus_cache(run: RunContext[DiffusionConfig], teacher_folder: Path | None = None) -> Path | None:
    """Folder of the encoded corpora; None with --no_latent_cache."""
    options, config = run.settings.config.latents, run.settings.config.cache
    if options.no_latent_cache:
        return None
    return encoded_folder(config.cache_dir, options.latent_cache_dir, (teacher_folder, run.folder))
