"""The scorer: a causal language model that gives log-likelihoods for perplexity and hidden states for MAUVE.

Any causal language model of Hugging Face, from a folder or by hub id. Published results of latent text diffusion use
GPT-2 large; results of a scorer trained here (local_lm) are marked as not comparable with them.
"""

from __future__ import annotations

import json
import math
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

from evaluation.checks import check_causal
from evaluation.disk_cache import RecentArrays, cached_arrays
from evaluation.local_lm import INFO_FILE, NAME, train_local
from evaluation.pretrained import load_pretrained
from evaluation.text_tokens import is_empty
from utils import tokenizer_fingerprint
from utils.checkpoints import fingerprint
from utils.distributed import DistContext, broadcast_object, gather_objects
from utils.errors import UserError
from utils.float64 import widened
from utils.heartbeat import beat
from utils.local_models import find_model
from utils.locks import exclusive

PUBLISHED = {"model_type": "gpt2", "n_layer": 36, "n_embd": 1280, "vocab_size": 50257}  # GPT-2 large
DEFAULT = "smollm2-135m"  # pretrained, and to be had without the hub: its scores compare between runs and corpora
BATCH_TOKENS = 4096  # tokens with padding: the logits of a 50,000-word vocabulary take 0.8 GB
FEATURE_CACHE_SIZE = 16  # feature arrays in memory: every evaluation scores the same references again


@dataclass(frozen=True)
class Likelihood:
    """Total negative log-likelihood and number of tokens of each text. An empty text has nan and 0."""

    nll: list[float]  # nats, summed over the tokens of the text; the start token precedes the first
    tokens: list[int]


class Scorer:
    """A causal language model in evaluation mode, with its tokenizer."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, name: str, *, comparable: bool, max_length: int | None = None
    ):
        """name: becomes part of metric keys. max_length: longer texts are truncated, in tokens with the start token."""
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.comparable = tokenizer, name, comparable
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError(
                f"scorer {name}: its tokenizer has no start and no end token to precede the first word; name another"
            )
        self.start_id: int = start
        config: Any = model.config
        limit = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None) or 1024
        self.max_length = min(max_length or limit, limit)  # tokens, the start token among them
        self.cache_dir: Path | None = None  # disk cache of the features of references
        self.dist: DistContext | None = None  # set while other ranks compute shards (evaluation.distributed)
        self._features = RecentArrays(FEATURE_CACHE_SIZE)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and tokenizer: two results are comparable only if it agrees."""
        return digest([fingerprint(self.model)], tokenizer_fingerprint.fingerprint(self.tokenizer))

    def nll(self, texts: Sequence[str]) -> Likelihood:
        """Compute the negative log-likelihood of each text given the start token, in the order of the texts."""
        nll, tokens = [math.nan] * len(texts), [0] * len(texts)
        for rows, totals, counts in self._all_shards("nll", texts):
            for i, total, count in zip(rows, totals, counts, strict=True):
                nll[i], tokens[i] = total, count
        return Likelihood(nll, tokens)

    def _nll(self, texts: Sequence[str], _: int, shard_index: int, num_shards: int) -> Iterator[tuple[Any, ...]]:
        """Yield rows, their total NLL and their number of tokens, for the batches of one shard."""
        encoded = self._encode(texts, self.max_length - 1, add_special_tokens=False)
        for rows in islice(length_batches([len(ids) + 1 for ids in encoded]), shard_index, None, num_shards):
            rows = [i for i in rows if encoded[i]]
            if not rows:
                continue
            beat()
            ids, mask = self._pad([[self.start_id, *encoded[i]] for i in rows])  # (B, T)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]  # (B, T - 1, V)
            losses = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")  # (B, T - 1)
            yield rows, (widened(losses) * mask[:, 1:]).sum(1).tolist(), [len(encoded[i]) for i in rows]

    def features(self, texts: Sequence[str], max_length: int = 256, *, on_disk: bool = False) -> np.ndarray:
        """Return the last layer's hidden state at the last token of each text, as in mauve-text: (n, d) float32.

        Differs from mauve-text, which drops empty texts: here an empty text gets the state at the start token, so that
        empty samples lower the score. on_disk: also cache in self.cache_dir; for texts that are scored again.
        """
        key = digest(texts, max_length)
        folder = self.cache_dir if on_disk else None

        def make() -> np.ndarray:
            name = f"features-{self.fingerprint[:16]}-{key[:24]}" if folder else ""
            return cached_arrays(folder, name, lambda: {"features": self._compute_features(texts, max_length)})[
                "features"
            ]

        return self._features.get(key, make)

    def _compute_features(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        width = getattr(self.model.config, "hidden_size", None) or self.model.config.n_embd
        features = np.zeros((len(texts), width), np.float32)
        for rows, states in self._all_shards("features", texts, max_length):
            features[rows] = states
        return features

    def _states(
        self, texts: Sequence[str], max_length: int, shard_index: int, num_shards: int
    ) -> Iterator[tuple[Any, ...]]:
        """Yield rows and their features (n, d), for the batches of one shard."""
        encoded = [ids or [self.start_id] for ids in self._encode(texts, min(max_length, self.max_length))]
        for rows in islice(length_batches([len(ids) for ids in encoded]), shard_index, None, num_shards):
            beat()
            ids, mask = self._pad([encoded[i] for i in rows])
            states = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, d)
            last = states[torch.arange(len(rows), device=ids.device), mask.sum(1) - 1]
            yield rows, last.float().cpu().numpy()

    @torch.inference_mode()
    def shard(
        self, what: str, texts: Sequence[str], max_length: int, shard_index: int, num_shards: int
    ) -> list[tuple[Any, ...]]:
        """Compute one process's batches of `nll` or `features`: every num_shards-th batch, from shard_index on."""
        compute = {"nll": self._nll, "features": self._states}[what]
        return list(compute(texts, max_length, shard_index, num_shards))

    def _all_shards(self, what: str, texts: Sequence[str], max_length: int = 0) -> list[tuple[Any, ...]]:
        """Compute all batches; with self.dist set, every process computes its shard."""
        if self.dist is None:
            return self.shard(what, texts, max_length, 0, 1)
        broadcast_object(self.dist, (what, list(texts), max_length))
        mine = self.shard(what, texts, max_length, self.dist.rank, self.dist.world_size)
        return [batch for shard in gather_objects(self.dist, [mine]) for batch in shard]

    def _encode(self, texts: Sequence[str], max_length: int, **kwargs: Any) -> list[list[int]]:
        """Return the token ids of each text, truncated to max_length; an empty list for an empty text."""
        nonempty = [text for text in texts if not is_empty(text)]
        # verbose=False: the truncation is recorded in the protocol, and the tokenizer would warn of every long text
        ids = iter(
            self.tokenizer(
                nonempty,
                truncation=True,
                max_length=max_length,
                verbose=False,
                split_special_tokens=True,  # "<|endoftext|>" in a text is text
                **kwargs,
            )["input_ids"]  # fmt: skip
            if nonempty
            else []
        )
        return [[] if is_empty(text) else list(next(ids)) for text in texts]

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, (B, T) int64 each, padded on the right, to which a causal model does not attend."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.start_id] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids.to(self.device), mask.to(self.device)


def source_of(flag: str | None, *, or_default: bool) -> str | None:
    """Return the folder or hub id that --scorer means; None: a small model that is trained on the corpus.

    Unset and or_default, it is the folder of DEFAULT, if `python -m latent_models.pretrained` has made it.
    """
    if flag == NAME and not Path(flag).is_dir():
        return None
    folder = find_model(DEFAULT) if flag is None and or_default else None
    return str(folder) if folder else flag


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
    """Load the scorer of a folder or hub id; with source None the local one in `folder`, after training it on `texts`.

    training: settings of local_lm.train_local. Raises UserError if there is no causal language model to load.
    """
    if source is None:
        if texts is None or folder is None:
            raise UserError("no scorer: name one with --scorer, a folder or a hub id of a causal language model")
        with exclusive(folder):  # all ranks of a run get here at once: the first trains it
            source = train_local(texts, folder, device=device, progress=progress, **training)
    found = load_pretrained(
        "AutoModelForCausalLM", source, what="scorer", flag="--scorer", kind="causal language model"
    )
    model = found.model
    check_causal(model.eval(), f"scorer {source}")
    is_local = (Path(source) / INFO_FILE).is_file()
    published = all(getattr(model.config, key, None) == value for key, value in PUBLISHED.items())
    name = NAME if is_local else found.name
    return Scorer(model.to(device), found.tokenizer, name, comparable=published and not is_local, max_length=max_length)


def length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield rows of similar length, at most BATCH_TOKENS tokens with padding (a longer text is a batch of its own)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # longest first: it runs out of memory at once
        if batch and lengths[batch[0]] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def digest(texts: Sequence[str], *others: Any) -> str:
    """Return a hash of texts and of whatever else JSON can hold."""
    return sha256(json.dumps([list(texts), others]).encode()).hexdigest()
