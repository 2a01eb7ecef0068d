"""What is known of references is kept on disk under a fingerprint, and made anew where that fails."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.classwise import Features, compare
from evaluation.disk_cache import cached_arrays
from evaluation.mauve import mauve
from evaluation.memorization import NgramIndex
from evaluation.protocols import reference_metrics

TEXTS = ["the dog ran home on a sunny day", "a cat sat on the warm red mat", "we all went to the old sea"]


def forbidden():
    raise AssertionError("nothing is to be made")


def test_arrays_are_made_once_and_read_again(tmp_path):
    first = cached_arrays(tmp_path, "a", lambda: {"x": np.arange(3)})
    again = cached_arrays(tmp_path, "a", forbidden)
    assert np.array_equal(first["x"], again["x"]) and [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert cached_arrays(None, "", lambda: {"x": np.ones(1)})["x"] == 1


@pytest.mark.parametrize("damage", [b"", b"not a file of arrays", None])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    cached_arrays(tmp_path, "a", lambda: {"x": np.arange(3)})
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:40] if damage is None else damage)
    assert cached_arrays(tmp_path, "a", lambda: {"x": np.arange(4)})["x"].tolist() == [0, 1, 2, 3]
    assert cached_arrays(tmp_path, "a", forbidden)["x"].tolist() == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached_arrays(tmp_path / "file" / "below", "a", lambda: {"x": np.ones(1)})["x"] == 1


def test_ngrams_of_training_texts_are_counted_once(tmp_path, monkeypatch):
    one = NgramIndex(TEXTS, tmp_path)
    monkeypatch.setattr(NgramIndex, "_hashes", lambda self, texts: forbidden())
    again = NgramIndex(TEXTS, tmp_path)
    for text in (*TEXTS, "the dog ran home to the sea"):
        assert one.known_ngrams(text).tolist() == again.known_ngrams(text).tolist() and one.contains_text(text) == again.contains_text(text)
    assert again.size == 3
    with pytest.raises(AssertionError, match="nothing is to be made"):
        NgramIndex([*TEXTS, "another"], tmp_path)
    monkeypatch.setattr(memorization, "tokenizer_version", lambda: "spacy 99")
    with pytest.raises(AssertionError, match="nothing is to be made"):
        NgramIndex(TEXTS, tmp_path)  # words are what a tokenizer makes of texts


def test_features_of_references_are_computed_once(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer, "folder", tmp_path)
    score = mauve(TEXTS[:2], TEXTS[1:], scorer).score
    assert len(list(tmp_path.glob("features-*.npz"))) == 1, "samples never come again"
    scorer._features.clear()
    asked, computed = [], type(scorer)._computed
    monkeypatch.setattr(
        type(scorer), "_computed", lambda self, texts, n: asked.append(texts) or computed(self, texts, n)
    )
    assert mauve(TEXTS[:2], TEXTS[1:], scorer).score == score
    assert asked == [TEXTS[:2]]


def test_nothing_of_real_texts_is_computed_twice(scorer, tmp_path, monkeypatch):
    """Training texts beside held-out ones, and references of every class: each evaluation meets them again."""
    monkeypatch.setattr(scorer, "folder", tmp_path)
    asked, computed = [], type(scorer)._computed
    monkeypatch.setattr(
        type(scorer), "_computed", lambda self, texts, n: asked.append(list(texts)) or computed(self, texts, n)
    )
    samples, references = {0: ["a hen sat", "an owl ran"]}, {"val": {0: TEXTS[:2], 1: TEXTS[1:]}}
    found = []
    for _ in range(2):
        scorer._features.clear()
        asked.clear()
        result = reference_metrics(TEXTS[:2], [*TEXTS, "they sang"], scorer, split="val", num_samples=2)
        found.append((result["reference/home_train_val_mauve"], compare(samples, references, Features(scorer)).mauve))
    assert asked == [samples[0]] and found[0] == found[1]
