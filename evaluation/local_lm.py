"""A small causal language model trained on the corpus itself: the scorer if no pretrained one is given.

It ranks samples of one corpus against each other. Its perplexities and MAUVE scores are not comparable with published
ones, which INFO_FILE in its folder records. The folder is a Hugging Face model folder with GPT-2's layout.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from utils.errors import UserError, library_message
from utils.hub import quiet_transformers
from utils.preemption import check_interrupt
from utils.run_folder import write_json

NAME = "local_lm"  # part of metric keys, like gpt2-large for a pretrained scorer
INFO_FILE = "local_lm.json"
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json")  # without one of them it does not load
START_TOKEN = "<|endoftext|>"  # begins and ends every text, as in GPT-2


@dataclass(frozen=True)
class LocalLMOptions:
    """Sizes and training of the local language model. The defaults suit about ten thousand short texts and a CPU."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    vocab_size: int = 2048  # byte-level subwords, at most; a corpus of few words gets fewer
    max_length: int = 256  # tokens
    steps: int = 500
    batch_size: int = 32  # texts; small, because a small model needs many steps
    lr: float = 6e-3  # peak, reached after a tenth of the steps; then a cosine to 0
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
    """Train a local language model on the texts and save it in `folder` unless it is there. Returns the folder.

    settings: fields of LocalLMOptions. progress: called with a line every few seconds (default: print to stderr).
    A local language model of other texts or options in the folder, or one of which something is missing, is replaced
    once the new one is complete. Of the ranks of a run only rank 0 calls this (utils.shared). Raises UserError if the
    corpus has no text, or if the folder holds anything else.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    options, folder = LocalLMOptions(**settings), Path(folder)
    nonempty = [text for text in texts if text.strip()]
    if not nonempty:
        raise UserError("cannot train a scorer: the corpus is empty; give training texts, or a scorer with --scorer")
    info = {"comparable": False, "texts": len(nonempty), "data": _fingerprint(nonempty), **asdict(options)}
    saved = _read_info(folder)
    log = progress or (lambda line: print(line, file=sys.stderr, flush=True))
    if saved is not None and {name: saved.get(name) for name in info} == info:
        damage = _damage(folder, saved)
        if damage is None:
            return folder
        log(f"the scorer in {folder} is incomplete ({damage}): it is trained again")
    elif folder.exists() and any(folder.iterdir()) and not (folder / INFO_FILE).exists():
        raise UserError(f"{folder} holds something other than a scorer trained here: name another folder, or empty it")

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train_tokenizer(nonempty, options),
        bos_token=START_TOKEN,
        eos_token=START_TOKEN,
        model_max_length=options.max_length,
        split_special_tokens=True,  # START_TOKEN in a text is text
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=options.max_length,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # no dropout: about one pass over the corpus does not overfit
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = GPT2LMHeadModel(config).to(device)
    _train(model, tokenizer, nonempty, options, log)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if not (partial / WEIGHTS).is_file():  # transformers writes nothing on ranks other than 0
        raise RuntimeError(f"{partial} got no weights: only rank 0 may train a scorer")
    write_json(partial / INFO_FILE, info | {"sha256": {file: _sha256(partial / file) for file in FILES}})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _train(
    model: Any, tokenizer: Any, texts: Sequence[str], options: LocalLMOptions, log: Callable[[str], None]
) -> None:
    ids = [
        [tokenizer.bos_token_id, *row[: options.max_length - 2], tokenizer.eos_token_id]
        for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    ]
    batches = _batches([len(row) for row in ids], options)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    device = next(model.parameters()).device
    model.train()
    start = last_log = time.monotonic()
    for step, rows in enumerate(batches, start=1):
        check_interrupt()
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
        if now - last_log > 5 or step in (1, options.steps):
            rate = step / (now - start)
            log(
                f"scorer: step {step}/{options.steps}  loss {loss.item():.3f} nats/token  {rate:.1f} steps/s  "
                f"{(options.steps - step) / rate:.0f} s left"
            )
            last_log = now
    model.eval()


def _batches(lengths: Sequence[int], options: LocalLMOptions) -> list[list[int]]:
    """Return the rows of each step: epochs in random order; texts of similar length share a batch to save padding."""
    generator = torch.Generator().manual_seed(options.seed)
    batches: list[list[int]] = []
    while len(batches) < options.steps:
        rows = torch.randperm(len(lengths), generator=generator).tolist()
        pool = 16 * options.batch_size
        rows = [
            i
            for start in range(0, len(rows), pool)
            for i in sorted(rows[start : start + pool], key=lambda i: lengths[i])
        ]
        epoch = [rows[start : start + options.batch_size] for start in range(0, len(rows), options.batch_size)]
        batches += [epoch[i] for i in torch.randperm(len(epoch), generator=generator).tolist()]
    return batches[: options.steps]


def _pad(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (B, T) padded on the right, to which a causal model does not attend, and targets with -100 there."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, ids.masked_fill(torch.arange(longest) >= lengths[:, None], -100)


def _lr_factor(step: int, steps: int) -> float:
    """Return the factor of the peak learning rate: linear warmup, then half a cosine to 0. step: counts from 1."""
    warm = max(1, steps // 10)
    return step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm + 1)))


def _train_tokenizer(texts: Sequence[str], options: LocalLMOptions) -> Any:
    """Train a byte-level BPE tokenizer. It has no unknown token, so a garbled sample is never one likely token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[START_TOKEN],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts[:50_000], trainer)
    return tokenizer


def _read_info(folder: Path) -> dict[str, Any] | None:
    """Read INFO_FILE of a folder; None if it holds no local language model."""
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def _damage(folder: Path, info: dict[str, Any]) -> str | None:
    """What is missing or damaged in the folder of a local language model, in a few words; None if it loads.

    info: its INFO_FILE; those of older releases hold no checksums, so there shapes alone are compared.
    """
    from safetensors import safe_open
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    checksums = info.get("sha256")
    try:
        if isinstance(checksums, dict):
            return next(
                (f"{name} has changed" for name in FILES if _sha256(folder / name) != checksums.get(name)), None
            )
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config.from_pretrained(folder))
        with safe_open(folder / WEIGHTS, "pt") as weights:
            found = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # of three libraries
        return library_message(error, limit=100)
    expected = {name: list(x.shape) for name, x in model.state_dict().items() if name != "lm_head.weight"}  # tied
    wrong = next((name for name, shape in expected.items() if found.get(name) != shape), None)
    return f"{WEIGHTS} lacks {wrong}" if wrong else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _fingerprint(texts: Sequence[str]) -> str:
    digest = sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
