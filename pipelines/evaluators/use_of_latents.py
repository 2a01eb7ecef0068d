"""How much of a text its latents decide: the same measures and keys for every kind of decoder.

A decoder that is a language model writes fluent texts from any latents, so fluency says nothing of them. Compared are a
text and its greedy decoding from clean latents, two samples of one latent, and a text and the decoding of another
text's latents; the evaluator of each kind of decoder adds the losses with and without latents. Keys begin with
"decoder/".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import encoders
from evaluation.encoders import SentenceEncoder
from evaluation.protocols import evaluate_reconstruction
from evaluation.scorers import Scorer
from latent_models.spaces.base import LatentSpace
from pipelines.data.tokens import make_batch
from pipelines.run_context import RunContext
from utils.cli.settings import Settings
from utils.local_models import find_model
from utils.preemption import check_interrupt
from utils.records import Batch, Latents
from utils.sharding import is_sharded

DEFAULT_ENCODER = "minilm-l6"
SAMPLES = ("nucleus", "nucleus, second")  # two samples of one latent; the names seed their random numbers
OVERLAPS = ("bleu", "rougeL")
# losses of every decoder, in nats per token: sigma of the noise on latents of mean 0 and variance 1
LEVELS = {"decoder/loss_clean": 0.0, "decoder/loss_without_latents": 1.0}
MOST, PART = 0.5, 0.2  # of the way from the similarity of other texts to 1, for the line in words
NO_GAIN = 0.02  # of the loss without latents
ROWS = {
    "greedy": "a text, and its greedy decoding from clean latents",
    "beam": "a text, and its decoding by beams from clean latents",
    "sample": "a text, and a sample of its latents",
    "samples": "two samples of the latents of one text",
    "swapped": "a text, and the greedy decoding of another one's latents",
}
Pairs = Mapping[str, tuple[Sequence[str], Sequence[str]]]  # name -> texts, and those that they are compared with


@dataclass(frozen=True)
class TextVectors:
    """Vectors of texts; the cosine of two is their similarity."""

    embed: Callable[[Sequence[str]], Tensor]  # texts -> (n, F) of unit norm, on the CPU
    protocol: Mapping[str, Any]  # the encoder, and `part_of_system`: whether it also makes the latents


def load_encoder(settings: Settings[Any], device: torch.device) -> SentenceEncoder | None:
    """The encoder of --mauve_encoder; unset: minilm-l6, if python -m latent_models.pretrained has made it; else None.

    --mauve_encoder none does without.
    """
    source = settings.config.mauve.mauve_encoder
    if source is None and "mauve_encoder" not in settings.explicit:
        source = find_model(DEFAULT_ENCODER)
    return None if source is None else encoders.load(source, device=device)


def text_vectors(
    run: RunContext[Any],
    encoder: SentenceEncoder | None,
    space: LatentSpace,
    encode: Callable[[Batch], Latents],
    *,
    batch_size: int,
    max_length: int,
) -> TextVectors:
    """Vectors of an encoder; without one the space's latents: flattened, or their mean where texts differ in number.

    encode: tokens -> latents before any scaling. max_length: in tokens, at which texts are truncated.
    """
    reader: Any = space.language_model
    if encoder is not None:
        part = {"part_of_system": reads_texts(encoder, space)}
        return TextVectors(lambda texts: torch.from_numpy(encoder.features(texts)), encoder.protocol() | part)

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        parts = []
        for first in range(0, len(texts), batch_size):
            check_interrupt()
            batch = make_batch(space, list(texts[first : first + batch_size]), max_length).to(run.device)
            with run.autocast():
                latents = encode(batch)
            x0 = latents.x0.float()
            if space.variable_length:
                mask = latents.mask[..., None]
                x0 = (x0 * mask).sum(1) / mask.sum(1).clamp(min=1)
            parts.append(F.normalize(x0.flatten(1), dim=-1).cpu())
        return torch.cat(parts)

    return TextVectors(embed, {"name": reader.name, "pooling": "latents", "part_of_system": True})


def reads_texts(encoder: SentenceEncoder, space: LatentSpace) -> bool:
    """Whether the space reads texts by this encoder: by its weights, since one model may lie in two folders."""
    reader: Any = space.language_model
    model = reader.model
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if is_sharded(model):  # which is trained here
        return False
    own = model.state_dict()
    return all(
        name in own and own[name].shape == x.shape and torch.equal(own[name].float().cpu(), x.float().cpu())
        for name, x in encoder.model.state_dict().items()
        if not name.startswith("pooler.")  # unused by both
    )


def make_pairs(columns: Mapping[str, Sequence[str]], references: Sequence[str]) -> Pairs:
    """The pairs of ROWS.

    columns: decoded texts, "greedy", those of SAMPLES, "beam" if there is one, and "swapped" where a decoder reads more
    than latents: decodings of another text's latents with what belongs to the text itself.
    """
    swapped = columns.get("swapped") or [columns["greedy"][i] for i in other_texts(len(references))]
    pairs = {name: (columns[name], references) for name in ("greedy", "beam") if name in columns}
    return pairs | {
        "sample": (columns[SAMPLES[0]], references),
        "samples": (columns[SAMPLES[1]], columns[SAMPLES[0]]),
        "swapped": (swapped, references),
    }


def other_texts(n: int) -> list[int]:
    """For each of n texts the number of another one, half of the texts away: neighbors may be of one subject."""
    return [(i + n // 2) % n for i in range(n)]


def compare(
    pairs: Pairs, vectors: TextVectors, scorer: Scorer | None = None, complete: Collection[str] = ()
) -> dict[str, Any]:
    """Similarity and n-gram overlap of each pair, decoder/share_of_latents, and the entries of the protocol.

    complete: names of the pairs that get every metric of reconstruction, perplexity by the scorer included.
    """
    found: dict[str, Any] = {}
    embedded: dict[int, Tensor] = {}
    protocol: dict[str, Any] = {}
    for name, (texts, references) in pairs.items():
        for side in (texts, references):
            if id(side) not in embedded:
                embedded[id(side)] = vectors.embed(side)
        cosines = (embedded[id(texts)] * embedded[id(references)]).sum(1)
        found[f"decoder/{name}/similarity"] = float(cosines.mean())
        metrics = evaluate_reconstruction(texts, references, scorer if name in complete else None)
        protocol = metrics.pop("protocol") | protocol  # the first names the scorer
        kept = metrics if name in complete else {key: metrics[key] for key in OVERLAPS if key in metrics}
        found |= {f"decoder/{name}/{key}": value for key, value in kept.items()}
    found["decoder/share_of_latents"] = share_of_latents(found)
    found["protocol"] = protocol | {"similarity": dict(vectors.protocol)}
    return found


def share_of_latents(metrics: Mapping[str, Any]) -> float:
    """How far the similarity of a text and its decoding lies from that of another text's (0) to equal texts (1)."""
    own, other = metrics["decoder/greedy/similarity"], metrics["decoder/swapped/similarity"]
    return (own - other) / max(1 - other, 1e-6)


def describe(metrics: Mapping[str, Any], levels: Mapping[str, float]) -> str:
    """A table of similarities and losses, and one line that says whether the latents decide.

    levels: key of a loss -> sigma of the noise of its latents.
    """
    rows = [
        (text, [_number(metrics.get(f"decoder/{name}/{key}")) for key in ("similarity", *OVERLAPS)])
        for name, text in ROWS.items()
        if f"decoder/{name}/similarity" in metrics
    ]
    width = max(len(text) for text, _ in rows)
    lines = [f"  {'':{width}}  similarity    BLEU  ROUGE-L"]
    lines += [f"  {text:{width}}  {a:>10}  {b:>6}  {c:>7}" for text, (a, b, c) in rows]
    similarity = metrics.get("protocol", {}).get("similarity")
    if similarity is not None:
        is_part = similarity["part_of_system"]
        advice = ", a part of this system: --mauve_encoder names another encoder" if is_part else ""
        lines.append(f"  similarity: cosine by {similarity['name']}{advice}")
    losses = (f"{metrics[name]:.3f} at {sigma:g}" for name, sigma in levels.items())
    lines.append(f"  nats per token by the sigma of the latents' noise: {', '.join(losses)} (no latents)")
    return "\n".join([*lines, f"  {verdict(metrics)}"])


def verdict(metrics: Mapping[str, Any]) -> str:
    """Whether latents decide, in words."""
    share = metrics["decoder/share_of_latents"]
    gain = metrics["decoder/loss_without_latents"] - metrics["decoder/loss_clean"]
    if gain < NO_GAIN * metrics["decoder/loss_without_latents"]:  # of pairs: the source, read beside them, decides
        what = "latents decide nothing, since the loss is the same without them"
        advice = ": train longer, with --source_prompt also with --config source_dropout=0.5"
    elif share >= MOST:
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
