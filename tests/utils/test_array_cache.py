"""Arrays on disk: fixed and ragged rows, built in shards by any number of processes, any of which may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from utils import array_cache
from utils.array_cache import ArrayCache, Layout, format_bytes, open_or_build, shards_of, size_of
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
N = 23
LENGTHS = np.arange(N) % 5  # some rows are empty


def layouts() -> dict[str, Layout]:
    return {"x": Layout((2, 3)), "source": Layout((4,), "float16", LENGTHS)}


def row(i: int) -> np.ndarray:
    return np.full((2, 3), i, np.float32)


def source(i: int) -> np.ndarray:
    return (np.arange(LENGTHS[i])[:, None] + 10 * i + np.zeros(4)).astype(np.float16)


def encode(start: int, stop: int, size: int = 3):
    """The rows in reverse order, in batches; padding of ragged rows is noise, which must not be stored."""
    for index in np.split(np.arange(start, stop)[::-1], range(size, stop - start, size)):
        sources = np.full((len(index), 5, 4), 9999, np.float16)
        for place, i in enumerate(index):
            sources[place, : LENGTHS[i]] = source(i)
        yield index, {"x": np.stack([row(i) for i in index]), "source": sources}


def never(start, stop):
    raise AssertionError("no row may be encoded again")


def visible(folder: Path) -> list[str]:
    """Names of the files apart from the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".cache.lock")


def shards_on_disk(folder: Path) -> int:
    return sum(path.name.isdecimal() for path in folder.glob("key/shards/*"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(array_cache, "SHARD_BYTES", 200)


def check(cache: ArrayCache) -> None:
    index = np.array([5, 0, 22, 5, 9])
    assert np.array_equal(cache.rows("x", index), np.stack([row(i) for i in index]))
    for pad_to in (None, 7):
        found, mask = cache.padded_rows("source", index, pad_to)
        assert found.shape == (5, pad_to or 4, 4) and found.dtype == np.float16
        assert mask.sum(1).tolist() == LENGTHS[index].tolist() and not found[~mask].any()
        for place, i in enumerate(index):
            assert np.array_equal(found[place, : LENGTHS[i]], source(i))


def test_fixed_and_ragged_rows_are_stored_at_their_index(tmp_path):
    done: list[int] = []
    assert len(shards_of(N, layouts())) > 3
    check(open_or_build(tmp_path, "key", N, layouts(), encode, progress=done.append))
    assert done == sorted(done) and done[-1] == N
    again = open_or_build(tmp_path, "key", N, layouts(), never)
    check(again)
    names = ["cache.json", "source.npy", "x.npy"]
    assert visible(tmp_path / "key") == names, "no temporary file remains"
    assert size_of(N, layouts()) == N * 24 + LENGTHS.sum() * 8 == again.nbytes


def test_shards_cover_the_rows_once():
    for n in (1, 2, N, 1000):
        spans = shards_of(n, {"x": Layout((2, 3))})
        assert [i for start, stop in spans for i in range(start, stop)] == list(range(n))


def test_small_rows_are_split_into_shards_too(monkeypatch):
    """A hundred thousand rows of 8 x 16 take 51 MB: one shard would leave all but one process idle."""
    monkeypatch.undo()
    for shape, n in (((8, 16), 100_000), ((32, 64), 100_000)):
        spans = shards_of(n, {"x0": Layout(shape)})
        assert len(spans) > 10 and max(stop - start for start, stop in spans) * np.prod(shape) * 4 < 70e6


def test_unfinished_shards_of_another_partition_are_rebuilt(tmp_path, monkeypatch):
    """Another release may have built it: its first shard is half of ours."""
    shards = shards_of(N, layouts())

    def broken(start, stop):
        if start:
            raise KeyboardInterrupt
        yield from encode(start, stop)

    with pytest.raises(KeyboardInterrupt):
        open_or_build(tmp_path, "key", N, layouts(), broken)
    monkeypatch.setattr(array_cache, "SHARD_ROWS", 2 * shards[0][1])
    monkeypatch.setattr(array_cache, "SHARD_BYTES", 10**6)
    check(open_or_build(tmp_path, "key", N, layouts(), encode))


def test_other_contents_in_the_folder_are_refused(tmp_path):
    open_or_build(tmp_path, "key", N, layouts(), encode)
    shutil.copytree(tmp_path / "key", tmp_path / "other")
    with pytest.raises(UserError, match="other.*its key is key instead of other.: delete it") as refused:
        open_or_build(tmp_path, "other", N, layouts(), never)
    assert "\n" not in str(refused.value)
    shifted = {**layouts(), "source": Layout((4,), "float16", LENGTHS[::-1].copy())}
    with pytest.raises(UserError, match="its arrays is"):
        open_or_build(tmp_path, "key", N, shifted, never)
    with pytest.raises(UserError, match="its rows is 23 instead of 22"):
        open_or_build(tmp_path, "key", N - 1, layouts(), never)


def test_a_full_disk_raises_an_error_before_anything_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6, 500))
    with pytest.raises(UserError, match="needs 896 bytes, and its disk has 500 bytes free: give --elsewhere"):
        open_or_build(tmp_path, "key", N, layouts(), never, disk_full_hint="give --elsewhere")
    assert not (tmp_path / "key").exists()


def test_a_disk_that_fills_up_is_an_error_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="No space left on device.*give --elsewhere"):
            open_or_build(tmp_path, "key", N, layouts(), encode, disk_full_hint="give --elsewhere")
    check(open_or_build(tmp_path, "key", N, layouts(), encode))


def test_a_changed_bit_costs_one_shard(tmp_path, capsys):
    check(open_or_build(tmp_path, "key", N, layouts(), encode))
    draw, again = random.Random(0), []

    def counted(start, stop):
        again.append(start)
        yield from encode(start, stop)

    for name in 10 * ["x", "source"]:
        file = tmp_path / "key" / f"{name}.npy"
        held = file.read_bytes()
        place = draw.randrange(8 * 128, 8 * len(held))  # behind the header of the file
        changed = bytearray(held)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        check(open_or_build(tmp_path, "key", N, layouts(), counted))
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"{name}.npy are not those that were written" in line
        assert len(again) == 1 and file.read_bytes() == held
        again.clear()
    check(open_or_build(tmp_path, "key", N, layouts(), never))


def test_every_bit_of_a_header_and_of_cache_json_is_mended_or_refused_in_one_line(tmp_path, capsys):
    open_or_build(tmp_path, "key", N, layouts(), encode)
    outcomes = {"right": 0, "refused": 0}
    for name, size in (("x.npy", 128), ("cache.json", None)):
        file = tmp_path / "key" / name
        held = file.read_bytes()
        for place in range(0, 8 * (size or len(held)), 3):
            changed = bytearray(held)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            try:
                check(open_or_build(tmp_path, "key", N, layouts(), encode))
                outcomes["right"] += 1
            except UserError as refused:
                assert "delete it, and it is computed again" in str(refused) and "\n" not in str(refused)
                outcomes["refused"] += 1
            file.write_bytes(held)
    assert outcomes["right"] > 100 and outcomes["refused"] > 100
    capsys.readouterr()


def test_a_cache_of_an_earlier_release_gets_checksums(tmp_path, capsys):
    open_or_build(tmp_path, "key", N, layouts(), encode)
    file = tmp_path / "key" / "cache.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in whole.items() if k not in ("shard_rows", "crc32")}))
    check(open_or_build(tmp_path, "key", N, layouts(), never))
    assert json.loads(file.read_text()) == whole and not capsys.readouterr().err


def test_each_rank_checks_its_share(tmp_path, monkeypatch):
    open_or_build(tmp_path, "key", N, layouts(), encode)
    seen: list[tuple[int, int]] = []
    damaged = ArrayCache.damaged
    monkeypatch.setattr(ArrayCache, "damaged", lambda self, *span: seen.append(span) or damaged(self, *span))
    for rank in range(3):
        open_or_build(tmp_path, "key", N, layouts(), never, rank=rank, world_size=3)
    assert sorted(seen) == shards_of(N, layouts())


def test_what_kills_leave_is_swept_at_the_next_start(tmp_path):
    open_or_build(tmp_path, "key", N, layouts(), encode)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    place = tmp_path / "key"
    (place / "shards").mkdir()
    (place / "plan.json").touch()
    for name in (f"cache.json.{ended.pid}.partial", f"cache.json.{os.getpid()}.partial", "shards/3"):
        (place / name).touch()
    check(open_or_build(tmp_path, "key", N, layouts(), never))
    assert visible(place) == ["cache.json", f"cache.json.{os.getpid()}.partial", "source.npy", "x.npy"]


@pytest.mark.parametrize(("size", "text"), [(12, "12 bytes"), (65_432, "65 kB"), (3.14e9, "3.1 GB"), (2e13, "20.0 TB")])
def test_format_bytes_names_the_unit(size, text):
    assert format_bytes(size) == text


# ----------------------------------------------------------------------------------------------------------- processes


def _make(folder: Path, rank: int, world_size: int, pause: float, started, made) -> None:
    def slow(start, stop):
        made.put((rank, start))
        started.set()
        time.sleep(pause)
        yield from encode(start, stop)

    open_or_build(folder, "key", N, layouts(), slow, rank=rank, world_size=world_size)


def _start(folder: Path, rank: int, world_size: int, pause: float, made):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_make, args=(folder, rank, world_size, pause, started, made))
    process.start()
    return process, started


def _collected(queue) -> list[tuple[int, int]]:
    time.sleep(0.1)
    found = []
    while not queue.empty():
        found.append(queue.get())
    return found


def test_ranks_share_the_shards(tmp_path):
    made = multiprocessing.get_context("fork").Queue()
    parts = [_start(tmp_path, rank, 3, 0.1, made)[0] for rank in range(3)]
    for process in parts:
        process.join(30)
        assert process.exitcode == 0
    found = _collected(made)
    starts = [start for start, _ in shards_of(N, layouts())]
    assert sorted(start for _, start in found) == starts, "each shard is built once"
    assert {rank for rank, _ in found} == {0, 1, 2}, "and every rank builds some"
    check(open_or_build(tmp_path, "key", N, layouts(), never))
    assert not (tmp_path / "key" / "shards").exists()


def test_finished_shards_survive_a_killed_builder_and_no_other_process_waits(tmp_path):
    made = multiprocessing.get_context("fork").Queue()
    process, _ = _start(tmp_path, 0, 1, 0.15, made)
    while shards_on_disk(tmp_path) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    finished = shards_on_disk(tmp_path)
    assert finished >= 2 and not (tmp_path / "key" / "cache.json").exists()
    again: list[int] = []

    def counted(start, stop):
        again.append(start)
        yield from encode(start, stop)

    check(open_or_build(tmp_path, "key", N, layouts(), counted))
    assert len(again) == len(shards_of(N, layouts())) - finished, "finished shards are not built again"


def test_a_second_process_helps_to_build_and_waits(tmp_path):
    made = multiprocessing.get_context("fork").Queue()
    process, started = _start(tmp_path, 0, 1, 0.1, made)
    assert started.wait(20)
    check(open_or_build(tmp_path, "key", N, layouts(), encode))
    process.join(20)
    assert process.exitcode == 0
    check(open_or_build(tmp_path, "key", N, layouts(), never))


# -------------------------------------------------------------------------------------------------------------- memory

MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from utils.array_cache import Layout, open_or_build

def anonymous():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"Anonymous:\\s+(\\d+) kB", text).group(1)) * 1024

def encode(start, stop):
    global peak
    for at in range(start, stop, 4096):
        peak = max(peak, anonymous() - before)
        index = np.arange(at, min(at + 4096, stop))
        yield index, {"x0": np.broadcast_to(index[:, None, None].astype(np.float32), (len(index), 8, 16))}

n = int(sys.argv[1])
before, peak = anonymous(), 0
cache = open_or_build(Path(sys.argv[2]), "key", n, {"x0": Layout((8, 16))}, encode)
random = np.random.default_rng(0)
for step in range(3 * n // 128):
    index = random.integers(n, size=128)
    batch = cache.rows("x0", index)
    assert (batch[:, 3, 5] == index).all()
    if step % 500 == 0:
        peak = max(peak, anonymous() - before)
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured by Linux' smaps_rollup")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """A million rows of 8 x 16, 512 MB, built and read three times, compared with a fifth of them."""
    used = {}
    for n in (200_000, 1_000_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(n), str(tmp_path / str(n))],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        used[n] = int(done.stdout)
    print(f"anonymous memory beyond the start, in bytes: {used}")
    assert used[1_000_000] < 100e6 and used[1_000_000] < used[200_000] + 20e6
    shutil.rmtree(tmp_path / "1000000")
