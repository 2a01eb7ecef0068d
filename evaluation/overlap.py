"""Overlap of predictions with references (BLEU, chrF, ROUGE, exact match, BERTScore), and self-BLEU of a set of texts.

An empty prediction scores 0 and raises nothing. There must be one reference per prediction: a text, or a list of texts
that are all right, of which BLEU takes n-grams of any, and the other metrics the best.

Words are those of every script, and characters where a script writes no blanks (text_tokens). On texts in English all
scores equal those of the libraries.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.optional import optional_import
from evaluation.text_tokens import compose, is_empty, separate_characters, unspaced_scripts, words
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs, without_remote_code

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SEPARATING = ("13a", "intl")  # tokenizers of sacreBLEU that split at blanks; the others know characters themselves

Reference = str | Sequence[str]  # a text, or several that are all right


def alternatives(reference: Reference) -> list[str]:
    """Return the texts of a reference. Raises ValueError if there is none."""
    texts = [reference] if isinstance(reference, str) else list(reference)
    if not texts:
        raise ValueError("a reference has no text: give one or more")
    return texts


def one_of_each(references: Sequence[Reference], seed: int) -> list[str]:
    """Return one text of each reference, drawn at random.

    The place in a file may tell of what kind a reference is: of CommonGen the first ones have 11.8 words, the last 9.9.
    """
    rng = random.Random(f"{seed}, one of each reference")
    return [texts[int(rng.random() * len(texts))] for texts in map(alternatives, references)]


def bleu(predictions: Sequence[str], references: Sequence[Reference], *, tokenizer: str = "13a") -> float:
    """Compute corpus BLEU-4 by sacreBLEU, cased, 0 to 100; nan without texts. Post 2018, arXiv:1804.08771."""
    _check_lengths(predictions, references)
    if not predictions:
        return math.nan
    rows = [[_separate(text, tokenizer) for text in alternatives(reference)] for reference in references]
    # sacreBLEU takes one list for all first references, one for all second ones, ...; None where there are fewer
    streams = [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows)))]
    return _bleu(tokenizer, False).corpus_score([_separate(text, tokenizer) for text in predictions], streams).score


def sentence_bleu(prediction: str, reference: Reference, *, tokenizer: str = "13a") -> float:
    """Compute BLEU of one sentence by sacreBLEU with effective order, 0 to 100."""
    texts = [_separate(text, tokenizer) for text in alternatives(reference)]
    return _bleu(tokenizer, True).sentence_score(_separate(prediction, tokenizer), texts).score


def bleu_tokenizer_name(tokenizer: str, texts: Iterable[str]) -> str:
    """Return the name of a tokenizer of BLEU for protocols: "13a; characters of Han" if the texts have such scripts."""
    scripts = unspaced_scripts(texts) if tokenizer in SEPARATING else []
    return f"{tokenizer}; characters of {', '.join(scripts)}" if scripts else tokenizer


def check_bleu_tokenizer(tokenizer: str) -> None:
    """Raise UserError if sacreBLEU's tokenizer needs a package that is not installed."""
    _bleu(tokenizer, False)


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """Compute the share of predictions equal to a reference up to outer whitespace; nan without texts."""
    _check_lengths(predictions, references)
    same = [
        compose(prediction).strip() in [compose(text).strip() for text in alternatives(reference)]
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(same) / len(same) if same else math.nan


def chrf(prediction: str, reference: Reference) -> float:
    """Compute chrF2 of one sentence by sacreBLEU, 0 to 100. Popovic 2015."""
    texts = [compose(text) for text in alternatives(reference)]
    return optional_import("sacrebleu", "sacrebleu", "chrF").sentence_chrf(compose(prediction), texts).score


def rouge_each(
    prediction: str, reference: Reference, *, stem: bool = False, names: tuple[str, ...] = ROUGES
) -> dict[str, float]:
    """Compute F-measures of the named ROUGE variants for one pair, 0 to 1. Lin 2004. stem: compare stemmed words.

    Of several references each variant takes the one with the largest F-measure.
    """
    scores = [_rouge(stem, names).score(text, prediction) for text in alternatives(reference)]
    return {name: max(score[name].fmeasure for score in scores) for name in names}


def rouge(predictions: Sequence[str], references: Sequence[Reference], *, stem: bool = False) -> dict[str, float]:
    """Compute mean ROUGE F-measures, 0 to 1; nan without texts.

    Differs from Hugging Face's metric, the median of bootstrapped means: this is the mean itself, without randomness;
    and from the library, which knows ASCII letters only.
    """
    _check_lengths(predictions, references)
    each = [rouge_each(p, r, stem=stem) for p, r in zip(predictions, references, strict=True)]
    return {name: sum(scores[name] for scores in each) / len(each) if each else math.nan for name in ROUGES}


def self_bleu(texts: Sequence[str], *, tokenizer: str = "13a") -> float:
    """Compute the mean BLEU of each text with all others as its references, 0 to 100: low for diverse texts.

    Zhu et al. 2018, arXiv:1802.01886. Equals sacreBLEU's sentence BLEU, in time linear in the number of texts: an
    n-gram is clipped at its largest count in any other text, for which its two largest counts suffice. Empty texts are
    dropped; nan with fewer than two others.
    """
    scorer = _bleu(tokenizer, True)
    split = [scorer.tokenizer(_separate(text, tokenizer).rstrip()).split() for text in texts if not is_empty(text)]
    if len(split) < 2:
        return math.nan
    counts = [Counter(tuple(text[i : i + n]) for n in range(1, 5) for i in range(len(text) - n + 1)) for text in split]
    largest: dict[
        tuple[str, ...], tuple[int, int, int]
    ] = {}  # n-gram -> (largest count, its text, largest count elsewhere)
    for i, grams in enumerate(counts):
        for gram, count in grams.items():
            most, where, second = largest.get(gram, (0, -1, 0))
            largest[gram] = (count, i, most) if count > most else (most, where, max(second, count))
    lengths = sorted(map(len, split))
    total = 0.0
    for i, grams in enumerate(counts):
        correct = [0, 0, 0, 0]
        for gram, count in grams.items():
            most, where, second = largest[gram]
            correct[len(gram) - 1] += min(count, second if where == i else most)
        size = len(split[i])
        tried = [max(size - n, 0) for n in range(4)]
        total += scorer.compute_bleu(
            correct,
            tried,
            size,
            _closest_other(lengths, size),
            smooth_method=scorer.smooth_method,
            smooth_value=scorer.smooth_value,
            effective_order=True,
        ).score
    return total / len(split)


def bertscore(
    predictions: Sequence[str],
    references: Sequence[Reference],
    model: str = "roberta-large",
    *,
    num_layers: int | None = None,
    rescale: bool = True,
    device: str = "cpu",
) -> dict[str, float]:
    """Compute mean BERTScore precision, recall and F1, rescaled if the package has a baseline for the model.

    model: a hub id that bert-score supports, or any local folder. num_layers: the layer whose states are compared
    (default: the package's choice, else the last). An empty text scores 0. nan without texts. Zhang et al. 2020,
    arXiv:1904.09675.
    """
    each = bertscore_each(predictions, references, model, num_layers=num_layers, rescale=rescale, device=device)
    names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
    n = len(predictions)
    return {name: sum(column) / n if n else math.nan for name, column in zip(names, each, strict=True)}


def bertscore_each(
    predictions: Sequence[str],
    references: Sequence[Reference],
    model: str = "roberta-large",
    *,
    num_layers: int | None = None,
    rescale: bool = True,
    device: str = "cpu",
) -> tuple[list[float], list[float], list[float]]:
    """Compute precision, recall and F1 of every pair, each by its best reference; see bertscore."""
    _check_lengths(predictions, references)
    n = len(predictions)
    scores = ([0.0] * n, [0.0] * n, [0.0] * n)
    if not n:
        return scores
    scorer, has_baseline = _bertscorer(model, num_layers, device)
    pairs = [(i, text) for i, reference in enumerate(references) for text in alternatives(reference)]
    nonempty = [(i, text) for i, text in pairs if not is_empty(predictions[i]) and not is_empty(text)]
    if nonempty:  # the package raises an error for an empty candidate
        columns = scorer.score([predictions[i] for i, _ in nonempty], [text for _, text in nonempty])
        for k, column in enumerate(columns):
            if rescale and has_baseline:
                base = scorer.baseline_vals[k]
                column = (column - base) / (1 - base)
            best: dict[int, float] = {}
            for (i, _), value in zip(nonempty, column.tolist(), strict=True):
                best[i] = max(value, best.get(i, value))
            for i, value in best.items():
                scores[k][i] = value
    return scores


def load_bertscore(model: str, device: str) -> None:
    """Load the encoder of bertscore now. Raises UserError if it cannot be loaded."""
    _bertscorer(model, None, device)


@cache
def _bertscorer(model: str, num_layers: int | None, device: str) -> tuple[Any, bool]:
    """Return the package's scorer, and whether it has a baseline for this model."""
    library = optional_import("bert_score", "bert-score", "BERTScore")
    transformers = optional_import("transformers", "transformers", "BERTScore")
    where = {} if Path(model).is_dir() else hub_kwargs()
    try:
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False, **where)
        if num_layers is None and model not in library.utils.model2layers:
            num_layers = config.num_hidden_layers
        with without_remote_code():  # the package calls transformers without trust_remote_code
            scorer = library.BERTScorer(model_type=model, num_layers=num_layers, lang="en", device=device)
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise UserError(
            f"BERTScore's model {model} cannot be loaded ({library_message(error)}): name a local folder with "
            "--bertscore_model"
        ) from error
    # a tokenizer without a limit has a model_max_length of 10^30, which overflows; RoBERTa offsets positions by two
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, config.max_position_embeddings - 2)
    try:
        scorer.baseline_vals  # noqa: B018 the attribute reads the baseline file
    except (ValueError, OSError):
        return scorer, False
    return scorer, True


@cache
def _bleu(tokenizer: str, effective_order: bool) -> Any:
    metrics = optional_import("sacrebleu.metrics", "sacrebleu", "BLEU")
    try:
        return metrics.BLEU(tokenize=tokenizer, effective_order=effective_order)
    except (RuntimeError, ImportError) as error:  # sacreBLEU raises either where a package is absent
        language = {"ja-mecab": "[ja]", "ko-mecab": "[ko]"}.get(tokenizer, " sentencepiece")
        raise UserError(
            f"BLEU's tokenizer {tokenizer} needs a package that is not installed: pip install 'sacrebleu{language}', "
            "or pass --config bleu_tokenizer=13a, which splits into words, and into characters where a script has no "
            "blanks"
        ) from error


def _separate(text: str, tokenizer: str) -> str:
    """Return the text with blanks around characters of unspaced scripts, for a tokenizer that splits at blanks."""
    return separate_characters(text) if tokenizer in SEPARATING else compose(text)


class _RougeWords:
    """The words of text_tokens for the library of ROUGE. Its stemmer is for English, so it gets ASCII words only."""

    def __init__(self, stem: bool) -> None:
        library = optional_import("rouge_score.tokenizers", "rouge-score", "ROUGE")
        self.stem = library.DefaultTokenizer(use_stemmer=True).tokenize if stem else None

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        if self.stem is None:
            return found
        return [stemmed for word in found for stemmed in (self.stem(word) if word.isascii() else [word])]


@cache
def _rouge(stem: bool, names: tuple[str, ...]) -> Any:
    scorer = optional_import("rouge_score.rouge_scorer", "rouge-score", "ROUGE")
    return scorer.RougeScorer(list(names), tokenizer=_RougeWords(stem))


def _closest_other(lengths: Sequence[int], size: int) -> int:
    """Return the length closest to size among all texts but one of that size, the shorter of two (BLEU's rule)."""
    i = bisect_left(lengths, size)
    others = [*lengths[max(i - 1, 0) : i], *lengths[i + 1 : i + 2]]
    return min(others, key=lambda length: (abs(length - size), length))


def _check_lengths(predictions: Sequence[str], references: Sequence[Reference]) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references: give one reference per prediction"
        )
