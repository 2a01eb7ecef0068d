"""Matrices of classes: values, cost, skipped entries, average over seeds; and their heat map."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from evaluation import classifiers, classwise, plots
from evaluation.classwise import FeatureCache
from evaluation.mauve import mauve
from evaluation.scorers import Scorer

ENDS = {"went": "went home.", "ran": "ran and ran and ran!", "twice": "did all of it twice, and again"}
NAMES = tuple(ENDS)


@pytest.fixture(scope="module")
def by_class(stories):
    """Eighty texts of each class, with a different ending per class: MAUVE uses the features of the last token."""
    return {c: [text.replace("went home.", end) for text in stories] for c, end in enumerate(ENDS.values())}


@pytest.fixture(scope="module")
def classifier(by_class, tmp_path_factory):
    texts = [text for c in by_class for text in by_class[c]]
    labels = [c for c in by_class for _ in by_class[c]]
    folder = tmp_path_factory.mktemp("classifier") / "local"
    return classifiers.load(None, NAMES, texts=texts, labels=labels, folder=folder)


@pytest.fixture
def found(by_class, scorer, classifier):
    samples = {c: by_class[c][:40] for c in by_class}
    references = {"val": {c: by_class[c][30:75] for c in by_class}}
    return classwise.compare_classes(samples, references, FeatureCache(scorer), classifier)


def test_samples_of_a_class_are_nearest_to_its_references(found):
    for c, row in enumerate(found.mauve["val"]):
        assert max(range(3), key=row.__getitem__) == c, found.mauve
    assert found.predicted_shares == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert (
        all(score.mauve_few_samples and score.n == 40 for score in found.mauve_scores) and len(found.mauve_scores) == 9
    )


def test_each_entry_is_the_mauve_of_its_pair_of_classes(found, by_class, scorer):
    assert found.mauve["val"][2][0] == mauve(by_class[2][:40], by_class[0][30:70], scorer).score


def test_features_are_computed_once_per_set(by_class, scorer, monkeypatch):
    seen: Counter[str] = Counter()
    original = Scorer.features

    def features(self, texts, *args, **kwargs):
        seen[texts[0]] += 1
        return original(self, texts, *args, **kwargs)

    monkeypatch.setattr(Scorer, "features", features)
    samples = {c: by_class[c][:9] for c in by_class}
    references = {"val": {c: by_class[c][5:14] for c in by_class}, "train": {c: by_class[c][8:17] for c in by_class}}
    features = FeatureCache(scorer)
    found = classwise.compare_classes(samples, references, features)
    held_out = classwise.compare_classes(references["val"], {"train": references["train"]}, features)
    assert len(found.mauve_scores) == 18 and len(held_out.mauve_scores) == 9
    assert set(seen.values()) == {1} and len(seen) == 9
    assert found.predicted_shares == []


def test_an_empty_sample_has_no_class_and_one_text_has_no_mauve(classifier, scorer):
    references = {"val": {c: ["Ann saw a dog."] for c in range(3)}}
    found = classwise.compare_classes({1: [""]}, references, FeatureCache(scorer), classifier)
    assert found.classes == [1] and found.predicted_shares == [[0, 0, 0, 1]]
    assert all(math.isnan(value) for value in found.mauve["val"][0])


def test_seeds_are_averaged(found):
    other = classwise.PerClassResult([0, 1, 2], {"val": [[math.nan] * 3] * 3}, [[0, 1, 0, 0]] * 3)
    mean = classwise.average_seeds([found, other])
    assert mean.mauve == found.mauve
    assert mean.predicted_shares == [[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0]]


def test_a_heat_map_is_drawn(found, tmp_path):
    panels = [plots.HeatMap("against val", found.mauve["val"], NAMES, NAMES, "samples of", "references of")]
    panels.append(plots.HeatMap("predicted", [[math.nan, 0.5]], NAMES[:1], ("$10_to_$20", "$\\x$")))  # no formulas
    path = plots.heat_maps(panels, tmp_path / "pictures" / "classes.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    curve = plots.plot_xy({"accuracy": [(0, 0.2), (1, 0.9)]}, tmp_path / "w.png", xlabel="guidance weight")
    two = {"one": [(2, 0.2), (100, 0.9)], "one, dashed": [(2, 0.3), (25, 0.9)]}
    apart = plots.plot_xy(two, tmp_path / "n.png", xlabel="steps", log_x=True, dashed=["one, dashed"])
    assert apart.stat().st_size > 1000
    assert curve.read_bytes().startswith(b"\x89PNG")
