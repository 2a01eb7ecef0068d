"""The nearest training text and the longest shared run of words, against a search through all texts."""

from __future__ import annotations

import random

import pytest

from evaluation import nearest
from evaluation.nearest import TrainingIndex
from evaluation.text_tokens import ngrams, words

VOCABULARY = ["a", "red", "kite", "flew", "over", "the", "old", "house", "near", "sea"]


def texts(count: int, seed: int) -> list[str]:
    draws = random.Random(seed)
    return [" ".join(draws.choices(VOCABULARY, k=draws.randrange(12))) for _ in range(count)]


def search(sample: str, training: list[str]) -> tuple[float, int | None, int]:
    """Largest similarity, its first row, and the number of words of the longest shared run."""
    grams = set(ngrams(words(sample), 3))
    scores = []
    for text in training:
        own = set(ngrams(words(text), 3))
        scores.append(len(grams & own) / len(grams | own) if grams | own else 0.0)
    runs = [{" ".join(g) for text in training for g in ngrams(words(text), n)} for n in range(1, 13)]
    shared = [n for n, known in enumerate(runs, start=1) if known & {" ".join(g) for g in ngrams(words(sample), n)}]
    best = max(scores)
    return best, scores.index(best) if best else None, max(shared, default=0)


@pytest.mark.parametrize("chunk", [nearest.CHUNK, 40])
def test_it_finds_what_a_search_finds(monkeypatch, chunk):
    monkeypatch.setattr(nearest, "CHUNK", chunk)
    training = texts(60, seed=1)
    samples = [*texts(60, seed=2), training[7], "Kite, RED kite!", "flew"]
    for sample, found in zip(samples, TrainingIndex(training).nearest(samples), strict=True):
        similarity, row, length = search(sample, training)
        if not length:
            assert found is None
            continue
        assert found.similarity == pytest.approx(similarity) and found.shared_words == length
        assert row is None or found.row == row
        assert found.text == training[found.row]
        assert f" {found.shared} " in f" {' '.join(words(sample))} "
        assert any(f" {found.shared} " in f" {' '.join(words(text))} " for text in training)


def test_samples_that_share_nothing_have_none():
    assert TrainingIndex(["a red kite"]).nearest(["", "  ", "zebra", "..."]) == [None] * 4
    assert TrainingIndex(["", ""]).nearest(["a red kite"]) == [None]
    assert TrainingIndex(["a red kite"]).nearest([]) == []


def test_a_copy_is_found_with_another_spelling_and_in_scripts_without_blanks():
    training = ["He ran home.", "She flew a red kite over the sea.", "我喜欢红色的风筝"]
    copy, chinese = TrainingIndex(training).nearest(["she flew: a RED kite over the sea", "他喜欢红色的花"])
    assert (copy.row, copy.similarity, copy.shared_words) == (1, 1.0, 8)
    assert chinese.row == 2 and chinese.shared_words == 5
    assert copy.as_dict() == {
        "text": training[1],
        "row": 1,
        "similarity": 1.0,
        "longest_shared": {"words": 8, "text": "she flew a red kite over the sea"},
    }
