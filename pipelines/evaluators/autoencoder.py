"""Evaluation of an autoencoder: reconstruction of held-out texts, validation losses, and what its latents decide.

Metrics carry the prefixes of the published code: "autoencoder/" for texts that pass through latents, "bart/" for texts
that pass through the language model alone; and "decoder/" for how much of a text its latents decide (use_of_latents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dataset_utils.corpus import Corpus
from evaluation import report, scorers
from evaluation.distributed import on_rank0
from evaluation.encoders import SentenceEncoder
from evaluation.protocols import evaluate_reconstruction
from evaluation.scorers import Scorer
from latent_models.generation.decoding import decoding_settings, given_settings, strategies
from latent_models.spaces.compressed import CompressedSpace
from pipelines.cli.configs import AutoencoderConfig
from pipelines.data.batch_sampler import ValidationSampler
from pipelines.data.tokens import TokenSplit
from pipelines.evaluators.interpolation import decode_all, evaluate_imauve, evaluate_interpolation, midpoints
from pipelines.evaluators.latent_norms import NUM_TEXTS, norms, write_norms
from pipelines.evaluators.reconstruction import Decode, reconstruct, via_encoder, via_latents
from pipelines.evaluators.recovery import evaluate_recovery
from pipelines.evaluators.replaced_latents import LatentStatistics, nats_per_token, replaced
from pipelines.evaluators.spelling import Spelling
from pipelines.evaluators.use_of_latents import (
    LEVELS,
    SAMPLES,
    compare,
    describe,
    load_encoder,
    make_pairs,
    text_vectors,
)
from pipelines.run_context import RunContext
from pipelines.validation import mean_losses
from utils.distributed import DistContext
from utils.records import Batch
from utils.sharding import is_sharded, unsharded
from utils.trackers import Histogram
from utils.train_eval import eval_mode

NUM_SHOWN = 20  # texts in the table of the trackers
NUM_COMPARED = 100  # texts whose samples are compared; more would take longer than the reconstruction


class AutoencoderEvaluator:
    """Reconstructs held-out texts by each decoding strategy, and collects metrics and texts until write().

    Every rank must call the methods that compute; sharded, every rank does all the work, else its share.
    """

    def __init__(self, run: RunContext[AutoencoderConfig], space: CompressedSpace, data: TokenSplit) -> None:
        config = run.settings.config
        self.run, self.space, self.data = run, space, data
        self.batch_size, self.max_seq_len = config.evaluation.eval_batch_size, config.language_model.max_seq_len
        self.strategies = list(strategies(config.evaluation.decoding))
        self.decoding = decoding_settings(config.decoding)
        self.rows = torch.arange(min(config.validation.eval_texts, len(data)))
        self.spelling = Spelling.of(space.language_model.tokenizer, {"valid": data.split.texts})
        self.references = self.spelling.respell([data.split.texts[row] for row in self.rows.tolist()])
        # perplexity needs --scorer: no scorer is trained here
        source = scorers.source_of(config.evaluation.scorer, or_default=False)
        self.scorer = scorers.load(source, device=run.device) if source else None
        self.encoder = load_encoder(run.settings, run.device)
        self.vectors = text_vectors(
            run, self.encoder, space, space.encode, batch_size=self.batch_size, max_length=self.max_seq_len
        )
        self._local_scorer: Scorer | None = None  # of midpoints, trained here
        self.metrics: dict[str, Any] = {}
        self.texts: dict[str, list[str]] = {}  # by column name of the file of samples
        self.compared: dict[str, list[str]] = {}  # further columns, of the first NUM_COMPARED texts

    def validation_loss(self) -> dict[str, float]:
        """val/loss: the training loss on --val_loss_examples held-out texts, in nats per token."""
        return self._mean_loss("val/loss", lambda batch: self.space.total_loss(self.space(batch)))

    def language_model_loss(self) -> dict[str, float]:
        """val/lm_loss: the same given the encoder states. It is constant while the language model is frozen."""
        model = self.space.language_model
        return self._mean_loss(
            "val/lm_loss", lambda batch: model(batch.input_ids, batch.input_ids, batch.attention_mask)
        )

    def _mean_loss(self, name: str, loss: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
        run, sampler = self.run, self._sampler()

        def losses(micro: int) -> dict[str, torch.Tensor]:
            return {name: loss(self.data.batch(sampler.rows(0, micro, len(self.data))).to(run.device))}

        with eval_mode(self.space), run.autocast():
            return mean_losses(self._dist, sampler, [name], losses)

    @property
    def _dist(self) -> DistContext:
        """The ranks that share the work: all, or this one alone where the space is sharded."""
        return DistContext(device=self.run.device) if is_sharded(self.space) else self.run.dist

    def _sampler(self) -> ValidationSampler:
        dist = self._dist
        return replace(self.run.validation_sampler(len(self.data)), rank=dist.rank, world_size=dist.world_size)

    def evaluate_latents(self) -> dict[str, Any]:
        """Metrics of texts that are encoded to latents and decoded again, and what the latents decide of them."""
        metrics = self._evaluate("autoencoder", via_latents(self.space, self.max_seq_len, self.decoding))
        found = {**self.losses_without_latents(), **self.compare_decodings()} if len(self.rows) > 1 else {}
        return {**metrics, **found, "protocol": metrics["protocol"] | found.get("protocol", {})}

    def losses_without_latents(self) -> dict[str, float]:
        """Nats per token of LEVELS: given the latents of --val_loss_examples texts, and given noise in their place.

        A decoder that reads the noise level of its latents gets the level of pure noise.
        """
        run, space, n = self.run, self.space, len(self.data)
        sampler = self._sampler()

        def losses(micro: int) -> dict[str, torch.Tensor]:
            batch = self.data.batch(sampler.rows(0, micro, n)).to(run.device)
            latents, count = space.encode(batch), batch.attention_mask.sum(1)
            eps = sampler.rng(0, micro, run.device).normal("replaced_latents", *latents.x0.shape[1:])
            noise = replaced(space, latents, statistics, eps)
            nats = (nats_per_token(space, batch, latents, 0.0), nats_per_token(space, batch, noise, 1.0))
            return {"tokens": count, **dict(zip(LEVELS, (count * x for x in nats), strict=True))}

        with eval_mode(space), unsharded(space), run.autocast():
            statistics = self._statistics()
            means = mean_losses(self._dist, sampler, ["tokens", *LEVELS], losses)
        return {name: means[name] / means["tokens"] for name in LEVELS}

    def _statistics(self) -> LatentStatistics:
        """Of the latents of the first NUM_COMPARED texts, the same on every rank."""
        batches = self.data.length_sorted_batches(self.batch_size, self.rows[:NUM_COMPARED])
        encoded = (self.space.encode(batch.to(self.run.device)) for _, batch in batches)
        return LatentStatistics.of(encoded, variable_length=self.space.variable_length)

    def compare_decodings(self) -> dict[str, Any]:
        """Similarities and overlaps of decodings of the first NUM_COMPARED texts; after their reconstruction."""
        decoding = {**self.decoding, **dict.fromkeys(SAMPLES, self.decoding["nucleus"])}
        decode = via_latents(self.space, self.max_seq_len, decoding)
        references, columns = self.references[:NUM_COMPARED], {}
        for name in ("greedy", *SAMPLES):
            made = self.texts.get(f"autoencoder/{name}")
            if made is None:
                made = self._reconstruct(decode, name, f"decode ({name})", self.rows[:NUM_COMPARED])
                self.compared[f"decoder/{name}"] = made
            columns[name] = made[:NUM_COMPARED]
        with eval_mode(self.space), unsharded(self.space):
            compare_all = partial(compare, make_pairs(columns, references), self.vectors)
            # a sharded space encodes on all ranks together
            found = compare_all() if is_sharded(self.space) else on_rank0(self.run.dist, None, compare_all)
        found["protocol"] = {"similarity": found["protocol"]["similarity"], "compared_texts": len(references)}
        return found

    def log_norms(self, step: int) -> None:
        """Log the norms of the latents of held-out texts. Every rank calls it."""
        batch = self.data.batch(self.rows[:NUM_TEXTS]).to(self.run.device)
        with torch.no_grad(), eval_mode(self.space), unsharded(self.space), self.run.autocast():
            found = Histogram.of(norms(self.space.encode(batch)))
        self.run.logger.histogram("latent_norm/texts", found, step)
        if self.run.dist.is_main:
            write_norms(self.run.folder, {"validation texts": found})

    def evaluate_language_model(self) -> dict[str, Any]:
        """Metrics of texts that the language model alone copies: an upper bound for the decoder."""
        return self._evaluate("bart", via_encoder(self.space.language_model, self.max_seq_len, self.decoding))

    def _reconstruct(self, decode: Decode, strategy: str, title: str, rows: torch.Tensor) -> list[str]:
        run = self.run
        with eval_mode(self.space), unsharded(self.space):
            return reconstruct(
                decode,
                self.data,
                rows,
                self.batch_size,
                strategy,
                run.device,
                run.autocast,
                title,
                run.quiet,
                None if is_sharded(self.space) else run.dist,
            )

    def _evaluate(self, prefix: str, decode: Decode) -> dict[str, Any]:
        run = self.run
        metrics: dict[str, Any] = {}
        for strategy in self.strategies:
            texts = self._reconstruct(decode, strategy, f"reconstruct ({prefix}, {strategy})", self.rows)
            self.texts[f"{prefix}/{strategy}"] = texts
            metrics |= on_rank0(
                run.dist,
                self.scorer,
                partial(evaluate_reconstruction, texts, self.references, self.scorer, prefix=f"{prefix}/{strategy}/"),
            )
            record = run.corpus_record
            metrics["protocol"] |= self.spelling.metadata() | ({} if record is None else record.metadata())
            metrics["protocol"] |= given_settings(run.settings.config.decoding) | run.weights_metadata()
        return metrics

    def evaluate_midpoints(self, corpus: Corpus) -> dict[str, Any]:
        """Metrics of texts decoded midway between held-out texts (--eval_interpolation). On rank 0: it takes
        seconds."""
        run = self.run

        def evaluate() -> dict[str, Any]:
            scorer, encoder, held_out = self._midpoint_scorer(corpus), self._midpoint_encoder(), self._other_texts()
            metrics: dict[str, Any] = {}
            with eval_mode(self.space):
                latents, neighbors = midpoints(
                    self.space, self.data, self.rows, self.batch_size, run.device, run.autocast
                )
                for strategy in self.strategies:
                    texts = decode_all(
                        self.space,
                        latents,
                        strategy,
                        self.batch_size,
                        self.max_seq_len,
                        run.autocast,
                        run.quiet,
                        self.decoding,
                    )
                    self.texts[f"midpoints/{strategy}"] = texts
                    prefix = f"midpoints/{strategy}/"
                    imauve = evaluate_imauve(texts, held_out, scorer, encoder, prefix=prefix)
                    metrics |= imauve
                    metrics |= evaluate_interpolation(texts, self.references, neighbors.tolist(), scorer, prefix=prefix)
                    metrics["protocol"] = imauve["protocol"] | metrics["protocol"]
            return metrics

        return on_rank0(run.dist, None, evaluate)

    def _midpoint_scorer(self, corpus: Corpus) -> Scorer:
        """The scorer of the flags, else a small one that is trained on the corpus."""
        if self.scorer is not None:
            return self.scorer
        if self._local_scorer is None:
            texts = self.spelling.respell(corpus.train.texts)
            folder = self.run.folder / "scorer"
            self._local_scorer = scorers.load(None, texts=texts, folder=folder, device=self.run.device)
        return self._local_scorer

    def _midpoint_encoder(self) -> SentenceEncoder | None:
        """The encoder of --mauve_encoder; None without the flag."""
        return None if self.run.settings.config.mauve.mauve_encoder is None else self.encoder

    def _other_texts(self) -> list[str]:
        """Held-out texts beside those that are reconstructed; where the split has not as many more, these."""
        n = len(self.rows)
        others = self.spelling.respell(self.data.split.texts[n : 2 * n])
        return others if len(others) == n else self.references

    def evaluate_recovery(self) -> dict[str, Any]:
        """Metrics of texts decoded from noised latents, and the margin of the decoder there. Every rank calls it."""
        run, sharded = self.run, is_sharded(self.space)
        with eval_mode(self.space), unsharded(self.space):
            metrics, texts = evaluate_recovery(
                self.space,
                self.data,
                self.rows,
                self.references,
                self.strategies,
                batch_size=self.batch_size,
                max_length=self.max_seq_len,
                device=run.device,
                autocast=run.autocast,
                dist=None if sharded else run.dist,
                quiet=run.quiet,
                decoding=self.decoding,
            )
        self.texts |= texts
        return metrics

    def record(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log metrics and texts, and keep the metrics for write()."""
        self.metrics |= metrics
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        self.run.logger.record(numbers, step)
        self.run.log(report.table(numbers, f"step {step}, {len(self.references)} held-out texts"))
        if "decoder/share_of_latents" in metrics:
            self.run.log(describe(metrics, LEVELS))
        columns = {**self.texts, **self.compared}
        rows = list(zip(self.references, *columns.values(), strict=False))[:NUM_SHOWN]
        self.run.logger.table("Samples", ["reference", *columns], rows, step)

    def write(self, folder: Path, name: str) -> None:
        """Write all metrics to NAME.json and all texts, with their references, to NAME-samples.json; on rank 0."""
        if self.run.dist.is_main and self.metrics:
            columns, texts = {**self.texts, **self.compared}, list(self.texts.values())[-1]
            samples = [
                {
                    "reference": reference,
                    **{column: made[i] for column, made in columns.items() if i < len(made)},
                    "text": texts[i],
                }
                for i, reference in enumerate(self.references)
            ]
            report.write(folder, name, self.metrics, samples)
