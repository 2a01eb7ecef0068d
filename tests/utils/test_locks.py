"""Locks between processes: two are never inside, whatever waits; a killed process frees its lock."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.locks import exclusive, release, try_lock, was_removed

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


def _enter(path: Path, seconds: float, inside, entries, met) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with exclusive(path):
            with inside.get_lock():
                inside.value += 1
                if inside.value > 1:
                    met.value += 1
            with inside.get_lock():
                inside.value -= 1
        entries.value += 1  # outside of the lock, so that the next one may come


def test_of_four_processes_with_thousands_of_entries_two_are_never_inside(tmp_path):
    inside, met = FORK.Value("i", 0), FORK.Value("i", 0)
    entries = [FORK.Value("i", 0) for _ in range(4)]
    arguments = [(tmp_path / "scorer", 2.0, inside, count, met) for count in entries]
    processes = [FORK.Process(target=_enter, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    total = sum(count.value for count in entries)
    print(f"{total} entries of four processes, {met.value} of them met another inside")
    assert total > 1000 and met.value == 0


def test_who_does_not_wait_is_told_and_a_nested_folder_is_made(tmp_path):
    path = tmp_path / "new" / "cache"
    with exclusive(path) as first:
        with exclusive(path, wait=False) as second:
            assert first and not second
        with exclusive(path.with_name("other"), wait=False) as third:
            assert third
    with exclusive(path, wait=False) as again:
        assert again
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == []


def _hold(path: Path, held) -> None:
    with exclusive(path):
        held.set()
        time.sleep(60)


def test_a_killed_process_frees_its_lock(tmp_path):
    held = FORK.Event()
    process = FORK.Process(target=_hold, args=(tmp_path / "x", held))
    process.start()
    assert held.wait(20)
    with exclusive(tmp_path / "x", wait=False) as mine:
        assert not mine
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    with exclusive(tmp_path / "x") as mine:
        assert mine


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_where_no_lock_file_can_be_written_nothing_is_locked(tmp_path):
    tmp_path.chmod(0o555)
    with exclusive(tmp_path / "x") as mine:
        assert mine
    tmp_path.chmod(0o755)


def test_a_folder_that_was_removed_renamed_or_made_again_is_noticed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert not was_removed(run), "it is not locked"
    assert try_lock(run) and try_lock(run) and not was_removed(run)
    run.rename(tmp_path / "moved")
    assert was_removed(run)
    run.mkdir()
    assert was_removed(run), "another folder has its name"
    assert try_lock(run) and not was_removed(run)
    shutil.rmtree(run)
    assert was_removed(run)
    release(run)
    assert was_removed(run), "still known after the lock was released"


def test_one_process_locks_a_folder(tmp_path):
    program = (
        "import sys; from pathlib import Path; from utils.locks import try_lock; print(try_lock(Path(sys.argv[1])))"
    )

    def other() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert try_lock(tmp_path) and other() == "False"
    release(tmp_path)
    assert other() == "True" and try_lock(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux")
def test_where_no_file_can_be_made_nothing_is_locked_and_nobody_waits() -> None:
    with exclusive(Path("/proc/no_such_place")) as inside:
        assert inside
