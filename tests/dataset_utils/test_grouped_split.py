"""Missing splits that are cut from training: equal texts and sources on one side, and the same side tomorrow."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_utils.grouped_split import cut_by_groups, group_rows, hash_texts, held_out_share
from dataset_utils.options import DataOptions
from dataset_utils.registry import load
from dataset_utils.splits import Split
from utils.errors import UserError

MISSING = ("valid", "test")
few_words = st.text("abc", min_size=1, max_size=2)
pairs = st.lists(st.tuples(few_words, few_words), min_size=1, max_size=60)


def cut(train: Split, missing=MISSING, **given_splits: Split) -> dict[str, Split]:
    return cut_by_groups({"train": train, **given_splits}, missing, 42, [])


def split_of(rows, with_sources: bool) -> Split:
    texts = [text for text, _ in rows]
    return Split(texts, list(range(len(rows))), [source for _, source in rows] if with_sources else None)


@given(pairs, st.booleans(), st.sampled_from([MISSING, ("test",), ("valid",)]))
@settings(max_examples=300)
def test_no_equal_text_or_source_stands_on_two_sides_and_no_row_is_lost(rows, with_sources, missing) -> None:
    train = split_of(rows, with_sources)
    try:
        made = cut(train, missing)
    except UserError as error:
        assert "too few" in str(error) and "\n" not in str(error)
        groups = group_rows(hash_texts(train.texts), hash_texts(train.sources) if with_sources else None)
        assert len(set(groups.tolist())) <= len(missing)
        return
    assert all(len(split) for split in made.values())
    assert sorted(label for split in made.values() for label in split.labels) == list(range(len(rows)))
    for split in made.values():  # rows stay in the order of the file, with their labels and sources
        assert split.labels == sorted(split.labels)
        assert [rows[i][0] for i in split.labels] == split.texts
        assert not with_sources or [rows[i][1] for i in split.labels] == split.sources
    for side in ("texts", "sources") if with_sources else ("texts",):
        kinds = [set(getattr(split, side)) for split in made.values()]
        assert sum(map(len, kinds)) == len(set.union(*kinds))


@given(pairs, st.booleans(), st.data())
def test_groups_are_the_connected_rows(rows, with_sources, data) -> None:
    train = split_of(rows, with_sources)
    texts, sources = hash_texts(train.texts), hash_texts(train.sources) if with_sources else None
    groups = group_rows(texts, sources)
    for i, j in data.draw(st.lists(st.tuples(*[st.integers(0, len(rows) - 1)] * 2), max_size=50)):
        if rows[i][0] == rows[j][0] or (with_sources and rows[i][1] == rows[j][1]):
            assert groups[i] == groups[j]
    if not with_sources:
        assert len(set(groups.tolist())) == len(set(train.texts))
    order = data.draw(st.permutations(range(len(rows))))
    assert (group_rows(texts[order], None if sources is None else sources[order]) == groups[order]).all()


@pytest.mark.parametrize("n", [400, 3000, 30_000])
@pytest.mark.parametrize("references", [1, 5])
def test_shares_are_close_to_what_is_asked(n: int, references: int) -> None:
    texts = [f"text {i}" for i in range(n)]
    sources = None if references == 1 else [f"source {i // references}" for i in range(n)]
    made = cut(Split(texts, None, sources))
    asked, deviation = held_out_share(n) * n, (held_out_share(n) * n * references) ** 0.5
    assert all(abs(len(made[name]) - asked) < 3.5 * deviation for name in MISSING)
    assert n < 12_000 or all(len(made[name]) >= 1000 for name in MISSING)


def test_the_share_is_a_tenth_then_falls_by_halves_and_a_thousand_texts_are_left() -> None:
    assert held_out_share(10) == held_out_share(20_000) == 0.1
    for n in (24_000, 47_000, 10**5, 10**7):
        assert 1200 <= held_out_share(n) * n < 2400.1


@pytest.mark.parametrize("with_sources", [False, True])
def test_a_changed_file_moves_no_row_between_training_and_the_others(with_sources: bool) -> None:
    rows = [(f"text {i}", f"source {i // 3}") for i in range(500)]
    before = cut(split_of(rows, with_sources))
    shuffled = random.Random(0).sample(rows, len(rows))
    changes = {
        "a line appended": [*rows, ("a new text", "a new source")],
        "another text of a source": [*rows, ("a new text", "source 7")],
        "the first line removed": rows[1:],
        "rotated": rows[100:] + rows[:100],
        "shuffled": shuffled,
        "ten lines more": [*rows, *((f"new {i}", f"new {i}") for i in range(10))],
    }
    for what, changed in changes.items():
        after = cut(split_of(changed, with_sources))
        for name, split in before.items():
            others = [text for other, part in after.items() if other != name for text in part.texts]
            assert not set(split.texts) & set(others), what


def test_one_large_group_stays_in_training_and_the_others_fill_the_splits() -> None:
    texts = [f"text {i}" for i in range(1000)]
    sources = ["the same" if i < 800 else f"source {i}" for i in range(1000)]
    made = cut(Split(texts, None, sources))
    assert sources[0] in made["train"].sources
    assert all(30 <= len(made[name]) <= 130 for name in MISSING)


def test_nothing_of_a_given_split_is_taken_for_another() -> None:
    train = Split([f"text {i}" for i in range(200)], None, [f"source {i // 2}" for i in range(200)])
    valid = Split(["text 3", "other"], None, ["unseen", "source 9"])
    made = cut(train, ("test",), valid=valid)
    assert made["valid"] is valid and len(made["test"]) >= 5
    assert not set(made["test"].sources) & {"source 1", "source 9"}
    twice = cut(train, ("test",), valid=train)  # all of them are given: better a few of these than none
    assert len(twice["test"]) == 2


def test_two_texts_of_one_source_in_files_are_cut_together(tmp_path: Path) -> None:
    rows = [{"source": f"source {i // 4}", "target": f"text {i}"} for i in range(400)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load(DataOptions(train_file=str(tmp_path / "train.jsonl")))
    parts = [set(split.sources) for split in corpus.splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100
    assert any(
        "no file for valid and test: " in note and "equal ones stay on one side" in note for note in corpus.notes
    )


def test_hashes_are_the_same_on_every_machine() -> None:
    assert hash_texts(["a"]).tolist() == [3405396810240292928] and hash_texts(["ä\ud800"]).dtype == np.int64
    assert len(set(hash_texts([str(i) for i in range(10_000)]).tolist())) == 10_000
