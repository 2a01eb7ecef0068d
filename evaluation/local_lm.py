"""A small causal language model trained on the corpus at hand, to score texts where no pretrained one can be had.

It ranks samples of one corpus against each other; its perplexities and MAUVE scores compare with nothing published, and
the file FACTS in its folder says so. The folder is an ordinary Hugging Face one of GPT-2's layout.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from utils.errors import UserError
from utils.preemption import give_way
from utils.run_folder import write_json

NAME = "home"  # stands in metric keys where gpt2-large would
FACTS = "home_scorer.json"
START = "<|endoftext|>"  # begins and ends every text, as in GPT-2


@dataclass(frozen=True)
class LocalLMOptions:
    """Sizes and training of the home scorer; the defaults suit some ten thousand short texts and a CPU."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    vocab_size: int = 2048  # byte-level subwords at most; a small vocabulary of words needs, and gets, fewer
    max_length: int = 256  # tokens
    steps: int = 500
    batch: int = 32  # texts; small, because steps are what a small model needs
    lr: float = 6e-3  # peak, after a tenth of the steps; falls to nothing along a cosine
    weight_decay: float = 0.01
    seed: int = 0


def train_local(
    texts: Sequence[str],
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Path:
    """Train a home scorer on the texts into `folder`, unless the same one is there already; returns the folder.

    settings: fields of HomeScorerOptions. Another scorer of ours in the folder is replaced once the new one is whole; a
    folder that holds anything else is refused. progress is given a line every few seconds (default: to stderr).
    """
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    options, folder = LocalLMOptions(**settings), Path(folder)
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise UserError("the scorer has no text to learn from: the corpus is empty")
    facts = {"comparable": False, "texts": len(kept), "data": _fingerprint(kept), **asdict(options)}
    if _facts_of(folder) is not None and _facts_of(folder) == facts:
        return folder
    if folder.exists() and any(folder.iterdir()) and _facts_of(folder) is None:
        raise UserError(f"{folder} holds something other than a scorer trained here: name another folder, or empty it")
    say = progress or (lambda line: print(line, file=sys.stderr, flush=True))

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_subwords(kept, options), bos_token=START, eos_token=START, model_max_length=options.max_length
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=options.max_length,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )  # one pass over the corpus: there is nothing to overfit to
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = GPT2LMHeadModel(config).to(device)
    _train(model, tokenizer, kept, options, say)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_json(partial / FACTS, facts)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _train(
    model: Any, tokenizer: Any, texts: Sequence[str], options: LocalLMOptions, say: Callable[[str], None]
) -> None:
    ids = [
        [tokenizer.bos_token_id, *row[: options.max_length - 2], tokenizer.eos_token_id]
        for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    ]
    order = _batches([len(row) for row in ids], options)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=options.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    device = next(model.parameters()).device
    model.train()
    began = said = time.monotonic()
    for step, rows in enumerate(order, start=1):
        give_way()
        batch, target = _pad([ids[i] for i in rows], tokenizer.eos_token_id)
        logits = model(input_ids=batch.to(device)).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten().to(device), ignore_index=-100)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * _lr_factor(step, options.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now = time.monotonic()
        if now - said > 5 or step in (1, options.steps):
            rate = step / (now - began)
            say(
                f"scorer: step {step}/{options.steps}  loss {loss.item():.3f} nats/token  {rate:.1f} steps/s  "
                f"{(options.steps - step) / rate:.0f} s left"
            )
            said = now
    model.eval()


def _batches(lengths: Sequence[int], options: LocalLMOptions) -> list[list[int]]:
    """The rows of each step: epochs in random order, in which texts of like length share a batch to save padding."""
    generator = torch.Generator().manual_seed(options.seed)
    batches: list[list[int]] = []
    while len(batches) < options.steps:
        rows = torch.randperm(len(lengths), generator=generator).tolist()
        pool = 16 * options.batch
        rows = [
            i
            for start in range(0, len(rows), pool)
            for i in sorted(rows[start : start + pool], key=lambda i: lengths[i])
        ]
        epoch = [rows[start : start + options.batch] for start in range(0, len(rows), options.batch)]
        batches += [epoch[i] for i in torch.randperm(len(epoch), generator=generator).tolist()]
    return batches[: options.steps]


def _pad(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T), padded on the right where a causal model never looks; the same with -100 for what is not learned."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, ids.masked_fill(torch.arange(longest) >= lengths[:, None], -100)


def _lr_factor(step: int, steps: int) -> float:
    """Linear over the first tenth, then half a cosine down to 0 after the last step. step: from 1."""
    warm = max(1, steps // 10)
    return step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm + 1)))


def _subwords(texts: Sequence[str], options: LocalLMOptions) -> Any:
    """A byte-level BPE tokenizer: nothing is unknown to it, so that no garbled sample scores as one cheap token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[START],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts[:50_000], trainer)
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, half a second of loading needs none, and its reports of what it loaded."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """What a folder says of the scorer in it; None where it holds none of ours."""
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _fingerprint(texts: Sequence[str]) -> str:
    digest = sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
