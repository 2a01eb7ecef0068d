"""The classifier that says which class a text reads like: one of the Hugging Face kind, or a small one trained here.

Where a language model that scores texts is a judge of fluency (scorers), this is the judge of whether class-conditional
samples are of the class asked for.
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

from evaluation.checks import check_weights_complete
from evaluation.local_classifier import FACTS, label_agreement, load_local, read_info, train_local
from evaluation.local_lm import quiet
from evaluation.text_tokens import is_empty
from utils import tokenizer_fingerprint
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.hub import lookup
from utils.locks import alone

NAME = "home"
NO_CLASS = -1  # of a text without a word
BATCH = 64  # texts
MAX_LENGTH = 512  # tokens of a text that a pretrained classifier reads, at most

Logits = Callable[[Sequence[str]], Tensor]  # texts -> (n, K), on the CPU


class Classifier:
    """Texts -> classes of a corpus, by their numbers there."""

    def __init__(self, logits: Logits, class_names: Sequence[str], name: str, weights: str, *, home: bool) -> None:
        """weights: what the fingerprint is made of, beside the names of the classes."""
        self._logits, self.class_names, self.name, self.home = logits, tuple(class_names), name, home
        self._weights = weights

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256: two label accuracies compare only where this agrees."""
        return sha256(json.dumps([self._weights, self.class_names]).encode()).hexdigest()

    @torch.inference_mode()
    def judge(self, texts: Sequence[str]) -> list[int]:
        """The class of each text; NO_CLASS for an empty one."""
        found = [NO_CLASS] * len(texts)
        full = [i for i, text in enumerate(texts) if not is_empty(text)]
        if full:
            for i, c in zip(full, self._logits([texts[i] for i in full]).argmax(1).tolist(), strict=True):
                found[i] = c
        return found

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> dict[str, Any]:
        """Of texts whose classes are known: accuracy, n, by_class {name: accuracy}."""
        return label_agreement(self.judge(texts), labels, self.class_names)

    def protocol(self) -> dict[str, Any]:
        """What a label accuracy depends on."""
        facts: dict[str, Any] = {"name": self.name, "fingerprint": self.fingerprint, "comparable": False}
        if self.home:
            facts["note"] = "trained on this corpus: label accuracies compare only beside its own, and with its own"
        return facts


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
    """The classifier in a folder or of a hub id; with source None the home classifier in `folder`, trained first.

    class_names: of the corpus, in its order; a pretrained classifier's labels are matched to them by name, or by number
    where it has no names for them. training: settings of home_classifier.train_small. UserError where nothing that can
    be loaded is found, or where its classes are others.
    """
    if source is None:
        if texts is None or labels is None or folder is None:
            raise UserError("no classifier: pass --classifier with a folder or a hub id of a sequence classifier")
        with alone(folder):  # ranks of one run ask for it at once: the first trains it
            source = train_local(texts, labels, class_names, folder, held_out=held_out, **training)
    path = Path(source)
    if (path / FACTS).is_file():
        facts, model = read_info(path), load_local(path)
        names = () if facts is None else facts["class_names"]
        order = _order(dict(enumerate(names)), class_names, str(source))
        return Classifier(lambda some: model(some)[:, order], class_names, NAME, _of_home(model), home=True)
    return _pretrained(source, class_names, device)


def _of_home(model: Any) -> str:
    return fingerprint(model) + sha256("\0".join(model.words).encode("utf-8", "surrogatepass")).hexdigest()


def _pretrained(source: str | Path, class_names: Sequence[str], device: str | torch.device) -> Classifier:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = Path(source)
    if not path.is_dir() and (path.is_absolute() or str(source).startswith((".", "~"))):
        raise UserError(
            f"classifier {source}: there is no such folder; --classifier takes a folder or a hub id of a sequence "
            "classifier"
        )
    where = {"trust_remote_code": False} | ({} if path.is_dir() else lookup())
    try:
        with quiet():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, **where
            )
        tokenizer = AutoTokenizer.from_pretrained(str(source), **where)
    except (OSError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"classifier {source} cannot be loaded ({said}): --classifier takes a local folder, or a hub id where the "
            "hub is reachable, of a sequence classifier"
        ) from error
    check_weights_complete(model, set(found["missing_keys"]), f"classifier {source}", "sequence classifier")
    network: Any = model.eval().requires_grad_(False).to(device)
    order = _order(network.config.id2label, class_names, str(source))
    longest = min(
        MAX_LENGTH, tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", MAX_LENGTH)
    )

    def logits(texts: Sequence[str]) -> Tensor:
        rows = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # like lengths together
        found = torch.zeros(len(texts), len(order))
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            batch = tokenizer(
                [texts[i] for i in some], truncation=True, max_length=longest, padding=True, return_tensors="pt"
            )
            found[some] = network(**batch.to(device)).logits.float().cpu()[:, order]
        return found

    name = str(source).rstrip("/").split("/")[-1]
    weights = fingerprint(network) + tokenizer_fingerprint.fingerprint(tokenizer)
    return Classifier(logits, class_names, name, weights, home=False)


def _order(theirs: dict[int, str], ours: Sequence[str], source: str) -> list[int]:
    """For each class of the corpus, which output of the classifier means it."""
    known = {_plain(name): int(number) for number, name in theirs.items()}
    if all(_plain(name) in known for name in ours):
        return [known[_plain(name)] for name in ours]
    numbered = all(_plain(name) == f"label{number}" for number, name in theirs.items())
    if len(theirs) == len(ours) and (numbered or all(name.isdecimal() for name in ours)):
        return list(range(len(ours)))
    raise UserError(
        f"classifier {source} knows the classes {', '.join(theirs.values())}, and the corpus has "
        f"{', '.join(ours)}: give --classifier one that was trained for these"
    )


def _plain(name: str) -> str:
    return "".join(c for c in str(name).casefold() if c.isalnum())
