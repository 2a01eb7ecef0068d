"""What ranks share is made by rank 0: real process groups."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import pytest
import torch

from tests.utils.forks import in_ranks
from utils import distributed, ranks
from utils.distributed import DistContext
from utils.errors import UserError, exit_on_user_error
from utils.preemption import StopSignals, interruptible
from utils.shared import make_folder_on_main, make_on_main


def test_one_process_makes_it_itself(tmp_path):
    assert make_on_main(DistContext(), lambda: 3) == 3
    make_folder_on_main(DistContext(), tmp_path / "x", (tmp_path / "x").mkdir)
    assert (tmp_path / "x").is_dir()


def test_rank_0_makes_it_and_the_others_take_it(tmp_path):
    def work(dist):
        def make():
            (tmp_path / "shared").mkdir()
            (tmp_path / "shared/by").write_text(str(dist.rank))

        make_folder_on_main(dist, tmp_path / "shared", make)
        return make_on_main(dist, lambda: dist.rank), (tmp_path / "shared/by").read_text()

    assert in_ranks(3, work, tmp_path) == [(0, "0")] * 3


def test_a_rank_that_does_not_see_the_folder_gets_a_copy(tmp_path, monkeypatch):
    """As on a machine with a disk of its own."""
    monkeypatch.setattr("utils.shared._LOOKS", 1)

    def work(dist):
        folder = tmp_path / f"disk{dist.rank}" / "scorer"
        if dist.rank == 2:  # of another corpus
            folder.mkdir(parents=True)
            (folder / "weights").write_text("old")

        def make():
            (folder / "deep").mkdir(parents=True)
            (folder / "weights").write_bytes(bytes(range(256)))
            (folder / "deep/tokenizer").write_text("t")

        make_folder_on_main(dist, folder, make)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    found = in_ranks(3, work, tmp_path)
    assert found[0] == found[1] == found[2] and found[0].keys() == {"weights", "deep/tokenizer"}


def test_an_error_of_rank_0_is_raised_on_every_rank(tmp_path, capfd):
    def work(dist):
        def make():
            raise FileNotFoundError(2, "No such file or directory", "/nowhere")

        make_on_main(dist, make)

    errors = in_ranks(2, work, tmp_path)
    assert type(errors[0]) is FileNotFoundError and type(errors[1]) is UserError
    assert "/nowhere: No such file" in str(errors[1])


def test_a_rank_that_has_ended_is_noticed_at_once(tmp_path, capfd):
    def work(dist):
        dist.max(0)  # both have joined all groups: rank 0 holds their store
        if dist.is_main:
            os._exit(0)
        began = time.monotonic()
        try:
            dist.barrier()
        except RuntimeError as error:
            return ranks.is_lost_connection(error), time.monotonic() - began
        return None

    (tmp_path / "rank0.pickle").write_bytes(b"N.")  # it leaves no result
    lost, seconds = in_ranks(2, work, tmp_path)[1]
    assert lost and seconds < 20


def test_a_hanging_exchange_is_noticed_after_minutes_and_a_waiting_one_is_patient(tmp_path, monkeypatch, capfd):
    """Here the minutes are half a second, and rank 0 is busy for longer before an exchange of objects."""
    assert timedelta(minutes=2) <= distributed.TIMEOUT <= timedelta(minutes=30) < distributed.PATIENCE
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=0.5))

    def work(dist):
        if dist.is_main:
            time.sleep(1.5)
        shared = distributed.broadcast_object(dist, "late")
        if dist.is_main:
            time.sleep(3)
            return shared
        try:
            dist.sum(torch.ones(1))
        except Exception as error:
            return shared, ranks.is_lost_connection(error)
        return shared, None

    assert in_ranks(2, work, tmp_path) == ["late", ("late", True)]


def test_a_signal_leaves_an_evaluation_whose_checkpoint_is_saved(tmp_path, capfd):
    """Of several ranks: torchrun sends SIGKILL 30 seconds after SIGTERM, and rank 0 may work for longer."""

    def work(dist):
        with StopSignals(), interruptible():
            StopSignals.is_saved = True
            os.kill(os.getpid(), signal.SIGTERM)
            if dist.is_main:
                time.sleep(0.2)
            dist.barrier()

    codes = [error.code for error in in_ranks(2, work, tmp_path)]
    assert codes == [143, 143]


@pytest.mark.parametrize(
    ("rank", "local", "seconds"), [(0, 0, None), (1, 1, 4.0), (4, 0, 1.5)], ids=["main", "other", "second machine"]
)
def test_a_mistake_that_every_rank_meets_is_read_once(monkeypatch, capsys, rank, local, seconds):
    """The others wait for a moment, in which the launcher ends them if rank 0 met it too."""
    for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("WORLD_SIZE", 8)):
        monkeypatch.setenv(name, str(value))
    slept = []
    monkeypatch.setattr(ranks.time, "sleep", slept.append)

    @exit_on_user_error
    def main():
        raise UserError("--x is wrong: leave it out")

    with pytest.raises(SystemExit) as exit:
        main()
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.count("\n") == 1 and said.startswith("error: --x is wrong: leave it out")
    assert slept == ([] if seconds is None else [seconds]) and (f"(rank {rank})" in said) == (rank > 0)


def test_other_errors_keep_their_traceback(monkeypatch):
    @exit_on_user_error
    def main():
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError):
        main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
