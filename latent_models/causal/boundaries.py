"""The tokens between which a causal language model puts a text.

    GPT-2, SmolLM2, Qwen   <|endoftext|> text <|endoftext|>    the separator of documents in pretraining
    Llama, own tokenizers  <s> text </s>                       start and end of the tokenizer

A chat variant has other start and end tokens, for turns of a chat; the separator of documents is in its vocabulary all
the same, and is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.errors import UserError

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Boundaries:
    """Token ids around a text."""

    start_id: int
    end_id: int
    pad_id: int  # fills rows of a batch; no other position attends to it
    between: tuple[int, ...]  # after a prompt, before the text
    forbidden: tuple[int, ...]  # special tokens that no text contains
    opening: tuple[int, ...] = ()  # after the start: of an encoder-decoder, see encoder_decoder.py


def boundaries_of(tokenizer: Any, config: Any, name: str) -> Boundaries:
    """The boundaries of a model. name: the model, for the message. Raises UserError if nothing ends a text."""
    separator = tokenizer.get_added_vocab().get(SEPARATOR)
    end = _first(separator, tokenizer.eos_token_id, getattr(config, "eos_token_id", None))
    if end is None:
        raise UserError(f"the tokenizer of {name} has no end token, so no text would end: name another model")
    start = _first(separator, tokenizer.bos_token_id, end)
    pad = _first(tokenizer.pad_token_id, end)
    assert start is not None and pad is not None
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    is_known = bool(line_end) and tokenizer.unk_token_id not in line_end and tokenizer.decode(line_end) == "\n"
    # the model has no logits of special tokens that were added behind its embeddings
    known = {i for i in tokenizer.all_special_ids if i < config.vocab_size}
    special = {*known, start, pad} - {end}
    return Boundaries(start, end, pad, tuple(line_end) if is_known else (end,), tuple(sorted(special)))


def _first(*ids: int | list[int] | None) -> int | None:
    """The first id that is given; of a list its first."""
    for found in ids:
        if isinstance(found, list):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return None
