"""A rank that hangs is noticed in minutes, here seconds, and named; one that works for long is waited for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evaluation.distributed import on_rank0
from tests.utils.forks import in_ranks, of_torchrun
from tests.utils.test_loop import make_state, run
from utils import heartbeat
from utils.errors import UserError
from utils.heartbeat import beat, beating
from utils.options import LoopOptions
from utils.preemption import check_interrupt
from utils.progress import ProgressBar

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2.0  # of silence, instead of minutes


@pytest.mark.parametrize("hang", ["at once", "in beating"])
def test_a_rank_that_hangs_is_named_and_one_line_comes_before(tmp_path, monkeypatch, capfd, hang):
    """It holds its connections open, so that gloo alone would wait for it. A thread beats for a limited time."""
    monkeypatch.setenv(heartbeat.VARIABLE, str(SECONDS))

    def work(dist):
        dist.barrier()
        began = time.monotonic()
        if dist.rank == 1:
            with beating(longest=1.0 if hang == "in beating" else 0.0):
                time.sleep(3 * SECONDS)
            return None
        try:
            dist.barrier()
        except UserError as error:
            taken = time.monotonic() - began
            time.sleep(0.5)  # rank 0 holds the store of the others
            return str(error), taken
        return None

    found = in_ranks(3, work, tmp_path)
    for message, seconds in (found[0], found[2]):
        assert re.match(r"no sign of life of rank 1 \([\d.]+ s\), for which", message)
        assert "--resume_training" in message and f"{heartbeat.VARIABLE} to more seconds than 2" in message
        assert SECONDS <= seconds < 3 * SECONDS
    assert capfd.readouterr().err.count("note: no sign of life of rank 1 (") == 1


def test_a_rank_that_works_for_long_is_waited_for(tmp_path, monkeypatch, capfd):
    """In loops that beat, in work without a loop, and by the metrics of rank 0."""
    monkeypatch.setenv(heartbeat.VARIABLE, str(SECONDS))

    def work(dist):
        def score():
            time.sleep(1.5 * SECONDS)
            return "scores"

        if dist.rank == 1:
            end = time.monotonic() + 1.5 * SECONDS
            while time.monotonic() < end:
                check_interrupt()
                time.sleep(0.05)
        dist.barrier()
        return on_rank0(dist, None, score)

    assert in_ranks(2, work, tmp_path) == ["scores", "scores"]


PROGRAM = """
import sys, time
from utils.distributed import init_distributed
from utils.errors import exit_on_user_error

@exit_on_user_error
def main():
    dist = init_distributed("cpu")
    dist.barrier()
    if dist.rank == 1:
        time.sleep(600)
    dist.barrier()

sys.exit(main())
"""


@pytest.mark.slow
def test_a_program_whose_partner_hangs_ends_with_one_line(tmp_path):
    """Its process ends, too, though an exchange of the group is open."""
    (tmp_path / "program.py").write_text(PROGRAM)
    port = 20_000 + os.getpid() % 20_000
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", heartbeat.VARIABLE: "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "program.py"], env={**common, **of_torchrun(rank, 2, port)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = processes[0].communicate(timeout=120)[1].splitlines()
        assert processes[0].returncode == 2
        assert [line for line in said if line.startswith("error: ")] == [said[-1]] and "of rank 1 (" in said[-1]
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def joined():
    heartbeat.join(torch.distributed.HashStore(), 0, 2)
    assert heartbeat._joined is not None
    yield heartbeat._joined
    heartbeat.leave()


def test_loops_beat_and_at_most_so_often(joined, tmp_path):
    for number, work in enumerate((beat, check_interrupt, ProgressBar("x", 1, disable=True).advance), start=1):
        for _ in range(3):
            work()
        assert joined.beats(0) == number
        joined._next = 0.0  # the time of the next beat
    run(make_state(), tmp_path, LoopOptions(num_train_steps=3, log_every=1))
    assert joined.beats(0) == 4


def test_a_single_process_neither_beats_nor_waits():
    heartbeat.leave()
    beat()
    with beating():
        assert heartbeat.wait() is None


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_wrong_number_of_seconds_is_one_line(monkeypatch, text):
    monkeypatch.setenv(heartbeat.VARIABLE, text)
    with pytest.raises(UserError, match=f"HEARTBEAT_TIMEOUT={text}: give seconds, above 0, or leave it out for 600"):
        heartbeat.join(torch.distributed.HashStore(), 0, 2)
