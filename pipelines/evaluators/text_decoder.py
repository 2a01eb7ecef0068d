"""How much of a text its latents decide, where a causal language model decodes them.

Such a model writes fluent texts from any latents, so fluency says nothing of them. Compared are a text and its decoding
from clean latents, two samples of one latent, a text and the decoding of another text's latents, and the losses with
and without latents. Names begin with "decoder/"; a similarity is the cosine of the space's own vectors of two texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import report, scorers
from evaluation.distributed import on_rank0
from evaluation.protocols import evaluate_reconstruction
from latent_models.generation.decoding import decoding_settings, given_settings, strategies
from latent_models.spaces.decoded import DecodedSpace
from pipelines.cli.configs import TextDecoderConfig
from pipelines.data.tokens import TokenSplit, make_batch
from pipelines.evaluators.reconstruction import reconstruct
from pipelines.evaluators.spelling import Spelling
from pipelines.run_context import RunContext
from pipelines.validation import mean_losses
from utils.preemption import check_interrupt
from utils.records import Batch
from utils.terminal import printable
from utils.train_eval import eval_mode

SAMPLES = ("nucleus", "nucleus, second")  # two samples of one latent; the names seed their random numbers
OVERLAPS = ("bleu", "rougeL")
NUM_SHOWN = 20  # texts in the table of the trackers
IN_LOG = 5
MOST, PART = 0.5, 0.2  # of the way from the similarity of other texts to 1, for the line in words
ROWS = {
    "greedy": "a text, and its greedy decoding from clean latents",
    "beam": "a text, and its decoding by beams from clean latents",
    "sample": "a text, and a sample of its noised latents",
    "samples": "two samples of the latents of one text",
    "swapped": "a text, and the greedy decoding of another one's latents",
}


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
                settings = {**self.decoding[name], "decoder_noise": 0.0, "decoder_candidates": 1}
                columns[name] = self._reconstruct(name, settings)
            for name in SAMPLES:
                columns[name] = self._reconstruct(name, self.decoding["nucleus"])
            self.space.decoder.free_copies()
            self.texts = columns
            half = len(self.references) // 2  # neighbors in a file may be of one subject
            others = columns["greedy"][half:] + columns["greedy"][:half]
            pairs = {name: (columns[name], self.references) for name in self.clean}
            pairs |= {
                "sample": (columns[SAMPLES[0]], self.references),
                "samples": (columns[SAMPLES[1]], columns[SAMPLES[0]]),
                "swapped": (others, self.references),
            }
            return on_rank0(self.run.dist, self.scorer, partial(self._compare, pairs))

    def _reconstruct(self, name: str, settings: Mapping[str, Any]) -> list[str]:
        run, space = self.run, self.space

        def decode(batch: Batch, _: str) -> list[str]:
            return space.decode(space.encode(batch), max_length=self.max_seq_len, **settings)

        return reconstruct(
            decode,
            self.data,
            self.rows,
            self.batch_size,
            name,
            run.device,
            run.autocast,
            f"decode ({name})",
            run.quiet,
            run.dist,
        )

    def _compare(self, pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Any]:
        """Metrics of pairs of texts, on rank 0. pairs: name -> texts, and those that they are compared with."""
        found: dict[str, Any] = {}
        vectors: dict[int, Tensor] = {}
        protocol: dict[str, Any] = {}
        for name, (texts, references) in pairs.items():
            for side in (texts, references):
                if id(side) not in vectors:
                    vectors[id(side)] = self._vectors(side)
            cosines = (vectors[id(texts)] * vectors[id(references)]).sum(1)
            found[f"decoder/{name}/similarity"] = float(cosines.mean())
            are_of_references = name in self.clean or name == "sample"
            overlaps = evaluate_reconstruction(texts, references, self.scorer if are_of_references else None)
            protocol = overlaps.pop("protocol") | protocol  # the first names the scorer
            kept = overlaps if are_of_references else {key: overlaps[key] for key in OVERLAPS if key in overlaps}
            found |= {f"decoder/{name}/{key}": value for key, value in kept.items()}
        found["decoder/share_of_latents"] = share_of_latents(found)
        record = self.run.corpus_record
        found["protocol"] = {
            **protocol,
            **self.spelling.metadata(),
            **({} if record is None else record.metadata()),
            **self.run.weights_metadata(),
            **given_settings(self.run.settings.config.decoding),
            "similarity": f"cosine by {self.space.language_model.name}",
        }
        return found

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, F) of texts: the latents before scaling, their mean where texts differ in number."""
        parts = []
        for first in range(0, len(texts), self.batch_size):
            check_interrupt()
            some = list(texts[first : first + self.batch_size])
            batch = make_batch(self.space, some, self.max_seq_len).to(self.run.device)
            with self.run.autocast():
                latents = self.space.encode_unscaled(batch)
            x0 = latents.x0.float()
            if self.space.variable_length:
                mask = latents.mask[..., None]
                x0 = (x0 * mask).sum(1) / mask.sum(1).clamp(min=1)
            parts.append(F.normalize(x0.flatten(1), dim=-1).cpu())
        return torch.cat(parts)

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


def share_of_latents(metrics: Mapping[str, Any]) -> float:
    """How far the similarity of a text and its decoding lies from that of another text's (0) to equal texts (1)."""
    own, other = metrics["decoder/greedy/similarity"], metrics["decoder/swapped/similarity"]
    return (own - other) / max(1 - other, 1e-6)


def describe(metrics: Mapping[str, Any], levels: Mapping[str, float]) -> str:
    """A table of similarities and losses, and one line that says whether the latents decide."""
    rows = [
        (text, [_number(metrics.get(f"decoder/{name}/{key}")) for key in ("similarity", *OVERLAPS)])
        for name, text in ROWS.items()
        if f"decoder/{name}/similarity" in metrics
    ]
    width = max(len(text) for text, _ in rows)
    lines = [f"  {'':{width}}  similarity    BLEU  ROUGE-L"]
    lines += [f"  {text:{width}}  {a:>10}  {b:>6}  {c:>7}" for text, (a, b, c) in rows]
    losses = (f"{metrics[name]:.3f} at {sigma:g}" for name, sigma in levels.items())
    lines.append(f"  nats per token by the sigma of the latents' noise: {', '.join(losses)} (no latents)")
    return "\n".join([*lines, f"  {verdict(metrics)}"])


def verdict(metrics: Mapping[str, Any]) -> str:
    """Whether latents decide, in words."""
    share = metrics["decoder/share_of_latents"]
    gain = metrics["decoder/loss_without_latents"] - metrics["decoder/loss_clean"]
    if share >= MOST:
        what, advice = "latents decide most of a text", ""
    elif share >= PART:
        what, advice = "latents decide a part of a text", ""
    else:
        what = "latents decide little of a text, and the language model makes up the rest"
        advice = ": train longer, or raise --token_dropout"
    return (
        f"{what}: it is {metrics['decoder/greedy/similarity']:.2f} similar to its decoding and "
        f"{metrics['decoder/swapped/similarity']:.2f} to another one's, and clean latents save {gain:.2f} of "
        f"{metrics['decoder/loss_without_latents']:.2f} nats a token{advice}"
    )


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"
