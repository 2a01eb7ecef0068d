"""A scorer or classifier of a run is complete when it loads, not when a note says so."""

from __future__ import annotations

import json
import shutil

import pytest

from evaluation import classifiers, local_classifier, scorers
from evaluation.local_lm import FILES, INFO_FILE, WEIGHTS, train_local
from utils.errors import UserError

TEXTS = ["Ann saw a red dog.", "Bob ate one green apple.", "A cat sat there."] * 8
LABELS = [0, 1, 0] * 8
SMALL = {"steps": 2, "width": 16, "layers": 1, "heads": 2, "vocab_size": 280, "max_length": 16}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return train_local(TEXTS, tmp_path_factory.mktemp("scorer") / "scorer", progress=lambda line: None, **SMALL)


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [remove, cut, flip])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_scorer_is_trained_again_with_a_line(complete, tmp_path, name, damage):
    """Such as one without weights, which transformers does not save on ranks other than 0."""
    folder, lines = tmp_path / "scorer", []
    shutil.copytree(complete, folder)
    train_local(TEXTS, folder, progress=lines.append, **SMALL)
    assert lines == [], "a complete one is not trained again"
    damage(folder / name)
    train_local(TEXTS, folder, progress=lines.append, **SMALL)
    assert f"is incomplete ({name}" in lines[0] and "trained again" in lines[0] and "\n" not in lines[0]
    assert scorers.load(folder).fingerprint == scorers.load(complete).fingerprint


@pytest.mark.parametrize("damage", [remove, cut])
@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_a_scorer_of_an_older_release_is_judged_by_its_shapes(complete, tmp_path, name, damage):
    folder, lines = tmp_path / "scorer", []
    shutil.copytree(complete, folder)
    info = json.loads((folder / INFO_FILE).read_text())
    del info["sha256"]
    (folder / INFO_FILE).write_text(json.dumps(info))
    train_local(TEXTS, folder, progress=lines.append, **SMALL)
    assert lines == []
    damage(folder / name)
    train_local(TEXTS, folder, progress=lines.append, **SMALL)
    assert "trained again" in lines[0]


@pytest.mark.parametrize("note", ["", "{", "[]", "3", '{"data": 1}'])
def test_a_damaged_note_of_a_scorer_trains_it_again(complete, tmp_path, note):
    folder, lines = tmp_path / "scorer", []
    shutil.copytree(complete, folder)
    (folder / INFO_FILE).write_text(note)
    train_local(TEXTS, folder, progress=lines.append, **SMALL)
    assert lines and scorers.load(folder).fingerprint == scorers.load(complete).fingerprint


def test_a_model_of_the_user_is_not_replaced(complete, tmp_path):
    folder = tmp_path / "scorer"
    shutil.copytree(complete, folder)
    (folder / INFO_FILE).unlink()
    with pytest.raises(UserError, match="something other than a scorer"):
        train_local(TEXTS, folder, progress=lambda line: None, **SMALL)


@pytest.mark.parametrize("damage", [remove, cut])
@pytest.mark.parametrize("name", [local_classifier.WEIGHTS, "words.json"])
def test_a_damaged_classifier_is_trained_again_with_a_line(tmp_path, capsys, name, damage):
    folder = local_classifier.train_local(TEXTS, LABELS, ("a", "b"), tmp_path / "classifier")
    expected = classifiers.load(folder, ("a", "b")).fingerprint
    damage(folder / name)
    local_classifier.train_local(TEXTS, LABELS, ("a", "b"), folder)
    assert "trained again" in capsys.readouterr().err
    assert classifiers.load(folder, ("a", "b")).fingerprint == expected
