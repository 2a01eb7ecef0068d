"""Named arrays with one row per example, computed once, kept on disk and memory-mapped: fixed rows or ragged ones.

Made in shards of some sixty megabytes, or of eight thousand rows. Any number of processes may ask for the same cache at
once: each takes shards that nobody has in hand, and a process that dies frees its own, so that ranks share the work and
a killed run goes on where it was. Reading and writing take memory of a batch and of a shard, however many rows there
are.

    {folder}/{key}/plan.json       what the arrays are; written first, so that all processes mean the same
    {folder}/{key}/{name}.npy      fixed rows (n, *shape); ragged rows one after another, (sum of lengths, *shape)
    {folder}/{key}/shards/         one file a shard: locked while it is made, not empty once it is on disk
    {folder}/{key}/cache.json      the plan again; written last: with it, the cache is whole

Knows no model and no text.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, fold
from utils.runs import write_json

SHARD_BYTES = 64 * 2**20  # memory that building takes
SHARD_ROWS = 2**13  # what a kill can cost, and the most that others wait for
Encode = Callable[[int, int], Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]]
"""(start, stop) -> pieces (index (m,), {name: rows}) in any order, each row from start to stop exactly once. Rows are
(m, *shape); of a ragged array (m, S, *shape), of which row i keeps the first lengths[index[i]] positions."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One named array."""

    shape: tuple[int, ...]  # of a row; of one position of a ragged row
    dtype: str = "float32"
    lengths: np.ndarray | None = None  # (n,) positions of each row, where rows differ

    @cached_property
    def offsets(self) -> np.ndarray | None:
        """(n + 1,) where each ragged row begins."""
        return None if self.lengths is None else np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def first(self, row: int) -> int:
        """Where a row begins in the array on disk."""
        return row if self.offsets is None else int(self.offsets[row])

    @property
    def item_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def facts(self) -> dict[str, Any]:
        lengths = None if self.lengths is None else sha256(self.lengths.astype(np.int64).tobytes()).hexdigest()[:24]
        return {"shape": list(self.shape), "dtype": self.dtype, "lengths": lengths}


class ArrayCache:
    """A whole cache. `rows` and `ragged` read only what is asked for; what they return is a copy.

    Errors: UserError where the folder is damaged, or holds other arrays than those asked for.
    """

    def __init__(self, folder: Path, key: str, n: int, layouts: Mapping[str, Layout]) -> None:
        try:
            facts = json.loads((folder / "cache.json").read_text())
            wanted = _plan(key, n, layouts)
            wrong = next((name for name in wanted if facts[name] != wanted[name]), None)
            if wrong:
                raise ValueError(f"its {wrong} is {facts[wrong]} instead of {wanted[wrong]}")
            self.arrays = {name: _open(folder, name, layout, n) for name, layout in layouts.items()}
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} is not a whole cache ({fold(error)}): delete it, and it is made anew") from error
        self.folder, self.layouts, self._n = folder, dict(layouts), n

    def __len__(self) -> int:
        return self._n

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Fixed rows (m, *shape)."""
        assert self.layouts[name].lengths is None, f"{name} has ragged rows"
        return np.asarray(self.arrays[name][index])

    def ragged(self, name: str, index: np.ndarray, pad_to: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ragged rows padded with zeros, (m, S, *shape), and where they hold something, (m, S) bool.

        pad_to: S; None: the longest of these rows.
        """
        layout, array = self.layouts[name], self.arrays[name]
        assert layout.lengths is not None and layout.offsets is not None, f"{name} has fixed rows"
        lengths = layout.lengths[index]
        width = int(lengths.max(initial=0)) if pad_to is None else pad_to
        found = np.zeros((len(index), width, *layout.shape), array.dtype)
        for place, (row, length) in enumerate(zip(index.tolist(), lengths.tolist(), strict=True)):
            found[place, :length] = array[layout.offsets[row] : layout.offsets[row] + length]
        return found, np.arange(width) < lengths[:, None]


def open_or_build(
    folder: Path,
    key: str,
    n: int,
    layouts: Mapping[str, Layout],
    encode: Encode,
    *,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], None] | None = None,
    no_room: str = "name another folder",
) -> ArrayCache:
    """The cache of `key` below `folder`, computed now, or as far as it is lacking.

    rank, world: which shards this process prefers; it takes over what others leave, so they only spread the work.
    progress: called with the number of rows that are there, those of other processes included.
    no_room: what a user can do whose disk is too small, for the UserError.
    """
    place = folder / key
    if not _whole(place):
        _build(place, key, n, layouts, encode, rank, world, progress, no_room)
    return ArrayCache(place, key, n, layouts)


def size_of(n: int, layouts: Mapping[str, Layout]) -> int:
    """Bytes on disk of n rows."""
    return sum(layout.first(n) * layout.item_bytes for layout in layouts.values())


def in_words(size: float) -> str:
    """Bytes as 3.1 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("bytes", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# ------------------------------------------------------------------------------------------------------------ building


def shards_of(n: int, layouts: Mapping[str, Layout]) -> list[tuple[int, int]]:
    """Rows (start, stop) of every shard: a function of the plan alone, not of how many processes share the work."""
    size = max(1, min(SHARD_ROWS, round(SHARD_BYTES / max(1.0, size_of(n, layouts) / max(n, 1)))))
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _build(
    place: Path,
    key: str,
    n: int,
    layouts: Mapping[str, Layout],
    encode: Encode,
    rank: int,
    world: int,
    progress: Callable[[int], None] | None,
    no_room: str,
) -> None:
    shards = shards_of(n, layouts)
    _lay_out(place, key, n, layouts, len(shards), no_room)
    markers = [place / "shards" / str(i) for i in range(len(shards))]

    def there() -> int:
        return sum(stop - start for (start, stop), marker in zip(shards, markers, strict=True) if _done(marker))

    order = [i for turn in range(world) for i in range((rank + turn) % world, len(shards), world)]
    for wait in (False, True):  # first what nobody has in hand, then what others had and may have left
        for i in order:
            with _claimed(markers[i], wait) as handle:
                if handle is None or _whole(place):
                    continue
                done, (start, stop) = there(), shards[i]
                if progress is not None:
                    progress(done)
                tell = None if progress is None else (lambda rows, done=done, tell=progress: tell(done + rows))
                held = _gather(start, stop, layouts, encode, tell)
                try:
                    for name, rows in held.items():
                        _write(place / f"{name}.npy", rows, layouts[name].first(start))
                except OSError as error:
                    raise UserError(f"{place} cannot be written ({fold(error)}): {no_room}") from error
                del held, rows  # before the next shard takes as much
                os.write(handle, b"whole")
                os.fsync(handle)
    if not _whole(place):
        write_json(place / "cache.json", _plan(key, n, layouts))
    shutil.rmtree(place / "shards", ignore_errors=True)
    (place / "plan.json").unlink(missing_ok=True)
    (place / "lock").unlink(missing_ok=True)
    if progress is not None:
        progress(n)


def _lay_out(place: Path, key: str, n: int, layouts: Mapping[str, Layout], shards: int, no_room: str) -> None:
    """The plan and empty arrays, unless they are there. UserError where the disk has no room for them."""
    plan = _plan(key, n, layouts) | {"shards": shards}  # of others, what is done would mean other rows
    (place / "shards").mkdir(parents=True, exist_ok=True)
    with _claimed(place / "lock", wait=True):
        if _whole(place):
            return
        try:
            if json.loads((place / "plan.json").read_text()) == plan:
                return
        except (OSError, ValueError):
            pass
        need, free = size_of(n, layouts), shutil.disk_usage(place).free
        if need > free:
            shutil.rmtree(place, ignore_errors=True)
            raise UserError(f"{place} needs {in_words(need)}, and its disk has {in_words(free)} free: {no_room}")
        for marker in (place / "shards").iterdir():
            marker.unlink()
        for name, layout in layouts.items():  # sparse until they are written
            shape = (layout.first(n), *layout.shape)
            np.lib.format.open_memmap(place / f"{name}.npy", mode="w+", dtype=layout.dtype, shape=shape).flush()
        write_json(place / "plan.json", plan)


def _gather(
    start: int,
    stop: int,
    layouts: Mapping[str, Layout],
    encode: Encode,
    progress: Callable[[int], None] | None,
) -> dict[str, np.ndarray]:
    """Rows start to stop of every array, in memory."""
    held = {
        name: np.zeros((layout.first(stop) - layout.first(start), *layout.shape), layout.dtype)
        for name, layout in layouts.items()
    }
    seen = np.zeros(stop - start, dtype=np.int64)
    for index, pieces in encode(start, stop):
        seen[index - start] += 1
        for name, layout in layouts.items():
            if layout.lengths is None:
                held[name][index - start] = pieces[name]
                continue
            for row, piece in zip(index.tolist(), pieces[name], strict=True):
                at, length = layout.first(row) - layout.first(start), int(layout.lengths[row])
                held[name][at : at + length] = piece[:length]
        if progress is not None:
            progress(int(seen.sum()))
    assert (seen == 1).all(), "every row of a cache is encoded exactly once"
    return held


def _write(path: Path, rows: np.ndarray, at: int) -> None:
    """Rows into an array on disk, from position `at` on.

    pwrite, not a memory map: a full disk is then an error that can be told, not a signal that kills.
    """
    handle = os.open(path, os.O_WRONLY)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            offset = file.tell() + at * rows.dtype.itemsize * math.prod(rows.shape[1:])
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        while len(data):
            written = os.pwrite(handle, data, offset)
            data, offset = data[written:], offset + written
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _claimed(marker: Path, wait: bool) -> Iterator[int | None]:
    """An open handle of a shard that is ours to make now; None where it is made, in other hands, or all is done.

    The hold ends with the process, however that ends. Without locks, on a system or a file system that has none,
    processes may do the same work twice, and write the same.
    """
    try:
        handle = os.open(marker, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:  # another process was the last, and cleared up
        yield None
        return
    try:
        held = True
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                held = False
            except OSError:
                pass
        yield handle if held and not os.fstat(handle).st_size else None
    finally:
        os.close(handle)


def _done(marker: Path) -> bool:
    return marker.is_file() and marker.stat().st_size > 0


def _whole(place: Path) -> bool:
    return (place / "cache.json").is_file()


def _plan(key: str, n: int, layouts: Mapping[str, Layout]) -> dict[str, Any]:
    return {"key": key, "rows": n, "arrays": {name: layout.facts() for name, layout in layouts.items()}}


def _open(folder: Path, name: str, layout: Layout, n: int) -> np.ndarray:
    """A memory-mapped array. ValueError where it is not what the layout says."""
    array = np.load(folder / f"{name}.npy", mmap_mode="r")
    shape = (layout.first(n), *layout.shape)
    if array.shape != shape or array.dtype != np.dtype(layout.dtype):
        raise ValueError(f"{name}.npy holds {array.dtype} {list(array.shape)} instead of {layout.dtype} {list(shape)}")
    return array
