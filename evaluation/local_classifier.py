"""A small text classifier trained on the corpus itself: logistic regression on tf-idf features.

It predicts the class of a sample if no pretrained classifier of these classes is given. Its accuracy on held-out texts
is stored in its folder: the label accuracy of samples means little without that number, and is not comparable with
published ones.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import regex
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.report import nan_to_none
from evaluation.text_tokens import separate_characters
from utils.errors import UserError, library_message
from utils.run_folder import write_json

INFO_FILE, WEIGHTS = "local_classifier.json", "weights.safetensors"
# Punctuation counts: a question mark distinguishes classes. Letters carry their marks.
WORD = regex.compile(r"[\w\p{M}\p{N}]+|[^\w\p{M}\p{N}\s]")


@dataclass(frozen=True)
class LocalClassifierOptions:
    """Vocabulary and training of the local classifier. The defaults were chosen on corpora of a few thousand texts."""

    min_texts: int = 2  # number of texts in which a word must occur: a word of one text does not generalize
    max_words: int = 50_000  # the most frequent ones
    max_texts: int = 100_000  # training texts, selected at random; more only take time
    C: float = 2.0  # inverse strength of the L2 penalty, as in scikit-learn
    max_iter: int = 100  # iterations of L-BFGS
    seed: int = 0


class LocalClassifier(torch.nn.Module):
    """Bag of words -> class logits: sublinear tf-idf of unit norm, times a table, plus a bias. Runs on the CPU."""

    idf: Tensor
    table: Tensor
    bias: Tensor

    def __init__(self, words: Sequence[str], idf: Tensor, table: Tensor, bias: Tensor) -> None:
        """words: V strings. idf: (V,). table: (V, K). bias: (K,), for K classes."""
        super().__init__()
        self.words = {word: i for i, word in enumerate(words)}
        for name, x in (("idf", idf), ("table", table), ("bias", bias)):
            self.register_buffer(name, x)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return logits (n, K). A text without a known word gets the bias, the log-frequency of the classes."""
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
    """Train a local classifier and save it in `folder`, unless it is there already. Returns the folder.

    labels: 0 .. K - 1, indices into class_names. held_out: texts and labels on which the stored accuracy is measured.
    settings: fields of LocalClassifierOptions. Deterministic: the only random numbers select at most max_texts texts.
    A local classifier of other texts or options in the folder is replaced once the new one is complete. Raises
    UserError if fewer than two classes have texts, or if the folder holds anything else.
    """
    from safetensors.torch import save_file

    options, folder = LocalClassifierOptions(**settings), Path(folder)
    rows = [i for i, text in enumerate(texts) if text.strip()]
    if len({labels[i] for i in rows}) < 2:
        raise UserError("cannot train a classifier: the training texts have fewer than two classes; name other files")
    info = {
        "comparable": False,
        "texts": len(rows),
        "data": _fingerprint(texts, labels),
        "class_names": list(class_names),
        **asdict(options),
    }
    if held_out is not None:
        info["held_out_data"] = _fingerprint(*held_out)
    saved = read_info(folder)
    if saved is not None and {name: saved.get(name) for name in info} == info:
        damage = _damage(folder)
        if damage is None:
            return folder
        print(f"the classifier in {folder} is incomplete ({damage}): it is trained again", file=sys.stderr)
    elif folder.exists() and any(folder.iterdir()) and not (folder / INFO_FILE).exists():
        raise UserError(
            f"{folder} holds something other than a classifier trained here: name another folder, or empty it"
        )
    if len(rows) > options.max_texts:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed)).tolist()
        rows = [rows[i] for i in order[: options.max_texts]]
    model = _train([texts[i] for i in rows], torch.tensor([labels[i] for i in rows]), len(class_names), options)
    if held_out is not None:
        info["held_out"] = label_agreement(model(held_out[0]).argmax(1).tolist(), held_out[1], class_names)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({"idf": model.idf, "table": model.table, "bias": model.bias}, partial / WEIGHTS)
    write_json(partial / "words.json", list(model.words))
    write_json(partial / INFO_FILE, nan_to_none(info))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def load_local(folder: Path) -> LocalClassifier:
    """Load the local classifier of a folder."""
    from safetensors.torch import load_file

    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return LocalClassifier(words, **load_file(folder / WEIGHTS))


def _damage(folder: Path) -> str | None:
    """What is missing or damaged in the folder of a local classifier, in a few words; None if it loads."""
    try:
        model = load_local(folder)
        if not len(model.words) == len(model.idf) == len(model.table):
            return "its words and weights differ in number"
    except Exception as error:  # of JSON, of safetensors, of a file that is missing
        return library_message(error, limit=100)
    return None


def read_info(folder: Path) -> dict[str, Any] | None:
    """Read INFO_FILE of a folder; None if it holds no local classifier."""
    try:
        info = json.loads((Path(folder) / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def label_agreement(predicted: Sequence[int], labels: Sequence[int], class_names: Sequence[str]) -> dict[str, Any]:
    """Compare predicted classes with labels: accuracy, n, by_class {name: accuracy}. nan if there is no text."""
    by_class: dict[str, float] = {}
    for c, name in enumerate(class_names):
        hits = [guess == c for guess, label in zip(predicted, labels, strict=True) if label == c]
        by_class[name] = sum(hits) / len(hits) if hits else math.nan
    correct = sum(guess == label for guess, label in zip(predicted, labels, strict=True))
    return {"accuracy": correct / len(labels) if labels else math.nan, "n": len(labels), "by_class": by_class}


def _train(texts: Sequence[str], labels: Tensor, classes: int, options: LocalClassifierOptions) -> LocalClassifier:
    """Fit multinomial logistic regression with an L2 penalty to its optimum; the problem is convex."""
    document_counts = Counter(word for text in texts for word in set(_words(text)))
    frequent = sorted((-count, word) for word, count in document_counts.items() if count >= options.min_texts)
    words = [word for _, word in frequent[: options.max_words]]
    if not words:
        raise UserError("cannot train a classifier: no word occurs in two training texts; give more texts")
    idf = torch.tensor([math.log((1 + len(texts)) / (1 + document_counts[word])) + 1 for word in words])
    packed = _pack(texts, {word: i for i, word in enumerate(words)}, idf)
    table = torch.zeros(len(words), classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([table, bias], max_iter=options.max_iter, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(_logits(*packed, table, bias), labels)
        total = fit + table.square().sum() / (2 * options.C * len(texts))
        total.backward()
        return total

    optimizer.step(loss)
    return LocalClassifier(words, idf, table.detach(), bias.detach())


def _words(text: str) -> list[str]:
    return WORD.findall(separate_characters(text).lower())


def _pack(texts: Sequence[str], words: Mapping[str, int], idf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the known words of all texts: word indices, offset of each text (n,), and tf-idf weights."""
    indices: list[int] = []
    starts: list[int] = []
    counts: list[int] = []
    for text in texts:
        starts.append(len(indices))
        found = Counter(words[word] for word in _words(text) if word in words)
        indices += found.keys()
        counts += found.values()
    rows, offsets = torch.tensor(indices, dtype=torch.long), torch.tensor(starts, dtype=torch.long)
    weights = (1 + torch.tensor(counts, dtype=torch.float32).log()) * idf[rows]
    text_of = torch.repeat_interleave(torch.arange(len(texts)), offsets.diff(append=torch.tensor([len(indices)])))
    squares = torch.zeros(len(texts)).index_add(0, text_of, weights.square())
    return rows, offsets, weights / squares.sqrt()[text_of]


def _logits(rows: Tensor, offsets: Tensor, weights: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    if not len(offsets):
        return bias.new_zeros(0, len(bias))
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights) + bias


def _fingerprint(texts: Sequence[str], labels: Sequence[int]) -> str:
    digest = sha256()
    for text, label in zip(texts, labels, strict=True):
        digest.update(text.encode("utf-8", "surrogatepass") + f"\0{label}\0".encode())
    return digest.hexdigest()
