"""The language model that judges texts: negative log-likelihoods for perplexity, hidden states for MAUVE.

Any causal language model of the Hugging Face kind, from a folder or by hub id. Published figures of latent text
diffusion use GPT-2 large; a scorer trained here (home_scorer) says that its figures compare with none of them.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.checks import check_causal, check_weights_complete
from evaluation.disk_cache import cached_arrays
from evaluation.local_lm import FACTS, NAME, quiet, train_local
from evaluation.text_tokens import is_empty
from utils import tokenizer_fingerprint
from utils.checkpoints import fingerprint
from utils.distributed import Ranks, broadcast_object, gather_objects
from utils.errors import UserError
from utils.hub import lookup
from utils.locks import alone

PUBLISHED = {"model_type": "gpt2", "n_layer": 36, "n_embd": 1280, "vocab_size": 50257}  # GPT-2 large
BATCH_TOKENS = 4096  # padding included: the logits of a 50,000-word vocabulary take 0.8 GB
FEATURE_CACHE_SIZE = 16  # feature arrays kept: references are judged again at every evaluation


@dataclass(frozen=True)
class Likelihood:
    """Total negative log-likelihood of each text and the tokens it is spread over. An empty text has nan and 0."""

    nll: list[float]  # nats, summed over the text's tokens, the first given the start token
    tokens: list[int]


class Scorer:
    """A causal language model in evaluation mode, with its tokenizer."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, name: str, *, comparable: bool, max_length: int | None = None
    ):
        """name: short, it becomes part of metric keys. max_length: tokens of a text that are scored, at most."""
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.comparable = tokenizer, name, comparable
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError(
                f"scorer {name}: its tokenizer has neither a start nor an end token to score the first word from"
            )
        self.start: int = start
        config: Any = model.config
        limit = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None) or 1024
        self.max_length = min(max_length or limit, limit)  # tokens, the start token among them
        self.folder: Path | None = None  # where features of references are kept
        self.ranks: Ranks | None = None  # processes that help, while they do (evaluation.distributed)
        self._features: OrderedDict[str, np.ndarray] = OrderedDict()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and tokenizer: two figures compare only where this agrees."""
        return _digest([fingerprint(self.model)], tokenizer_fingerprint.fingerprint(self.tokenizer))

    def nll(self, texts: Sequence[str]) -> Likelihood:
        """Negative log-likelihood of each text given the start token, in the texts' order."""
        nll, tokens = [math.nan] * len(texts), [0] * len(texts)
        for rows, totals, counts in self._parts("nll", texts):
            for i, total, count in zip(rows, totals, counts, strict=True):
                nll[i], tokens[i] = total, count
        return Likelihood(nll, tokens)

    def _nll(self, texts: Sequence[str], _: int, turn: int, turns: int) -> Iterator[tuple[Any, ...]]:
        """Rows, their totals and their numbers of tokens, of every turns-th batch."""
        encoded = self._encode(texts, self.max_length - 1, add_special_tokens=False)
        for rows in islice(_batches([len(ids) + 1 for ids in encoded]), turn, None, turns):
            rows = [i for i in rows if encoded[i]]
            if not rows:
                continue
            ids, mask = self._pad([[self.start, *encoded[i]] for i in rows])  # (B, T)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]  # (B, T - 1, V)
            losses = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")  # (B, T - 1)
            yield rows, (losses.double() * mask[:, 1:]).sum(1).tolist(), [len(encoded[i]) for i in rows]

    def features(self, texts: Sequence[str], max_length: int = 256, *, keep: bool = False) -> np.ndarray:
        """Last layer's hidden state at each text's last token, as mauve-text takes it: (n, d) float32.

        Differs from mauve-text, which leaves empty texts out: here each is the state at the start token alone, so that
        a model pays for what it failed to write. keep: on disk, too, below self.folder; for texts that come again.
        """
        key = _digest(texts, max_length)
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        folder = self.folder if keep else None
        name = f"features-{self.fingerprint[:16]}-{key[:24]}" if folder else ""
        found = cached_arrays(folder, name, lambda: {"features": self._computed(texts, max_length)})["features"]
        self._features[key] = found
        while len(self._features) > FEATURE_CACHE_SIZE:
            self._features.popitem(last=False)
        return found

    def _computed(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        width = getattr(self.model.config, "hidden_size", None) or self.model.config.n_embd
        found = np.zeros((len(texts), width), np.float32)
        for rows, states in self._parts("features", texts, max_length):
            found[rows] = states
        return found

    def _states(self, texts: Sequence[str], max_length: int, turn: int, turns: int) -> Iterator[tuple[Any, ...]]:
        """Rows and their features, of every turns-th batch."""
        encoded = [ids or [self.start] for ids in self._encode(texts, min(max_length, self.max_length))]
        for rows in islice(_batches([len(ids) for ids in encoded]), turn, None, turns):
            ids, mask = self._pad([encoded[i] for i in rows])
            states = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, d)
            last = states[torch.arange(len(rows), device=ids.device), mask.sum(1) - 1]
            yield rows, last.float().cpu().numpy()

    @torch.inference_mode()
    def part(self, what: str, texts: Sequence[str], max_length: int, turn: int, turns: int) -> list[tuple[Any, ...]]:
        """One process' share of `nll` or `features`: every turns-th batch."""
        deed = {"nll": self._nll, "features": self._states}[what]
        return list(deed(texts, max_length, turn, turns))

    def _parts(self, what: str, texts: Sequence[str], max_length: int = 0) -> list[tuple[Any, ...]]:
        """The shares of all processes that help; without any, everything."""
        if self.ranks is None:
            return self.part(what, texts, max_length, 0, 1)
        broadcast_object(self.ranks, (what, list(texts), max_length))
        shares = gather_objects(self.ranks, [self.part(what, texts, max_length, self.ranks.rank, self.ranks.world)])
        return [part for share in shares for part in share]

    def _encode(self, texts: Sequence[str], max_length: int, **how: Any) -> list[list[int]]:
        """Token ids of each text, cut to max_length; none for an empty text."""
        full = [text for text in texts if not is_empty(text)]
        # verbose=False: cutting is meant, and is in the protocol; the tokenizer would warn of every long text
        coded = iter(
            self.tokenizer(full, truncation=True, max_length=max_length, verbose=False, **how)["input_ids"]
            if full
            else []
        )
        return [[] if is_empty(text) else list(next(coded)) for text in texts]

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, T) int64 each, padded on the right, where a causal model never looks."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.start] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids.to(self.device), mask.to(self.device)


def load(
    source: str | Path | None,
    *,
    texts: Sequence[str] | None = None,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    max_length: int | None = None,
    progress: Callable[[str], None] | None = None,
    **training: Any,
) -> Scorer:
    """The scorer in a folder or of a hub id; with source None the home scorer in `folder`, trained on `texts` first.

    training: settings of home_scorer.train_small. UserError where nothing that can be loaded is found.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if source is None:
        if texts is None or folder is None:
            raise UserError("no scorer: pass --scorer with a folder or a hub id of a causal language model")
        with alone(folder):  # ranks of one run ask for it at once: the first trains it
            source = train_local(texts, folder, device=device, progress=progress, **training)
    path = Path(source)
    if not path.is_dir() and (path.is_absolute() or str(source).startswith((".", "~"))):
        raise UserError(
            f"scorer {source}: there is no such folder; --scorer takes a folder or a hub id of a causal language model"
        )
    where = {"trust_remote_code": False} | ({} if path.is_dir() else lookup())
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, **where
            )
        tokenizer = AutoTokenizer.from_pretrained(str(source), **where)
    except (OSError, ValueError) as error:
        raise UserError(
            f"scorer {source} cannot be loaded ({_first_line(error)}): --scorer takes a local folder, or a hub id "
            "where the hub is reachable, of a causal language model"
        ) from error
    check_weights_complete(model, set(found["missing_keys"]), f"scorer {source}", "causal language model")
    check_causal(model.eval(), f"scorer {source}")
    home = (path / FACTS).is_file()
    published = all(getattr(model.config, key, None) == value for key, value in PUBLISHED.items())
    name = NAME if home else str(source).rstrip("/").split("/")[-1]
    return Scorer(model.to(device), tokenizer, name, comparable=published and not home, max_length=max_length)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length together, at most BATCH_TOKENS of them with padding (a longer text goes alone)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # the longest first: too large fails at once
        if batch and lengths[batch[0]] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _digest(texts: Sequence[str], *facts: Any) -> str:
    return sha256(json.dumps([list(texts), facts]).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
