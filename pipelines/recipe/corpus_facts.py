"""What the recipe needs to know of a corpus: number of texts, lengths, sentences, classes, sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_utils.corpus import Corpus
from dataset_utils.text_stats import evenly_spaced
from evaluation.text_tokens import separate_characters

MEASURED = 2_000  # texts that are measured, evenly spaced over the training split
_CLOSERS = "\"'”’)\\]」』）】》"  # noqa: RUF001  marks that may follow the end of a sentence
_END_OF_SENTENCE = re.compile(
    rf"(?<=[.!?。！？])[{_CLOSERS}]*\s+"  # noqa: RUF001
    rf"|(?<=[。！？])[{_CLOSERS}]*(?![{_CLOSERS}\s.!?。！？…])"  # noqa: RUF001  without a blank
)


@dataclass(frozen=True)
class CorpusFacts:
    """Numbers of a corpus; of lengths and sentences, those of its training texts."""

    texts: int  # training texts
    held_out: int  # validation texts
    words: float  # median number of words of a text; characters of scripts without blanks
    tokens: int  # 99th percentile of the number of tokens of a text
    sentences: float  # median number of sentences of a text
    most_sentences: int  # 95th percentile of it
    classes: int = 0  # 0: texts have no labels
    has_sources: bool = False  # texts belong to sources

    def describe(self) -> str:
        """The facts in one line."""
        kind = "with sources" if self.has_sources else f"in {self.classes} classes" if self.classes else ""
        return (
            f"{self.texts:,} training texts {kind}".rstrip() + f", {self.held_out:,} held out; "
            f"a text has {self.words:g} words and {self.sentences:g} sentence{'s' * (self.sentences != 1)} (medians), "
            f"and of 99 in 100 at most {self.tokens} tokens"
        )


def own_tokenizer(corpus: Corpus, vocab_size: int) -> Any:
    """A tokenizer like that of a language model that is trained here, but of the measured texts alone."""
    from latent_models.tokenizers.training import train_tokenizer

    return train_tokenizer(list(evenly_spaced(corpus.train.texts, MEASURED)), "bpe", vocab_size, max_length=512)


def measure(corpus: Corpus, tokenizer: Any) -> CorpusFacts:
    """Measure a corpus. tokenizer: of Hugging Face, whose tokens are counted."""
    texts = evenly_spaced(corpus.train.texts, MEASURED)
    words = [len(separate_characters(text).split()) for text in texts]  # of Chinese and the like, characters
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [len(row) + 2 for row in ids]  # with a start and an end
    sentences = [count_sentences(text) for text in texts]
    return CorpusFacts(
        texts=len(corpus.train),
        held_out=len(corpus.valid),
        words=float(np.median(words)),
        tokens=int(np.ceil(np.percentile(tokens, 99))),
        sentences=float(np.median(sentences)),
        most_sentences=int(np.percentile(sentences, 95, method="higher")),
        classes=corpus.num_classes,
        has_sources=corpus.train.sources is not None,
    )


def count_sentences(text: str) -> int:
    """The number of sentences, by their punctuation; at least 1."""
    text = text.strip()
    return 1 + sum(match.end() < len(text) for match in _END_OF_SENTENCE.finditer(text))
