"""Tokenizers trained on a corpus, saved as ordinary Hugging Face tokenizers with BART's special tokens.

A small model copies words far sooner than bytes: on the embedded corpus `word` is the right choice. `bpe` loses nothing
on any text and is the choice for real corpora.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0 to 4, BART's order


# A word may hold apostrophes and hyphens, and a number points and commas: don't, well-known, 1,000, 3.5.
WORD = r"\w+(?:['’\-]\w+|(?<=\d)[.,]\d+)*"
PUNCTUATION = r"[^\w\s]+"  # in runs, as they stand
JOINED = ((r" (?=[.,;:!?)\]}…])", ""), (r"(?<=[(\[{]) ", ""))  # blanks that decoding takes out again


def _word(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Words and runs of punctuation. Decoding puts one blank between words, and joins punctuation as English does;
    of quotation marks it cannot know which side they belong to."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{WORD}|{PUNCTUATION}"), "removed", invert=True)
    joins = [decoders.Replace(Regex(pattern), content) for pattern, content in JOINED]
    blanks = decoders.WordPiece(prefix="\0", cleanup=False)  # no token continues another: a blank before each
    tokenizer.decoder = decoders.Sequence([blanks, decoders.Fuse(), *joins])
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def _bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level subwords: any text decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


KINDS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {"word": _word, "bpe": _bpe}


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a text between <s> and </s>. max_length in tokens, both included."""
    tokenizer = KINDS[kind](texts, vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
