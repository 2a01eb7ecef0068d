"""Folders of judges that are damaged or hostile: one line each, and no code of them runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evaluation import classifiers, encoders, scorers
from utils.errors import UserError, user_message

LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scorer": ("local_lm_folder", scorers.load),
    "encoder": ("encoder_folder", encoders.load),
    "classifier": ("encoder_folder", partial(classifiers.load, class_names=("a", "b"))),
}


class Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "their code ran"),)


def hostile_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Runs(folder)}))


def quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a pickle with code": hostile_pickle,
    "quantized weights": quantized,
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "a config that is a list": lambda folder: (folder / "config.json").write_text("[1]"),
    "a tokenizer cut": lambda folder: os.truncate(folder / "tokenizer.json", 50),
    "a tokenizer that is a number": lambda folder: (folder / "tokenizer.json").write_text("3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_damaged_judge_is_one_line_and_runs_no_code(kind, damage, request, tmp_path):
    fixture, load = LOADERS[kind]
    folder = tmp_path / "judge"
    shutil.copytree(request.getfixturevalue(fixture), folder)
    (folder / scorers.INFO_FILE).unlink(missing_ok=True)  # a model of somebody else
    DAMAGES[damage](folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    line = user_message(caught.value)
    assert "\n" not in line and str(folder) in line and f"--{'mauve_' if kind == 'encoder' else ''}{kind}" in line
    assert "weights_only" not in line and not (folder / "their code ran").exists()
