"""Classifiers of texts, for the label accuracy of class-conditional samples.

A pretrained sequence classifier of Hugging Face, or a small one trained on the corpus (local_classifier).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.local_classifier import INFO_FILE, label_agreement, load_local, read_info, train_local
from evaluation.pretrained import load_pretrained
from evaluation.text_tokens import is_empty
from utils import tokenizer_fingerprint
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.locks import exclusive

NAME = "local_classifier"
NO_CLASS = -1  # prediction for an empty text
BATCH_SIZE = 64  # texts
MAX_LENGTH = 512  # tokens; a pretrained classifier gets longer texts truncated

Logits = Callable[[Sequence[str]], Tensor]  # texts -> (n, K), on the CPU


class Classifier:
    """Texts -> class indices of a corpus."""

    def __init__(self, logits: Logits, class_names: Sequence[str], name: str, weights: str, *, is_local: bool) -> None:
        """weights: a hash of weights and tokenizer, from which the fingerprint is made."""
        self._logits, self.class_names, self.name, self.is_local = logits, tuple(class_names), name, is_local
        self._weights = weights

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and class names: two label accuracies are comparable only if it agrees."""
        return sha256(json.dumps([self._weights, self.class_names]).encode()).hexdigest()

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> list[int]:
        """Return the most likely class of each text; NO_CLASS for an empty one."""
        classes = [NO_CLASS] * len(texts)
        nonempty = [i for i, text in enumerate(texts) if not is_empty(text)]
        if nonempty:
            for i, c in zip(nonempty, self._logits([texts[i] for i in nonempty]).argmax(1).tolist(), strict=True):
                classes[i] = c
        return classes

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> dict[str, Any]:
        """Compare predictions with labels: accuracy, n, by_class {name: accuracy}."""
        return label_agreement(self.predict(texts), labels, self.class_names)

    def protocol(self) -> dict[str, Any]:
        """Return everything that a label accuracy depends on."""
        metadata: dict[str, Any] = {"name": self.name, "fingerprint": self.fingerprint, "comparable": False}
        if self.is_local:
            metadata["note"] = (
                "trained on this corpus: compare label accuracies only with its own accuracy and with others of it"
            )
        return metadata


def load(
    source: str | Path | None,
    class_names: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    held_out: tuple[Sequence[str], Sequence[int]] | None = None,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    **training: Any,
) -> Classifier:
    """Load the classifier of a folder or hub id; with source None the local one in `folder`, after training it.

    class_names: names of the classes of the corpus, in its order. The labels of a pretrained classifier are matched to
    them by name, or by index if it has no names. training: settings of local_classifier.train_local.
    Raises UserError if there is no sequence classifier to load, or if it has other classes.
    """
    if source is None:
        if texts is None or labels is None or folder is None:
            raise UserError("no classifier: name one with --classifier, a folder or a hub id of a sequence classifier")
        with exclusive(folder):  # all ranks of a run get here at once: the first trains it
            source = train_local(texts, labels, class_names, folder, held_out=held_out, **training)
    path = Path(source)
    if (path / INFO_FILE).is_file():
        info, model = read_info(path), load_local(path)
        names = () if info is None else info["class_names"]
        order = _match_classes(dict(enumerate(names)), class_names, str(source))
        return Classifier(lambda batch: model(batch)[:, order], class_names, NAME, _hash_local(model), is_local=True)
    return _pretrained(source, class_names, device)


def _hash_local(model: Any) -> str:
    return fingerprint(model) + sha256("\0".join(model.words).encode("utf-8", "surrogatepass")).hexdigest()


def _pretrained(source: str | Path, class_names: Sequence[str], device: str | torch.device) -> Classifier:
    found = load_pretrained(
        "AutoModelForSequenceClassification", source, what="classifier", flag="--classifier", kind="sequence classifier"
    )
    tokenizer = found.tokenizer
    network: Any = found.model.eval().requires_grad_(False).to(device)
    order = _match_classes(network.config.id2label, class_names, str(source))
    max_length = min(
        MAX_LENGTH, tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", MAX_LENGTH)
    )

    def compute_logits(texts: Sequence[str]) -> Tensor:
        rows = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # similar lengths together: less padding
        logits = torch.zeros(len(texts), len(order))
        for start in range(0, len(rows), BATCH_SIZE):
            part = rows[start : start + BATCH_SIZE]
            batch = tokenizer(
                [texts[i] for i in part],
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
                split_special_tokens=True,  # "[SEP]" in a text is text
            )
            logits[part] = network(**batch.to(device)).logits.float().cpu()[:, order]
        return logits

    weights = fingerprint(network) + tokenizer_fingerprint.fingerprint(tokenizer)
    return Classifier(compute_logits, class_names, found.name, weights, is_local=False)


def _match_classes(theirs: dict[int, str], ours: Sequence[str], source: str) -> list[int]:
    """Return the output index of the classifier for each class of the corpus."""
    for form in (str, _normalize):  # "-1" and "1" are one without their punctuation
        known = {form(name): int(index) for index, name in theirs.items()}
        wanted = [form(name) for name in ours]
        if len(known) == len(theirs) and len({*wanted}) == len(ours) and known.keys() >= {*wanted}:
            return [known[name] for name in wanted]
    unnamed = all(_normalize(name) == f"label{index}" for index, name in theirs.items())
    if len(theirs) == len(ours) and (unnamed or all(name.isdecimal() for name in ours)):
        return list(range(len(ours)))
    raise UserError(
        f"classifier {source} has the classes {', '.join(theirs.values())}, but the corpus has "
        f"{', '.join(ours)}: name a classifier of these with --classifier"
    )


def _normalize(name: str) -> str:
    return "".join(c for c in str(name).casefold() if c.isalnum())
