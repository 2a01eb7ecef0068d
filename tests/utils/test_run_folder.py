"""Run folders, paths relative to them, atomic writes, versions."""

from __future__ import annotations

import json

import pytest

from utils.errors import UserError
from utils.run_folder import git_commit, new_run_folder, package_versions, resolve, write_json, write_text


def test_run_folders_are_dated_unique_and_inside_the_output_folder(tmp_path):
    a, b = new_run_folder(tmp_path, "roc"), new_run_folder(tmp_path, "roc")
    assert a != b and a.parent == b.parent == tmp_path / "roc" and a.name[:2] == "20" and len(a.name) == 19
    assert new_run_folder(tmp_path, "../../etc").parent.parent == tmp_path
    assert new_run_folder(tmp_path, "wmt14-de-en+e2e").parent.name == "wmt14-de-en+e2e"


def test_references_resolve_as_given_then_relative_to_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("run/lm", "run/ae", "ae"):
        (tmp_path / place).mkdir(parents=True)
    assert resolve("ae", "run", "--x").resolve() == tmp_path / "ae"
    assert resolve("lm", "run", "--x").resolve() == tmp_path / "run/lm"
    with pytest.raises(UserError, match="--latent_model_path absent: not found as absent or run/absent"):
        resolve("absent", "run", "--latent_model_path")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_metadata_of_the_code():
    assert package_versions()["torch"] and "python" in package_versions()
    commit = git_commit()
    assert commit is None or len(commit.split("+")[0]) == 40
