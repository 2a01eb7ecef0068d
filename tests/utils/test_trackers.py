"""metrics.jsonl, and Weights & Biases offline."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from utils.cli.parse import parse
from utils.cli.settings import Program, group
from utils.options import RunOptions
from utils.trackers import MetricsFile, flatten, has_wandb_key, make_trackers, read_metrics, wants_wandb


@dataclass
class Config:
    run: RunOptions = group(RunOptions, "run")


PROGRAM = Program("p", "d", Config)


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


ODD_LINES = (
    b"5",
    b"null",
    b'"x"',
    b"[1]",
    b"{}",
    b'{"step": "4"}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"step": 9, "lo',
    b"\r",
)


@pytest.mark.parametrize("odd", ODD_LINES, ids=lambda line: repr(line[:12]))
def test_an_odd_line_blocks_no_resume(tmp_path, odd):
    good = [b'{"step": 1, "loss": 2}', b'{"step": 2, "loss": 3}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], odd, good[1], odd]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    MetricsFile(tmp_path, 1).log({"loss": 4}, 2)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 2), (2, 4)]


def test_lines_after_the_checkpoint_are_cut_where_its_evaluation_is_made_again(tmp_path):
    file = MetricsFile(tmp_path)
    assert file.num_bytes() == 0
    for value in (1, 2):
        file.log({"loss": value}, 2)
    size = file.num_bytes()
    file.log({"bleu": 5}, 2)
    for keep, left in ((size + 3, 3), (10**9, 3), (size, 2), (0, 0)):  # in the middle of a line: a file that was edited
        MetricsFile(tmp_path, 2, keep)
        assert len(read_metrics(tmp_path)) == left


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_is_on_when_typed_and_never_by_a_key(no_key, monkeypatch):
    def wants(*argv):
        return wants_wandb(parse(PROGRAM, argv))

    assert not has_wandb_key() and not wants()
    assert wants("--wandb") and wants("--wandb_name", "x")
    no_key.write_text("machine api.wandb.ai login user password secret\n")
    no_key.chmod(0o600)
    assert has_wandb_key() and not wants() and wants("--wandb") and not wants("--wandb_name", "x", "--no_wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key() and not wants()
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


def test_configurations_are_flattened():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": "[1]"}
