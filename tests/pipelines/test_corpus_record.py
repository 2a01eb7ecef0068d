"""A run knows its corpus: it is resumed on no other, an evaluation on another says so, and moved files are found."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from evaluation import local_lm, scorers
from pipelines import train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.corpus_record import HASHES
from utils.cli.parse import parse
from utils.errors import UserError

CASES = Path(__file__).parents[1] / "cases" / "two_corpora"
FLAGS = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 16 --tx_dim 64 --tx_depth 1 --device cpu "
    "--train_batch_size 16 --sampling_timesteps 2 --num_samples 4 --eval_batch_size 4 --no_wandb --num_train_steps 2 "
    "--config val_loss_examples=8"
)


def run(flags: str) -> int:
    return train_diffusion.train(parse(DIFFUSION, flags.split()))


@pytest.fixture(scope="module")
def trained(programs, tmp_path_factory) -> Path:
    """A folder with the two corpora in a/ and b/, and a run in a/run of the first, whose scorer is in its folder."""
    root = tmp_path_factory.mktemp("two")
    shutil.copytree(CASES, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "a")
        assert run(f"{FLAGS} --train_file data.txt --scorer {programs.scorer} --output_dir run") == 0
    shutil.copytree(programs.scorer, root / "a" / "run" / "scorer")
    return root


@pytest.fixture
def tree(trained, tmp_path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(trained, tmp_path / "tree")
    return tmp_path / "tree"


def resume(folder: Path | str, flags: str = "") -> int:
    return run(f"--resume_training --resume_dir {folder} --num_train_steps 3 --no_wandb {flags}")


def evaluate(folder: Path | str, flags: str = "") -> dict:
    assert run(f"--eval --resume_dir {folder} --no_wandb {flags}") == 0
    return json.loads((Path(folder) / "evaluation" / "eval-valid.json").read_text())


def use_scorer_of_run(folder: Path) -> None:
    """As if the run had been trained without --scorer."""
    saved = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**saved, "scorer": "local_lm"}))


def test_a_run_records_the_digests_of_its_splits_and_the_place_of_its_files(trained):
    entry = json.loads((trained / "a/run/args.json").read_text())["corpus"]
    assert entry["places"] == {"train": "../data.txt"}
    assert sum(split["num_texts"] for split in entry["splits"].values()) == 300


def test_the_same_name_in_another_folder_is_another_corpus(tree, monkeypatch, contents):
    monkeypatch.chdir(tree / "b")
    before = contents(tree / "a/run")
    with pytest.raises(UserError) as caught:
        resume("../a/run")
    assert re.match(
        r"data.txt is not the corpus that ../a/run was trained on: of its \d+ train texts \d+ are missing, and \d+ are "
        r"new; of its \d+ valid texts .*; of its \d+ test texts .*: for the run's own pass --train_file ../a/data.txt, "
        r"or train a new run on this one$",
        str(caught.value),
    )
    assert contents(tree / "a/run") == before
    assert resume("../a/run", "--train_file ../a/data.txt") == 0  # what it advises


def test_an_evaluation_on_another_corpus_says_so_and_keeps_the_scorer(tree, monkeypatch, contents, capfd):
    monkeypatch.chdir(tree / "b")
    use_scorer_of_run(tree / "a/run")
    before = contents(tree / "a/run/scorer")
    result = evaluate("../a/run")
    assert result["protocol"]["corpus"] == "another than the run's"
    assert result["protocol"]["valid_texts_trained_on"] == result["protocol"]["test_texts_trained_on"] == 0
    assert contents(tree / "a/run/scorer") == before
    shown = capfd.readouterr().err
    assert "warning: data is not the corpus that ../a/run was trained on" in shown
    assert "note: scorer: the run's own, ../a/run/scorer" in shown
    assert not (tree / "a/run/evaluation/another_corpus").exists()


def test_an_evaluation_on_the_corpus_of_the_run_says_that_too(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    assert evaluate("run")["protocol"]["corpus"] == "the run's"


def appended(lines: list[str]) -> list[str]:
    return [*lines, "Otis took a lamp to Oslo by night."]


def first_removed(lines: list[str]) -> list[str]:
    return lines[1:]


def rotated(lines: list[str]) -> list[str]:
    return lines[100:] + lines[:100]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (appended, r"of its \d+ (train|valid|test) texts 0 are missing, and 1 are new"),
        (first_removed, r"of its \d+ (train|valid|test) texts 1 are missing, and 0 are new"),
        (rotated, "its train texts stood in another order; its valid texts stood in another order; its test texts"),
    ],
)
def test_a_changed_file_is_noticed_and_holds_out_what_was_held_out(tree, monkeypatch, change, message):
    monkeypatch.chdir(tree / "a")
    lines = list(dict.fromkeys(Path("data.txt").read_text().splitlines()))
    Path("data.txt").write_text("\n".join(lines) + "\n")
    assert run(f"{FLAGS} --train_file data.txt --scorer run/scorer --output_dir again") == 0
    Path("data.txt").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=message):
        resume("again")
    protocol = evaluate("again")["protocol"]
    assert protocol["corpus"] == "another than the run's"
    assert protocol["valid_texts_trained_on"] == protocol["test_texts_trained_on"] == 0


def test_held_out_texts_of_other_files_that_the_run_was_trained_on_are_counted(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    Path("valid.txt").write_text("".join(Path("data.txt").read_text().splitlines(keepends=True)[:40]))
    protocol = evaluate("run", "--valid_file valid.txt")["protocol"]
    assert protocol["corpus"] == "another than the run's" and 0.5 < protocol["valid_texts_trained_on"] < 1


def test_a_run_that_moved_with_its_corpus_finds_it(tree, monkeypatch, tmp_path, capfd):
    (tree / "a").rename(tmp_path / "moved")
    shutil.rmtree(tree)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "moved" / "run"
    assert evaluate("moved/run")["protocol"]["corpus"] == "the run's"
    assert "the corpus of moved/run moved with it: --train_file moved/data.txt" in capfd.readouterr().err
    assert resume("moved/run") == 0
    saved = json.loads((folder / "args.json").read_text())
    assert saved["train_file"] == "moved/data.txt" and saved["corpus"]["places"] == {"train": "../data.txt"}
    (tmp_path / "moved" / "data.txt").unlink()
    with pytest.raises(UserError, match=r"of moved/run is not at moved/data.txt: give .* with --train_file$"):
        resume("moved/run")


@pytest.mark.parametrize("flag", ["--data_dir corpora", "--data_dir corpora/train.txt"])
def test_a_moved_folder_of_files_is_found(tree, monkeypatch, tmp_path, flag):
    monkeypatch.chdir(tree)
    (tree / "corpora").mkdir()
    shutil.copy("a/data.txt", "corpora/train.txt")
    assert run(f"{FLAGS} {flag} --scorer {tree}/a/run/scorer --output_dir runs/one") == 0
    monkeypatch.chdir("/")
    protocol = evaluate(tree / "runs/one")["protocol"]
    assert protocol["corpus"] == "the run's"
    shutil.rmtree(tree / "corpora")
    with pytest.raises(UserError, match=r"is neither corpora.* nor .*: give its present path with --data_dir$"):
        resume(tree / "runs/one")


def test_a_run_without_a_record_is_used_and_the_protocol_says_so(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    path = Path("run/args.json")
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in saved.items() if key != "corpus"}))
    assert evaluate("run")["protocol"]["corpus"] == "not recorded"


@pytest.mark.parametrize(
    "entry", [None, 5, [], {}, {"splits": []}, {"splits": {"train": {}}}, {"splits": 1, "places": 2}]
)
def test_a_damaged_record_is_one_line(tree, monkeypatch, entry):
    monkeypatch.chdir(tree / "a")
    path = Path("run/args.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "corpus": entry}))
    with pytest.raises(UserError, match="run/args.json.*corpus"):
        resume("run")


@pytest.mark.parametrize("damage", [None, b"", b"\0" * 64, b"{}"])
def test_without_the_hashes_sizes_are_compared(tree, monkeypatch, damage):
    (tree / "a/run" / HASHES).unlink()
    if damage is not None:
        (tree / "a/run" / HASHES).write_bytes(damage)
    monkeypatch.chdir(tree / "b")
    with pytest.raises(UserError, match=r"it had \d+ train texts, and these are \d+ others"):
        resume("../a/run")


def test_a_run_without_a_scorer_gets_one_of_another_corpus_apart(tree, monkeypatch):
    """The scorer of the run is made by its own corpus alone."""
    monkeypatch.chdir(tree / "b")
    shutil.rmtree(tree / "a/run/scorer")
    Path("data.txt").write_text("".join(Path("../a/data.txt").read_text().splitlines(keepends=True)[:200]))
    use_scorer_of_run(tree / "a/run")
    train = partial(local_lm.train_local, steps=2, width=16, layers=1, heads=1, vocab_size=300)
    monkeypatch.setattr(local_lm, "train_local", train)  # smaller
    monkeypatch.setattr(scorers, "train_local", train)
    evaluate("../a/run")
    assert (tree / "a/run/evaluation/another_corpus/scorer" / local_lm.INFO_FILE).is_file()
    assert not (tree / "a/run/scorer").exists()


def test_a_scorer_that_was_named_by_a_relative_path_is_found_from_another_folder(tree, monkeypatch, capfd):
    monkeypatch.chdir(tree / "a")
    (tree / "a/run/scorer").rename("judge")
    saved = json.loads(Path("run/args.json").read_text())
    assert set(saved["models_relative"]) == {"scorer"}
    saved |= {"scorer": "judge", "models_relative": {"scorer": "../judge"}}
    Path("run/args.json").write_text(json.dumps(saved))
    monkeypatch.chdir(tree)
    evaluate("a/run")
    assert "note: --scorer judge of a/run is found at a/judge" in capfd.readouterr().err
    assert not (tree / "a/run/scorer").exists()
