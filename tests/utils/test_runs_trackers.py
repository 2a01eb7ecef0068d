"""Run folders, files written whole, metrics.jsonl, wandb offline, progress."""

from __future__ import annotations

import io
import json
import time

import pytest

from utils import progress
from utils.config import parse
from utils.errors import UserError
from utils.options import RunOptions
from utils.progress import Progress, duration
from utils.runs import git_commit, new_run_folder, package_versions, resolve, write_json, write_text
from utils.settings import Program
from utils.trackers import MetricsFile, flatten, has_wandb_key, make_trackers, read_metrics, wants_wandb

PROGRAM = Program("p", "d", {"run": RunOptions})


def test_run_folders_are_dated_unique_and_never_lead_out(tmp_path):
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


def test_facts_of_the_code():
    assert package_versions()["torch"] and "python" in package_versions()
    commit = git_commit()
    assert commit is None or len(commit.split("+")[0]) == 40


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    file = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        file.log({"loss": step / 10, "bad": float("nan")}, step)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 4, "lo')  # killed while writing
    MetricsFile(tmp_path, 2).log({"loss": 9}, 3)
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 9)]
    assert read_metrics(tmp_path)[0]["bad"] is None
    MetricsFile(tmp_path, 0)
    assert read_metrics(tmp_path) == []


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_is_on_when_typed_or_a_key_exists_never_by_default(no_key, monkeypatch):
    def wants(*argv):
        return wants_wandb(parse(PROGRAM, argv))

    assert not has_wandb_key() and not wants()
    assert wants("--wandb") and wants("--wandb_name", "x")
    no_key.write_text("machine api.wandb.ai login user password secret\n")
    no_key.chmod(0o600)
    assert has_wandb_key() and wants() and not wants("--no_wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not wants("--wandb")


def test_dry_runs_track_nothing(no_key, tmp_path):
    assert make_trackers(parse(PROGRAM, ["--wandb", "--dry_run"]), "project", tmp_path) == []


@pytest.mark.slow
def test_wandb_without_a_key_is_offline_and_never_waits(no_key, tmp_path):
    began = time.monotonic()
    (tracker,) = make_trackers(parse(PROGRAM, ["--wandb_name", "x"]), "project", tmp_path)
    tracker.log({"loss": 1.0}, 1)
    tracker.table("samples", ["text"], [["a <b>"]], 1)
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*")) and time.monotonic() - began < 30


def test_flat_configurations():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": "[1]"}


def test_durations():
    assert [duration(s) for s in (0, 65, 3661, -1)] == ["0:00", "1:05", "1:01:01", "0:00"]


def test_progress_in_a_log_file_is_a_line_now_and_then(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with Progress("encode", 100, file=out, unit="text") as bar:
        for _ in range(100):
            clock[0] += 0.25
            bar.advance(1, "loss 1")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in out.getvalue()
    assert lines[0] == "encode:  40% 40/100, 4.0 texts/s, 0:10 gone, 0:15 to go, loss 1"
    assert lines[-1].startswith("encode: 100% 100/100")


def test_progress_in_a_terminal_moves_on_one_line_and_a_resumed_rate_is_of_this_run():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    bar = Progress("train", 10, start=5, file=out)
    bar.at(6)
    bar.say("a sample")
    bar.close()
    bar.close()
    assert out.getvalue().count("\n") == 2 and "\r" in out.getvalue() and "a sample\n" in out.getvalue()
    silent = Progress("train", 0, quiet=True, file=out)
    silent.close()
    assert out.getvalue().count("\n") == 2
