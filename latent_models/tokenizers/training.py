"""Tokenizers trained on a corpus, saved as ordinary Hugging Face tokenizers.

`word` and `bpe` carry BART's special tokens and are trained by stage 0. `word-level` and `byte-level` are those of the
embedding systems: words, by default with digits one by one, between [CLS] and [SEP]; and byte-level subwords. A small
model learns to copy words far sooner than bytes; byte-level subwords encode any text without loss.

No default changes a letter: case and marks are kept, and words are composed (NFC), so that two spellings of one word
are one token. Blanks other than the ordinary one (line ends, no-break blanks) are tokens, and so are characters of
scripts without blanks between words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from latent_models.tokenizers.special_tokens import BART, BERT, SpecialTokens, wrap_fast
from utils.errors import UserError
from utils.scripts_of_text import UNSPACED

SPECIAL = list(BART.tokens)

# A word may hold apostrophes, hyphens and joiners, and a number points and commas: don't, well-known, 1,000, 3.5.
WORD = rf"[\w&&[^{UNSPACED}]]+(?:(?:['’\-]|\p{{Cf}}+)[\w&&[^{UNSPACED}]]+|(?<=\d)[.,]\d+)*"
CHARACTER = rf"[{UNSPACED}]\p{{M}}*"
# A digit of a number, one by one, with the sign before it: 2, 0, -2, 5. Words with digits in them stay whole: 2nd, b2b.
DIGIT = r"(?:(?<!\w)|(?<=\d)[.,'’\-]?)\d(?=(?:[.,'’\-]?\d)*(?!\w|['’\-]\w))"
PUNCTUATION = r"[^\w\s]+"  # runs of punctuation
# Line ends and unusual blanks; an ordinary blank where decoding would put none: between characters, between two digits
BLANK = rf"[^\S ]|(?<=[{UNSPACED}\p{{M}}]) (?=[{UNSPACED}])"
BLANK_OF_DIGITS = r"(?<=\d) (?=\d)"
KEPT = "\uffff"  # no character: stands for a blank that is a token while decoding removes others
_CLOSING, _OPENING = "。、，；：！？）］｝」』】〕〉》", "（［｛「『【〔〈《"  # punctuation that touches characters
_ENDS = "،؛؟۔।॥։።፣།"  # commas and ends of sentences of other scripts
_AFTER_CHARACTER = rf"(?<=[{UNSPACED}]|[{UNSPACED}]\p{{M}}|[{UNSPACED}]\p{{M}}\p{{M}}|[{_CLOSING}])"
JOINED = (  # spaces that decoding removes, in this order
    (rf"(?<=[{UNSPACED}\p{{M}}])   (?=[{UNSPACED}])", KEPT),
    (rf" (?=[.,;:!?)\]}}…{_CLOSING}{_ENDS}])", ""),
    (rf"(?<=[(\[{{{_OPENING}]) ", ""),
    (rf"{_AFTER_CHARACTER} (?=[{UNSPACED}{_OPENING}])", ""),
    (r" (?=[^\S ]|\p{M})", ""),  # before other blanks, and before a mark that was split from its character
    (r"(?<=[^\S ]) ", ""),
    (KEPT, " "),
)
DIGITS_JOINED = (  # with individual digits, before the others
    (r"(?<=\d)   (?=\d)", KEPT),
    (r"(?<=\d) (?=[.,'’\-]?\d)", ""),
)
ACCENT = r"(?<=\p{Latin})\p{Mn}+"  # marks of Latin letters; marks of other scripts are letters


@dataclass(frozen=True)
class TokenizerTraining:
    """Options of training a tokenizer."""

    vocab_size: int  # largest vocabulary, special tokens included
    min_frequency: int = 0  # rarer words stay unknown, rarer pairs unmerged
    lowercase: bool = False
    strip_accents: bool = False
    individual_digits: bool = False


def _normalizer(options: TokenizerTraining) -> list[normalizers.Normalizer]:
    parts: list[normalizers.Normalizer] = []
    if options.strip_accents:
        parts = [normalizers.NFD(), normalizers.Replace(Regex(ACCENT), ""), normalizers.NFC()]
    return parts + ([normalizers.Lowercase()] if options.lowercase else [])


def words(texts: Iterable[str], options: TokenizerTraining, specials: SpecialTokens) -> Tokenizer:
    """Words, runs of punctuation and blanks other than the ordinary one; characters of scripts without blanks. Decoding
    puts one space between words, and joins punctuation as in English; the tokens do not contain the side of a quotation
    mark.

    Differs from the published word-level tokenizer: don't and well-known are one word each, and decoding joins.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=specials.unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *_normalizer(options)])
    kinds = [CHARACTER, *([DIGIT] if options.individual_digits else []), WORD, PUNCTUATION, BLANK]
    kinds += [BLANK_OF_DIGITS] if options.individual_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(kinds)), "removed", invert=True)
    rules = DIGITS_JOINED + JOINED if options.individual_digits else JOINED
    joins = [decoders.Replace(Regex(pattern), content) for pattern, content in rules]
    blanks = decoders.WordPiece(prefix="\0", cleanup=False)  # no token continues another: a blank before each
    tokenizer.decoder = decoders.Sequence([blanks, decoders.Fuse(), *joins])
    trainer = trainers.WordLevelTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=list(specials.tokens),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def subwords(texts: Iterable[str], options: TokenizerTraining, specials: SpecialTokens) -> Tokenizer:
    """Byte-level subwords (Radford et al. 2019): any text decodes to itself, unless it is normalized."""
    tokenizer = Tokenizer(models.BPE())
    if parts := _normalizer(options):
        tokenizer.normalizer = normalizers.Sequence(parts)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if options.individual_digits else []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, level]) if digits else level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=list(specials.tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class TokenizerKind:
    """A way to train a tokenizer."""

    train: Callable[[Iterable[str], TokenizerTraining, SpecialTokens], Tokenizer]
    specials: SpecialTokens
    smallest: int  # smallest vocabulary: special tokens, and one more or all bytes


KINDS = {
    "word": TokenizerKind(words, BART, len(BART.tokens) + 1),
    "bpe": TokenizerKind(subwords, BART, len(BART.tokens) + 256),
    "word-level": TokenizerKind(words, BERT, len(BERT.tokens) + 1),
    "byte-level": TokenizerKind(subwords, BART, len(BART.tokens) + 256),
}


def train_tokenizer(
    texts: Iterable[str], kind: str, vocab_size: int | TokenizerTraining, max_length: int
) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a text between its start and its end token. max_length in tokens, both included.

    vocab_size: largest vocabulary, or all options. Raises UserError if it has no room for a token beside the
    special ones, or for all bytes.
    """
    row = KINDS[kind]
    options = vocab_size if isinstance(vocab_size, TokenizerTraining) else TokenizerTraining(vocab_size)
    if options.vocab_size < row.smallest:
        raise UserError(
            f"--vocab_size {options.vocab_size} is too small for a {kind} tokenizer: give {row.smallest} or more"
        )
    return wrap_fast(row.train(texts, options, row.specials), row.specials, max_length)
