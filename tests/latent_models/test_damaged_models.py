"""Folders of language models that are damaged, of another shape or hostile: one line each, and no code of them runs."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.overlap import load_bertscore
from latent_models.language_models import LanguageModel
from latent_models.spaces.embedding_init import input_embeddings
from latent_models.tokenizers.files import load_tokenizer
from utils.errors import UserError, user_message

CODE = "import os\nos.mkdir({folder!r})\n"


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    """Change entries of a JSON file of the folder; None removes one."""

    def change(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **values}
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def index(folder: Path) -> None:
    """An index of two files of weights, which are absent."""
    (folder / "model.safetensors").unlink()
    names = {
        "model.shared.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def shift_offsets(data: bytes) -> bytes:
    return data.replace(b'"data_offsets":[', b'"data_offsets":[9', 1)


def folder_for_a_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


class Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "their code ran"),)


def hostile_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"shared.weight": Runs(folder)}))


def hostile_zip(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": torch.zeros(1), "x": Runs(folder)}, folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    """The folder asks for a model, a configuration and a tokenizer of its own Python file."""
    (folder / "own.py").write_text(CODE.format(folder=str(folder / "their code ran")))
    classes = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForSeq2SeqLM": "own.Model"}
    edit("config.json", model_type="own", auto_map=classes)(folder)
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]}, tokenizer_class="Own")(folder)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights cut": rewrite("model.safetensors", lambda data: data[: len(data) // 2]),
    "weights empty": rewrite("model.safetensors", lambda data: b""),
    "a header of 2^60 bytes": rewrite("model.safetensors", lambda data: b"\xff" * 7 + b"\x0f" + data[8:]),
    "a header of zeros": rewrite("model.safetensors", lambda data: data[:8] + bytes(100) + data[108:]),
    "a header with other offsets": rewrite("model.safetensors", shift_offsets),
    "weights that are text": rewrite("model.safetensors", lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
    "an index without its files": index,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a pickle with code": hostile_pickle,
    "a zipped pickle with code": hostile_zip,
    "code of its own": own_code,
    "quantized weights": edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
    "quantized by nobody": edit("config.json", quantization_config={"quant_method": "none_such"}),
    "quantized with a list": edit("config.json", quantization_config=[1]),
    "config cut": rewrite("config.json", lambda data: data[: len(data) // 2]),
    "config a list": rewrite("config.json", lambda data: b"[1, 2]"),
    "config a number": rewrite("config.json", lambda data: b"3"),
    "config empty": rewrite("config.json", lambda data: b""),
    "config not UTF-8": rewrite("config.json", lambda data: b"\xff\xfe" + data),
    "config nested without end": rewrite("config.json", lambda data: b"[" * 100_000),
    "a width that is a text": edit("config.json", d_model="wide"),
    "a width below zero": edit("config.json", d_model=-8),
    "a width of another model": edit("config.json", d_model=32),
    "no vocabulary size": edit("config.json", vocab_size=None),
    "a vocabulary size that is a list": edit("config.json", vocab_size=[1]),
    "layers that are a text": edit("config.json", encoder_layers="many"),
    "no model type": edit("config.json", model_type=None),
    "a model type that is a list": edit("config.json", model_type=["bart"]),
    "another model type": edit("config.json", model_type="gpt2"),
    "a vocabulary of 10^12": edit("config.json", vocab_size=10**12),
    "tokenizer cut": rewrite("tokenizer.json", lambda data: data[: len(data) // 2]),
    "tokenizer empty": rewrite("tokenizer.json", lambda data: b""),
    "tokenizer a list": rewrite("tokenizer.json", lambda data: b"[]"),
    "tokenizer of a kind that nobody knows": rewrite("tokenizer.json", lambda data: data.replace(b'"BPE"', b'"XYZ"')),
    "tokenizer without a vocabulary": edit("tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []}),
    "a vocabulary of texts": edit("tokenizer.json", model={"type": "BPE", "vocab": {"a": "b"}, "merges": []}),
    "merges of unknown tokens": edit("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}),
    "tokenizer of a newer library": edit("tokenizer.json", version="9.0"),
    "tokenizer config a list": rewrite("tokenizer_config.json", lambda data: b"[]"),
    "a special token that is a number": edit("tokenizer_config.json", pad_token=3),
    "a tokenizer class that nobody knows": edit("tokenizer_config.json", tokenizer_class="NoSuch"),
    "a longest text that is a text": edit("tokenizer_config.json", model_max_length="long"),
    "generation config a list": lambda folder: (folder / "generation_config.json").write_text("[]") and None,
    "a folder in place of a file": folder_for_a_file,
}  # fmt: skip
WITHOUT_EFFECT = {  # transformers reads these as they were meant
    "a longest text that is a text", "tokenizer of a newer library", "a tokenizer class that nobody knows",
    "quantized by nobody",
}  # fmt: skip


@pytest.fixture
def damaged(tiny, tmp_path, monkeypatch) -> Callable[[str], Path]:
    def make(damage: str) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny("bart"), folder)
        DAMAGES[damage](folder)
        return folder

    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # who types y to every question
    return make


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_line(damaged, damage, capfd):
    folder = damaged(damage)
    loaders = {
        "language model": lambda: LanguageModel.from_pretrained(str(folder)),
        "tokenizer": lambda: load_tokenizer(str(folder), 16),
        "embeddings": lambda: input_embeddings(str(folder), LanguageModel.from_pretrained(str(folder)).tokenizer),
    }
    refused = 0
    for load in loaders.values():
        try:
            load()
        except UserError as error:
            refused += 1
            line = user_message(error)
            assert line.isprintable() and len(line) < 1000 and str(folder) in line, line
            assert "trust_remote_code" not in line and "weights_only" not in line and "pickle.load" not in line
    assert refused or damage in WITHOUT_EFFECT
    assert not (folder / "their code ran").exists()
    assert "custom code? [y/N]" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "damage", ["code of its own", "a pickle with code", "weights cut", "config a list", "tokenizer cut"]
)
def test_a_damaged_model_of_bertscore_is_one_line(damaged, damage, capfd):
    folder = damaged(damage)
    with pytest.raises(UserError, match="^BERTScore's model .* cannot be loaded") as caught:
        load_bertscore(str(folder), "cpu")
    assert "trust_remote_code" not in str(caught.value) and user_message(caught.value).isprintable()
    assert not (folder / "their code ran").exists()
    assert "custom code? [y/N]" not in capfd.readouterr().out
