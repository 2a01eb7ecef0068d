"""A small text classifier trained on the corpus at hand: logistic regression on weighted words.

It says which class a text reads like, where no classifier of these classes can be had. How often it is right is
measured on held-out texts and stands in its folder: the share of samples that it judges rightly means nothing without
that, and compares with nothing published.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.report import nan_to_none
from utils.errors import UserError
from utils.run_folder import write_json

FACTS, WEIGHTS = "home_classifier.json", "weights.safetensors"
WORD = re.compile(r"\w+|[^\w\s]")  # marks count, too: a question is not an answer


@dataclass(frozen=True)
class LocalClassifierOptions:
    """Words and training of the home classifier; the defaults were chosen on corpora of some thousand texts."""

    min_texts: int = 2  # that a word must occur in: of what occurs once nothing is to be learned
    max_words: int = 50_000  # the most frequent ones
    max_texts: int = 100_000  # learned from, drawn at random; more change nothing but the time
    strictness: float = 2.0  # weight of the texts against the squared weights (C of scikit-learn)
    iterations: int = 100  # of L-BFGS, at most
    seed: int = 0


class LocalClassifier(torch.nn.Module):
    """Bag of words -> class: sublinear tf-idf of unit length, times a table, plus a bias. Small enough for the CPU."""

    idf: Tensor
    table: Tensor
    bias: Tensor

    def __init__(self, words: Sequence[str], idf: Tensor, table: Tensor, bias: Tensor) -> None:
        """words: V of them. idf: (V,). table: (V, K). bias: (K,), of K classes."""
        super().__init__()
        self.words = {word: i for i, word in enumerate(words)}
        for name, x in (("idf", idf), ("table", table), ("bias", bias)):
            self.register_buffer(name, x)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Logits (n, K). A text of unknown words alone gets the bias: how frequent the classes were."""
        return _logits(*_pack(texts, self.words, self.idf), self.table, self.bias)


def train_local(
    texts: Sequence[str],
    labels: Sequence[int],
    class_names: Sequence[str],
    folder: Path,
    *,
    held_out: tuple[Sequence[str], Sequence[int]] | None = None,
    **settings: Any,
) -> Path:
    """Train a home classifier into `folder`, unless the same one is there already; returns the folder.

    labels: 0 .. K - 1, as class_names has them. held_out: texts and labels on which its accuracy is measured and kept.
    settings: fields of HomeClassifierOptions. Another classifier of ours in the folder is replaced once the new one is
    whole; a folder that holds anything else is refused. Deterministic: no number is drawn but for which texts are used.
    """
    from safetensors.torch import save_file

    options, folder = LocalClassifierOptions(**settings), Path(folder)
    rows = [i for i, text in enumerate(texts) if text.strip()]
    if len({labels[i] for i in rows}) < 2:
        raise UserError("the classifier needs training texts of two classes at least: this corpus has fewer")
    facts = {
        "comparable": False,
        "texts": len(rows),
        "data": _fingerprint(texts, labels),
        "class_names": list(class_names),
        **asdict(options),
    }
    if held_out is not None:
        facts["held_out_data"] = _fingerprint(*held_out)
    there = read_info(folder)
    if there is not None and {name: there.get(name) for name in facts} == facts:
        return folder
    if folder.exists() and any(folder.iterdir()) and there is None:
        raise UserError(
            f"{folder} holds something other than a classifier trained here: name another folder, or empty it"
        )
    if len(rows) > options.max_texts:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed)).tolist()
        rows = [rows[i] for i in order[: options.max_texts]]
    model = _train([texts[i] for i in rows], torch.tensor([labels[i] for i in rows]), len(class_names), options)
    if held_out is not None:
        facts["held_out"] = label_agreement(model(held_out[0]).argmax(1).tolist(), held_out[1], class_names)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({"idf": model.idf, "table": model.table, "bias": model.bias}, partial / WEIGHTS)
    write_json(partial / "words.json", list(model.words))
    write_json(partial / FACTS, nan_to_none(facts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def load_local(folder: Path) -> LocalClassifier:
    """The home classifier in a folder."""
    from safetensors.torch import load_file

    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return LocalClassifier(words, **load_file(folder / WEIGHTS))


def read_info(folder: Path) -> dict[str, Any] | None:
    """What a folder says of the classifier in it; None where it holds none of ours."""
    try:
        return json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def label_agreement(judged: Sequence[int], labels: Sequence[int], class_names: Sequence[str]) -> dict[str, Any]:
    """How often the class judged is the class given: accuracy, by class too, and n. nan where there are no texts."""
    by_class: dict[str, float] = {}
    for c, name in enumerate(class_names):
        hits = [found == c for found, label in zip(judged, labels, strict=True) if label == c]
        by_class[name] = sum(hits) / len(hits) if hits else math.nan
    right = sum(found == label for found, label in zip(judged, labels, strict=True))
    return {"accuracy": right / len(labels) if labels else math.nan, "n": len(labels), "by_class": by_class}


def _train(texts: Sequence[str], labels: Tensor, classes: int, options: LocalClassifierOptions) -> LocalClassifier:
    """Multinomial logistic regression with squared weights as penalty, to its optimum: it is convex."""
    seen = Counter(word for text in texts for word in set(_words(text)))
    enough = sorted((-count, word) for word, count in seen.items() if count >= options.min_texts)
    words = [word for _, word in enough[: options.max_words]]
    if not words:
        raise UserError("the classifier finds no word in two training texts: there is nothing to learn from")
    idf = torch.tensor([math.log((1 + len(texts)) / (1 + seen[word])) + 1 for word in words])
    packed = _pack(texts, {word: i for i, word in enumerate(words)}, idf)
    table = torch.zeros(len(words), classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([table, bias], max_iter=options.iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(_logits(*packed, table, bias), labels)
        whole = fit + table.square().sum() / (2 * options.strictness * len(texts))
        whole.backward()
        return whole

    optimizer.step(loss)
    return LocalClassifier(words, idf, table.detach(), bias.detach())


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _pack(texts: Sequence[str], words: Mapping[str, int], idf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All texts' known words in a row: their numbers, where each text begins (n,), and their weights."""
    numbers: list[int] = []
    starts: list[int] = []
    counts: list[int] = []
    for text in texts:
        starts.append(len(numbers))
        found = Counter(words[word] for word in _words(text) if word in words)
        numbers += found.keys()
        counts += found.values()
    rows, begins = torch.tensor(numbers, dtype=torch.long), torch.tensor(starts, dtype=torch.long)
    weights = (1 + torch.tensor(counts, dtype=torch.float32).log()) * idf[rows]
    text_of = torch.repeat_interleave(torch.arange(len(texts)), begins.diff(append=torch.tensor([len(numbers)])))
    squares = torch.zeros(len(texts)).index_add(0, text_of, weights.square())
    return rows, begins, weights / squares.sqrt()[text_of]


def _logits(rows: Tensor, begins: Tensor, weights: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    if not len(begins):
        return bias.new_zeros(0, len(bias))
    return F.embedding_bag(rows, table, begins, mode="sum", per_sample_weights=weights) + bias


def _fingerprint(texts: Sequence[str], labels: Sequence[int]) -> str:
    digest = sha256()
    for text, label in zip(texts, labels, strict=True):
        digest.update(text.encode("utf-8", "surrogatepass") + f"\0{label}\0".encode())
    return digest.hexdigest()
