"""metrics.jsonl; Weights & Biases offline, and TensorBoard, whose files are read back."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.offline_panels import read_offline_run
from utils.cli.parse import parse
from utils.cli.settings import Program, group
from utils.errors import UserError
from utils.options import RunOptions, TrackingOptions
from utils.trackers import (
    Histogram,
    MetricsFile,
    check_trackers,
    flatten,
    make_trackers,
    read_metrics,
    wants_wandb,
)
from utils.wandb_tracker import has_wandb_key


@dataclass
class Config:
    run: RunOptions = group(RunOptions, "run")
    tracking: TrackingOptions = group(TrackingOptions, "tracking")


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
    for flag in ("--wandb_mode", "--wandb_group", "--wandb_tags"):
        assert wants(flag, "offline") and not wants("--no_wandb", flag, "offline")
    assert not wants("--wandb", "--wandb_mode", "disabled")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not wants("--wandb") and wants("--wandb_mode", "offline")


@pytest.mark.parametrize(
    ("flags", "package", "message"),
    [
        ("--wandb", "wandb", "--wandb needs .* pip install wandb"),
        ("--tensorboard", "tensorboard", "--tensorboard needs .* pip install tensorboard"),
        ("--wandb_mode online", None, "needs a key of Weights & Biases: run `wandb login`"),
    ],
)
def test_what_a_tracker_lacks_is_said_before_training(no_key, monkeypatch, flags, package, message):
    if package:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message):
        check_trackers(parse(PROGRAM, flags.split()))


def start(folder, *flags):
    (tracker,) = make_trackers(parse(PROGRAM, flags), "project", folder)
    return tracker


def test_wandb_offline_keeps_curves_tables_histograms_configuration_and_the_report(no_key, tmp_path):
    began = time.monotonic()
    flags = ("--wandb_name", "x", "--wandb_group", "g", "--wandb_tags", "a, b")
    tracker = start(tmp_path, *flags)
    tracker.store_init_configuration({"loop": {"seed": 3}, "none": None})
    tracker.log({"loss": 1.0}, 1)
    tracker.log_table("model/beam/samples", ["text"], [["a <b>"]], 1)
    tracker.log_histogram("latent_norm", Histogram.of([1, 2, 2, float("nan")], bins=2), 1)
    (tmp_path / "report.html").write_text("<p>report")
    tracker.log_file(tmp_path / "report.html", "report", 1)
    tracker.finish()
    assert time.monotonic() - began < 30
    run = read_offline_run(tmp_path)
    assert (run.name, run.group, run.tags) == ("x", "g", ["a", "b"])
    assert run.config == {"loop.seed": 3, "none": None} and f"report-{run.run_id}" in run.artifacts
    logged = {name: (value, row["step"]) for row in run.history for name, value in row.items()}
    assert logged["loss"] == (1, 1) and logged["latent_norm"][0]["values"] == [1, 2]
    assert logged["model/beam/samples"][0]["nrows"] == 1 and logged["report"][0]["_type"] == "html-file"


def test_a_resumed_run_and_an_evaluation_go_on_in_the_same_wandb_run(no_key, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder, loss, flags in (
        (run, 1, ["--wandb_name", "x", "--wandb_tags", "a"]),
        (run, 2, ["--wandb", "--resume_training", "--resume_dir", str(run)]),
        (elsewhere, 3, ["--wandb", "--resume_training", "--resume_dir", str(run)]),  # as an evaluation writes elsewhere
    ):
        run.mkdir(exist_ok=True)
        (run / "args.json").write_text('{"random_seed": 1}')
        tracker = start(folder, *flags)
        tracker.log({"loss": loss}, loss)
        tracker.finish()
    first, second = read_offline_run(run), read_offline_run(elsewhere)
    assert [row["loss"] for row in first.history] == [1, 2] and [row["loss"] for row in second.history] == [3]
    assert first.run_id == second.run_id and second.name == "x" and second.tags == ["a"]
    assert not (elsewhere / "wandb_run.json").exists()
    new = start(run, "--wandb")  # a training that begins anew
    new.finish()
    assert new.run.id != first.run_id


def test_tensorboard_keeps_them_and_a_resumed_run_hides_what_is_logged_again(tmp_path):
    tracker = start(tmp_path, "--tensorboard")
    tracker.store_init_configuration({"loop": {"seed": 3}, "none": None})
    for step in (1, 2, 3):
        tracker.log({"loss": step, "missing": None}, step)
    tracker.log_table("samples", ["text"], [["a | <b> *c*"]], 1)
    tracker.log_histogram("latent_norm", Histogram.of([1, 2, 2], bins=2), 1)
    tracker.log_file(tmp_path / "report.html", "report", 1)
    tracker.finish()
    resumed = start(tmp_path, "--tensorboard")
    resumed.cut_back(2)
    resumed.log({"loss": 9}, 3)
    resumed.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 9)]
    assert events.Histograms("latent_norm")[0].histogram_value.num == 3
    text = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert text["samples/text_summary"].splitlines()[2] == "| a &#124; &lt;b&gt; &#42;c&#42; |"
    assert '"seed": 3' in text["configuration/text_summary"].replace("&quot;", '"')


def test_tensorboard_hides_what_a_run_that_was_killed_before_its_first_checkpoint_logged(tmp_path):
    for values in ((1, 2, 3), (7, 8)):
        tracker = start(tmp_path, "--tensorboard")
        tracker.store_init_configuration({"seed": len(values)})
        tracker.cut_back(0)
        for step, value in enumerate(values, 1):
            tracker.log({"loss": value}, step)
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 7), (2, 8)]
    assert "configuration/text_summary" in events.Tags()["tensors"]


def test_metrics_jsonl_is_a_tracker_of_accelerate(tmp_path):
    accelerator = Accelerator(cpu=True, log_with=MetricsFile(tmp_path))
    accelerator.init_trackers("project", {"seed": 3})
    accelerator.log({"loss": 1.5}, step=1)
    accelerator.end_training()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.5}]


def test_metrics_jsonl_holds_histograms(tmp_path):
    MetricsFile(tmp_path).log_histogram("latent_norm", Histogram.of([[1, 2], [2, 3]], bins=2), 4)
    assert read_metrics(tmp_path) == [{"step": 4, "latent_norm": {"edges": [1, 2, 3], "counts": [1, 3]}}]


def test_no_tracker_without_a_flag(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert make_trackers(parse(PROGRAM, []), "project", tmp_path) == []


def test_configurations_are_flattened():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": "[1]"}
