"""The user's own files by either flag, in every program; a corpus is checked before a folder is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train_latent_model
from pipelines.cli import programs as command_lines
from utils.cli.parse import parse
from utils.errors import UserError

PROGRAMS = (
    command_lines.PRETRAIN, command_lines.AUTOENCODER, command_lines.DIFFUSION, command_lines.CLASSIFIER,
    command_lines.DRAFT_MODEL, command_lines.CAUSAL_LM, command_lines.SEQ2SEQ,
)  # fmt: skip


def own_folder(tmp_path: Path, name: str = "train.jsonl") -> Path:
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(40)))
    return folder


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name.split(".")[-1])
def test_every_program_takes_own_files_by_either_flag(program, tmp_path) -> None:
    folder = own_folder(tmp_path)
    for argv in (["--data_dir", str(folder)], ["--train_file", str(folder / "train.jsonl")]):
        data = parse(program, argv).config.data
        assert data.dataset_name is None and (data.data_dir or data.train_file)


def test_the_default_corpus_is_found_where_it_lies(tmp_path) -> None:
    def name_of(folder: Path, *argv: str) -> str | None:
        return parse(command_lines.AUTOENCODER, ["--data_dir", str(folder), *argv]).config.data.dataset_name

    stories = "".join(json.dumps([f"story {i}"]) + "\n" for i in range(40))
    (tmp_path / "root/ROCstory").mkdir(parents=True)
    (tmp_path / "root/ROCstory/roc_train.json").write_text(stories)
    assert name_of(tmp_path / "root") == name_of(tmp_path / "root/ROCstory") == "roc"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/train.json").write_text(stories)
    assert name_of(tmp_path / "copy") == "roc"  # the layout of the published release
    assert name_of(own_folder(tmp_path, "train.json")) is None
    assert name_of(own_folder(tmp_path, "train.json"), "--dataset_name", "roc") == "roc"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds neither texts .*nor roc.*--train_file.*--dataset_name"):
        name_of(tmp_path / "empty")


def test_a_typed_corpus_replaces_that_of_a_run(tmp_path) -> None:
    folder, run = own_folder(tmp_path), tmp_path / "run"
    run.mkdir()
    made = parse(command_lines.DIFFUSION, ["--train_file", "gone.jsonl", "--valid_file", "gone_too.jsonl"])
    (run / "args.json").write_text(json.dumps({**made.as_dict(), "program": made.program.name}))
    resumed = ["--eval", "--resume_dir", str(run)]
    data = parse(command_lines.DIFFUSION, [*resumed, "--data_dir", str(folder)]).config.data
    assert (data.train_file, data.valid_file, data.data_dir) == (None, None, str(folder))
    data = parse(command_lines.DIFFUSION, [*resumed, "--train_file", str(folder / "train.jsonl")]).config.data
    assert data.train_file == str(folder / "train.jsonl") and data.valid_file == "gone_too.jsonl"


@pytest.mark.parametrize(
    ("content", "message"),
    [("text;label\na;1;2\n", "line 2: 3 cells"), ("", "holds no texts"), ("text\n\xff\n", "line 2: not UTF-8")],
)
def test_a_refused_corpus_leaves_no_folder(tmp_path, monkeypatch, capsys, content: str, message: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content.encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    argv = "--device cpu --enc_dec_model nowhere --train_file bad.csv --output_dir made"
    monkeypatch.setattr("sys.argv", ["program", *argv.split()])
    with pytest.raises(SystemExit) as stopped:
        train_latent_model.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "made").exists()
