"""Arrays of references are cached on disk under a hash, and computed again if the file cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import memorization
from evaluation.classwise import FeatureCache, compare_classes
from evaluation.disk_cache import RecentArrays, cached_arrays
from evaluation.mauve import mauve
from evaluation.memorization import NgramIndex
from evaluation.protocols import reference_metrics
from evaluation.scorers import FEATURE_CACHE_SIZE

TEXTS = ["the dog ran home on a sunny day", "a cat sat on the warm red mat", "we all went to the old sea"]


def forbidden():
    raise AssertionError("the arrays are computed again")


def test_arrays_are_computed_once_and_then_read(tmp_path):
    first = cached_arrays(tmp_path, "a", lambda: {"x": np.arange(3)})
    again = cached_arrays(tmp_path, "a", forbidden)
    assert np.array_equal(first["x"], again["x"]) and [p.name for p in tmp_path.glob("[!.]*")] == ["a.npz"]
    assert cached_arrays(None, "", lambda: {"x": np.ones(1)})["x"] == 1


@pytest.mark.parametrize("damage", [b"", b"not a file of arrays", None])
def test_a_damaged_file_is_replaced(tmp_path, damage):
    cached_arrays(tmp_path, "a", lambda: {"x": np.arange(3)})
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:40] if damage is None else damage)
    assert cached_arrays(tmp_path, "a", lambda: {"x": np.arange(4)})["x"].tolist() == [0, 1, 2, 3]
    assert cached_arrays(tmp_path, "a", forbidden)["x"].tolist() == [0, 1, 2, 3]


def test_an_unwritable_folder_raises_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached_arrays(tmp_path / "file" / "below", "a", lambda: {"x": np.ones(1)})["x"] == 1


def test_ngrams_of_training_texts_are_counted_once(tmp_path, monkeypatch):
    one = NgramIndex(TEXTS, tmp_path)
    monkeypatch.setattr(NgramIndex, "_hash_all", lambda self, texts: forbidden())
    again = NgramIndex(TEXTS, tmp_path)
    for text in (*TEXTS, "the dog ran home to the sea"):
        assert one.known_ngrams(text).tolist() == again.known_ngrams(text).tolist() and one.contains_text(
            text
        ) == again.contains_text(text)
    assert again.num_texts == 3
    with pytest.raises(AssertionError, match="the arrays are computed again"):
        NgramIndex([*TEXTS, "another"], tmp_path)
    monkeypatch.setattr(memorization, "tokenizer_version", lambda: "spacy 99")
    with pytest.raises(AssertionError, match="the arrays are computed again"):
        NgramIndex(TEXTS, tmp_path)  # another tokenizer gives other words


def test_features_of_references_are_computed_once(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer, "cache_dir", tmp_path)
    score = mauve(TEXTS[:2], TEXTS[1:], scorer).score
    assert len(list(tmp_path.glob("features-*.npz"))) == 1, "samples are not cached on disk"
    scorer._features = RecentArrays(FEATURE_CACHE_SIZE)
    asked, computed = [], type(scorer)._compute_features
    monkeypatch.setattr(
        type(scorer), "_compute_features", lambda self, texts, n: asked.append(texts) or computed(self, texts, n)
    )
    assert mauve(TEXTS[:2], TEXTS[1:], scorer).score == score
    assert asked == [TEXTS[:2]]


def test_features_of_real_texts_are_computed_once(scorer, tmp_path, monkeypatch):
    """Training texts, held-out texts and references of every class are scored by each evaluation."""
    monkeypatch.setattr(scorer, "cache_dir", tmp_path)
    asked, computed = [], type(scorer)._compute_features
    monkeypatch.setattr(
        type(scorer), "_compute_features", lambda self, texts, n: asked.append(list(texts)) or computed(self, texts, n)
    )
    samples, references = {0: ["a hen sat", "an owl ran"]}, {"val": {0: TEXTS[:2], 1: TEXTS[1:]}}
    found = []
    for _ in range(2):
        scorer._features = RecentArrays(FEATURE_CACHE_SIZE)
        asked.clear()
        result = reference_metrics(TEXTS[:2], [*TEXTS, "they sang"], scorer, split="val", num_samples=2)
        found.append(
            (
                result["reference/local_lm_train_val_mauve"],
                compare_classes(samples, references, FeatureCache(scorer)).mauve,
            )
        )
    assert asked == [samples[0]] and found[0] == found[1]


ARRAYS = {"x": np.arange(6.0).reshape(2, 3), "n": np.array([3])}


def make() -> dict[str, np.ndarray]:
    return {name: x.copy() for name, x in ARRAYS.items()}


def same(found) -> bool:
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], x) for name, x in ARRAYS.items())


def test_any_changed_bit_is_harmless_or_the_arrays_are_made_again(tmp_path):
    cached_arrays(tmp_path, "a", make)
    file = tmp_path / "a.npz"
    held = file.read_bytes()
    for place in range(0, 8 * len(held), 2):
        changed = bytearray(held)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        assert same(cached_arrays(tmp_path, "a", make)), f"bit {place}"
    for size in (0, 10, len(held) // 2, len(held) - 1):
        file.write_bytes(held[:size])
        assert same(cached_arrays(tmp_path, "a", make))


def test_what_a_kill_leaves_is_replaced_and_a_folder_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "a.partial.npz").write_bytes(b"half")
    assert same(cached_arrays(tmp_path, "a", make))
    assert not (tmp_path / "a.partial.npz").exists()
    (tmp_path / "file").touch()
    assert same(cached_arrays(tmp_path / "file", "a", make))
