"""Evaluation of a language model that decodes latents: how much of a text these decide (use_of_latents).

Its samples are those of noised latents, as it decodes the latents of a denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluation import report, scorers
from evaluation.distributed import on_rank0
from latent_models.generation.decoding import decoding_settings, given_settings, strategies
from latent_models.spaces.decoded import DecodedSpace
from pipelines.cli.configs import TextDecoderConfig
from pipelines.data.tokens import TokenSplit
from pipelines.evaluators.reconstruction import reconstruct
from pipelines.evaluators.spelling import Spelling
from pipelines.evaluators.use_of_latents import (
    SAMPLES,
    compare,
    describe,
    load_encoder,
    make_pairs,
    other_texts,
    text_vectors,
)
from pipelines.run_context import RunContext
from pipelines.validation import mean_losses
from utils.records import Batch
from utils.terminal import printable
from utils.train_eval import eval_mode

NUM_SHOWN = 20  # texts in the table of the trackers
IN_LOG = 5


class HeldOutLosses(Protocol):
    """The part of TextDecoderStep that an evaluation needs."""

    batch_sampler: Any

    def totals(self, micro: int, levels: dict[str, float]) -> dict[str, Tensor]: ...


class TextDecoderEvaluator:
    """Measures a decoder on held-out texts. Every rank must call its methods."""

    def __init__(
        self, run: RunContext[TextDecoderConfig], space: DecodedSpace, data: TokenSplit, step: HeldOutLosses
    ) -> None:
        """data: the held-out texts. step: reads them and computes their losses."""
        config = run.settings.config
        self.run, self.space, self.data, self.step = run, space, data, step
        self.max_seq_len = config.language_model.max_seq_len
        self.batch_size = config.evaluation.eval_batch_size
        self.decoding = decoding_settings(config.decoding, causal=True)
        self.clean = ["greedy", *(name for name in strategies(config.evaluation.decoding) if name == "beam")]
        self.rows = torch.arange(min(config.validation.eval_texts, len(data)))
        self.spelling = Spelling.of(space.decoder.lm.tokenizer, {"valid": data.split.texts})
        self.references = self.spelling.respell([data.split.texts[row] for row in self.rows.tolist()])
        source = scorers.source_of(config.evaluation.scorer, or_default=False)  # perplexity needs --scorer
        self.scorer = scorers.load(source, device=run.device) if source else None
        encoder = load_encoder(run.settings, run.device)
        self.vectors = text_vectors(
            run, encoder, space, space.encode_unscaled, batch_size=self.batch_size, max_length=self.max_seq_len
        )
        self.metrics: dict[str, Any] = {}
        self.texts: dict[str, list[str]] = {}  # by column name of the file of samples
        highest = config.decoder.max_latent_noise
        self.levels = {
            "decoder/loss_clean": 0.0,
            "val_loss": space.noise,
            "decoder/loss_most_noise": highest,
            "decoder/loss_without_latents": 1.0,
        }

    def evaluate(self) -> dict[str, Any]:
        """All metrics."""
        self.metrics = {**self.losses(), **self.decode()}
        return self.metrics

    def losses(self) -> dict[str, float]:
        """Nats per token by the noise of the latents: none, that of decoding, the most, nothing but noise."""
        names = ("tokens", *self.levels)
        with eval_mode(self.space), self.run.autocast():
            sampler = self.step.batch_sampler
            means = mean_losses(self.run.dist, sampler, names, partial(self.step.totals, levels=self.levels))
        return {name: means[name] / means["tokens"] for name in self.levels}

    def decode(self) -> dict[str, Any]:
        """Similarities and overlaps of decoded texts."""
        columns: dict[str, list[str]] = {}
        with eval_mode(self.space):
            for name in self.clean:
                columns[name] = self._reconstruct(name, self._from_clean_latents(name))
            for name in SAMPLES:
                columns[name] = self._reconstruct(name, self.decoding["nucleus"])
            if self.data.prompts is not None:
                columns["swapped"] = self._decode_swapped()
            self.space.decoder.free_copies()
            self.texts = columns
            pairs = make_pairs(columns, self.references)
            complete = (*self.clean, "sample")  # the texts of which are those of the references
            found = on_rank0(self.run.dist, self.scorer, partial(compare, pairs, self.vectors, self.scorer, complete))
        record = self.run.corpus_record
        found["protocol"] = {
            **found["protocol"],
            **self.spelling.metadata(),
            **({} if record is None else record.metadata()),
            **self.run.weights_metadata(),
            **given_settings(self.run.settings.config.decoding),
        }
        return found

    def _from_clean_latents(self, strategy: str) -> dict[str, Any]:
        """Settings of decoding without noise."""
        return {**self.decoding[strategy], "decoder_noise": 0.0, "decoder_candidates": 1}

    def _decode_swapped(self) -> list[str]:
        """Decodings of the latents of other texts, each with the source of the text itself."""
        assert self.data.prompts is not None
        others = torch.tensor(other_texts(len(self.rows)))
        prompts = moved_prompts(self.data.prompts, self.rows, self.rows[others])
        found = self._reconstruct("swapped", self._from_clean_latents("greedy"), replace(self.data, prompts=prompts))
        return [found[i] for i in others.tolist()]

    def _reconstruct(self, name: str, settings: Mapping[str, Any], data: TokenSplit | None = None) -> list[str]:
        run, space = self.run, self.space

        def decode(batch: Batch, _: str) -> list[str]:
            return space.decode(space.encode(batch), max_length=self.max_seq_len, **settings)

        return reconstruct(
            decode,
            data or self.data,
            self.rows,
            self.batch_size,
            name,
            run.device,
            run.autocast,
            f"decode ({name})",
            run.quiet,
            run.dist,
        )

    def record(self, step: int) -> None:
        """Log metrics, a table and texts; on every rank."""
        numbers = {key: value for key, value in self.metrics.items() if isinstance(value, int | float)}
        self.run.logger.record(numbers, step)
        if not self.run.dist.is_main:
            return
        self.run.log(f"step {step}, {len(self.references)} held-out texts\n{describe(self.metrics, self.levels)}")
        for text, decoded in list(zip(self.references, self.texts["greedy"], strict=True))[:IN_LOG]:
            self.run.log(printable(f"  {text}\n    -> {decoded}"))
        rows = list(zip(self.references, *self.texts.values(), strict=True))[:NUM_SHOWN]
        self.run.logger.table("Samples", ["reference", *self.texts], rows, step)

    def write(self, folder: Path, name: str) -> None:
        """Write all metrics to NAME.json and all texts, with their references, to NAME-samples.json; on rank 0."""
        if self.run.dist.is_main and self.metrics:
            columns = list(self.texts)
            samples = [
                {"reference": reference, **dict(zip(columns, row, strict=True)), "text": row[0]}
                for reference, *row in zip(self.references, *self.texts.values(), strict=True)
            ]
            report.write(folder, name, self.metrics, samples)


def moved_prompts(prompts: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Prompts (n, P) in which each of the rows `targets` has the prompt of the one of `rows` at its place."""
    moved = prompts.clone()
    moved[targets] = prompts[rows]
    return moved
