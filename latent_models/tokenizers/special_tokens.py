"""Layouts of special tokens: the tokens in order of their ids, and their roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class SpecialTokens:
    """A layout of special tokens."""

    tokens: tuple[str, ...]  # ids 0, 1, ...
    start: str
    end: str
    padding: str
    unknown: str
    mask: str | None = None
    pair: str = "{start} $A {end} $B {end}"

    @property
    def roles(self) -> Mapping[str, str]:
        """Tokens by transformers' names of the roles. A text's start is both `bos` and `cls`, its end both `eos` and
        `sep`."""
        roles = dict(
            bos_token=self.start,
            cls_token=self.start,
            eos_token=self.end,
            sep_token=self.end,
            pad_token=self.padding,
            unk_token=self.unknown,
        )
        return {**roles, "mask_token": self.mask} if self.mask else roles


BART = SpecialTokens(
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "<pad>", "<unk>", "<mask>",
    pair="{start} $A {end} {end} $B {end}",
)  # fmt: skip
BERT = SpecialTokens(("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
VOCABULARY_FILE = SpecialTokens(("[START]", "[END]", "[UNK]", "[PAD]"), "[START]", "[END]", "[PAD]", "[UNK]")
LAYOUTS = (BART, BERT, VOCABULARY_FILE)


def wrap_fast(tokenizer: Tokenizer, specials: SpecialTokens, max_length: int) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers: a text is put between start and end. max_length: in tokens, with both."""
    names = dict(start=specials.start, end=specials.end)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="{start} $A {end}".format(**names),
        pair=specials.pair.format(**names),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (specials.start, specials.end)],
    )
    roles: Any = specials.roles
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "</s>" in a text is text
        **roles,
    )
