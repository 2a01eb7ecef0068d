"""Disk cache of named arrays with one row per example, fixed or ragged, computed once and memory-mapped.

Computed in shards of about 64 MB or 8192 rows. Any number of processes may build the same cache at once: each takes
shards that no other process has locked, and the locks of a process that dies are freed, so that ranks share the work
and a killed run continues. Reading takes the memory of a batch, writing that of a shard, for any number of rows.

Each shard has a checksum, which is compared when a process opens the cache: 0.3 s for a GB in memory, 1 s from an SSD.
A disk that changed a bit costs one shard, which is computed again, and no training on wrong numbers.

    {folder}/{key}/plan.json       layout of the arrays; written first, so that all processes use the same one
    {folder}/{key}/{name}.npy      fixed rows (n, *shape); ragged rows concatenated, (sum of lengths, *shape)
    {folder}/{key}/shards/         one file per shard, with its checksums, once it is on disk; and its lock
    {folder}/{key}/cache.json      the plan again, and all checksums; written last: it marks the cache as complete
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, one_line_text
from utils.locks import exclusive
from utils.run_folder import remove_partial_files, write_json

SHARD_BYTES = 64 * 2**20  # memory needed to build
SHARD_ROWS = 2**13  # the most rows that a kill loses, and that other processes wait for
Encode = Callable[[int, int], Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]]
"""(start, stop) -> pieces (index (m,), {name: rows}) in any order, each row from start to stop exactly once.

Rows have the shape (m, *shape). In a ragged array they have (m, S, *shape), and row i consists of the first
lengths[index[i]] positions."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One named array."""

    shape: tuple[int, ...]  # shape of a row, or of one position of a ragged row
    dtype: str = "float32"
    lengths: np.ndarray | None = None  # (n,) positions of each row, where rows differ

    @cached_property
    def offsets(self) -> np.ndarray | None:
        """(n + 1,) start of each ragged row; None for fixed rows."""
        return None if self.lengths is None else np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def row_offset(self, row: int) -> int:
        """Start of a row in the array on disk."""
        return row if self.offsets is None else int(self.offsets[row])

    @property
    def item_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def metadata(self) -> dict[str, Any]:
        lengths = None if self.lengths is None else sha256(self.lengths.astype(np.int64).tobytes()).hexdigest()[:24]
        return {"shape": list(self.shape), "dtype": self.dtype, "lengths": lengths}


class ArrayCache:
    """A complete cache. `rows` and `padded_rows` read only the rows of the index, and return copies.

    Raises UserError if the folder is damaged, or holds other arrays than the layouts.
    """

    def __init__(self, folder: Path, key: str, n: int, layouts: Mapping[str, Layout]) -> None:
        try:
            metadata = json.loads((folder / "cache.json").read_text())
            wanted = _plan(key, n, layouts)
            wrong = next((name for name in wanted if metadata[name] != wanted[name]), None)
            if wrong:
                raise ValueError(f"its {wrong} is {metadata[wrong]} instead of {wanted[wrong]}")
            self.arrays = {name: _open(folder, name, layout, n) for name, layout in layouts.items()}
            self._shard_rows, self.checksums = _read_checksums(metadata, n, layouts)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} is not a complete cache ({one_line_text(error)}): delete it, and it is computed again"
            ) from error
        self.folder, self.layouts, self._n = folder, dict(layouts), n

    def __len__(self) -> int:
        return self._n

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Rows (start, stop) of every shard that has checksums."""
        return _spans(self._n, self._shard_rows) if self._shard_rows else []

    def damaged(self, start: int, stop: int) -> str | None:
        """Name of an array whose rows start to stop, a shard, are not those that were written; None if all are."""
        i = start // self._shard_rows
        return next(
            (name for name, sums in self.checksums.items() if sums[i] != self.checksum(name, start, stop)), None
        )

    def checksum(self, name: str, start: int, stop: int) -> int:
        """CRC-32 of rows start to stop."""
        layout = self.layouts[name]
        return _crc32(self.arrays[name][layout.row_offset(start) : layout.row_offset(stop)])

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Fixed rows (m, *shape)."""
        assert self.layouts[name].lengths is None, f"{name} has ragged rows"
        return np.asarray(self.arrays[name][index])

    def padded_rows(self, name: str, index: np.ndarray, pad_to: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ragged rows padded with zeros, (m, S, *shape), and a mask, (m, S) bool, True where a row has data.

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
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
    disk_full_hint: str = "name another folder",
) -> ArrayCache:
    """The cache of `key` below `folder`; shards that are missing or damaged are computed now.

    rank, world_size: select the shards that this process takes first; then it takes those that no other rank has taken.
    Of a complete cache each rank checks its share: wait for all of them before any uses it.
    progress: called with the number of rows on disk, those of other processes included.
    disk_full_hint: advice in the UserError if the disk is too small.
    """
    place = folder / key
    if not _complete(place):
        _build(place, key, n, layouts, encode, rank, world_size, progress, disk_full_hint)
    remove_partial_files(place)
    if (place / "shards").exists():  # left by a process that was killed when the cache was complete
        shutil.rmtree(place / "shards", ignore_errors=True)
        (place / "plan.json").unlink(missing_ok=True)
    cache = ArrayCache(place, key, n, layouts)
    _check(cache, key, encode, rank, world_size, disk_full_hint)
    return cache


def size_of(n: int, layouts: Mapping[str, Layout]) -> int:
    """Bytes of n rows on disk."""
    return sum(layout.row_offset(n) * layout.item_bytes for layout in layouts.values())


def format_bytes(size: float) -> str:
    """Bytes as a text such as 3.1 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("bytes", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# ------------------------------------------------------------------------------------------------------------ building


def shards_of(n: int, layouts: Mapping[str, Layout]) -> list[tuple[int, int]]:
    """Rows (start, stop) of every shard, independent of the number of processes."""
    size = max(1, min(SHARD_ROWS, round(SHARD_BYTES / max(1.0, size_of(n, layouts) / max(n, 1)))))
    return _spans(n, size)


def _spans(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _build(
    place: Path,
    key: str,
    n: int,
    layouts: Mapping[str, Layout],
    encode: Encode,
    rank: int,
    world_size: int,
    progress: Callable[[int], None] | None,
    disk_full_hint: str,
) -> None:
    shards = shards_of(n, layouts)
    _allocate(place, key, n, layouts, len(shards), disk_full_hint)
    markers = [place / "shards" / str(i) for i in range(len(shards))]

    def rows_done() -> int:
        return sum(stop - start for (start, stop), marker in zip(shards, markers, strict=True) if _done(marker))

    order = [i for turn in range(world_size) for i in range((rank + turn) % world_size, len(shards), world_size)]
    for wait in (False, True):  # first shards that no process has locked, then those that others may have given up
        for i in order:
            with _locked_shard(markers[i], wait) as mine:
                if not mine or _done(markers[i]) or _complete(place):
                    continue
                done, (start, stop) = rows_done(), shards[i]
                if progress is not None:
                    progress(done)
                report = None if progress is None else (lambda rows, done=done: progress(done + rows))
                held = _gather(start, stop, layouts, encode, report)
                _store(place, start, held, layouts, disk_full_hint, markers[i])
                del held  # free memory before the next shard is built
    with exclusive(place / "cache"):
        if not _complete(place):
            sums = [json.loads(marker.read_text()) for marker in markers]
            _write_cache_json(place, key, n, layouts, shards, {name: [part[name] for part in sums] for name in layouts})
        shutil.rmtree(place / "shards", ignore_errors=True)
        (place / "plan.json").unlink(missing_ok=True)
    if progress is not None:
        progress(n)


def _check(cache: ArrayCache, key: str, encode: Encode, rank: int, world_size: int, disk_full_hint: str) -> None:
    """Compare the checksums of this rank's share of the shards, and compute damaged ones again.

    A cache of an earlier release has no checksums: those that it has now are recorded.
    """
    place, n, layouts = cache.folder, len(cache), cache.layouts
    if not cache.checksums:
        shards = shards_of(n, layouts)
        sums = {name: [cache.checksum(name, *span) for span in shards] for name in layouts}
        with suppress(OSError):  # it may be on a disk that is only read
            _write_cache_json(place, key, n, layouts, shards, sums)
        return
    for start, stop in cache.shards[rank::world_size]:
        if cache.damaged(start, stop) is None:
            continue
        with exclusive(place / "cache"):
            name = cache.damaged(start, stop)
            if name is None:  # another process was faster
                continue
            print(
                f"note: rows {start} to {stop} of {place / name}.npy are not those that were written; they are "
                "computed again",
                file=sys.stderr,
            )
            held = _gather(start, stop, layouts, encode, None)
            _store(place, start, held, layouts, disk_full_hint)
            _, sums = _read_checksums(json.loads((place / "cache.json").read_text()), n, layouts)
            for name, rows in held.items():  # another device may compute other last bits
                sums[name][cache.shards.index((start, stop))] = _crc32(rows)
            _write_cache_json(place, key, n, layouts, cache.shards, sums)


def _allocate(place: Path, key: str, n: int, layouts: Mapping[str, Layout], shards: int, disk_full_hint: str) -> None:
    """Write the plan and empty arrays, unless they exist. Raises UserError if the disk is too small."""
    # another number of shards would change the rows of finished ones; earlier releases wrote no checksums
    plan = _plan(key, n, layouts) | {"shards": shards, "checksum": "crc32"}
    with exclusive(place / "cache"):
        if _complete(place):
            return
        (place / "shards").mkdir(exist_ok=True)
        try:
            if json.loads((place / "plan.json").read_text()) == plan:
                return
        except (OSError, ValueError):
            pass
        need, free = size_of(n, layouts), shutil.disk_usage(place).free
        if need > free:
            shutil.rmtree(place, ignore_errors=True)
            raise UserError(
                f"{place} needs {format_bytes(need)}, and its disk has {format_bytes(free)} free: {disk_full_hint}"
            )
        for marker in (place / "shards").iterdir():
            if not marker.name.startswith("."):  # a lock file
                marker.unlink()
        for name, layout in layouts.items():  # sparse until they are written
            shape = (layout.row_offset(n), *layout.shape)
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
        name: np.zeros((layout.row_offset(stop) - layout.row_offset(start), *layout.shape), layout.dtype)
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
                at, length = layout.row_offset(row) - layout.row_offset(start), int(layout.lengths[row])
                held[name][at : at + length] = piece[:length]
        if progress is not None:
            progress(int(seen.sum()))
    assert (seen == 1).all(), "encode must give every row of the shard exactly once"
    return held


def _write(path: Path, rows: np.ndarray, at: int) -> None:
    """Write rows into an array on disk, from position `at`.

    By pwrite, not a memory map: a full disk then raises an error, instead of a signal that kills the process.
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


def _store(
    place: Path,
    start: int,
    held: Mapping[str, np.ndarray],
    layouts: Mapping[str, Layout],
    disk_full_hint: str,
    marker: Path | None = None,
) -> None:
    """Write the rows of a shard, and then its checksums into the marker."""
    try:
        for name, rows in held.items():
            _write(place / f"{name}.npy", rows, layouts[name].row_offset(start))
        if marker is not None:
            write_json(marker, {name: _crc32(rows) for name, rows in held.items()})
    except OSError as error:
        raise UserError(f"{place} cannot be written ({one_line_text(error)}): {disk_full_hint}") from error


def _crc32(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


@contextmanager
def _locked_shard(marker: Path, wait: bool) -> Iterator[bool]:
    """Whether this process may compute a shard: False where another one is at it, or the cache is complete."""
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(exclusive(marker, wait=wait))
        except FileNotFoundError:  # another process completed the cache and removed the folder
            mine = False
        yield mine


def _done(marker: Path) -> bool:
    return marker.is_file()


def _complete(place: Path) -> bool:
    return (place / "cache.json").is_file()


def _plan(key: str, n: int, layouts: Mapping[str, Layout]) -> dict[str, Any]:
    return {"key": key, "rows": n, "arrays": {name: layout.metadata() for name, layout in layouts.items()}}


def _write_cache_json(
    place: Path,
    key: str,
    n: int,
    layouts: Mapping[str, Layout],
    shards: list[tuple[int, int]],
    checksums: Mapping[str, list[int]],
) -> None:
    shard_rows = shards[0][1] if shards else 1
    write_json(place / "cache.json", _plan(key, n, layouts) | {"shard_rows": shard_rows, "crc32": dict(checksums)})


def _read_checksums(
    metadata: Mapping[str, Any], n: int, layouts: Mapping[str, Layout]
) -> tuple[int, dict[str, list[int]]]:
    """(rows of a shard, array -> checksums of its shards); (0, {}) if there are none, as in earlier releases."""
    size, sums = metadata.get("shard_rows"), metadata.get("crc32")
    if type(size) is not int or size < 1 or not isinstance(sums, dict):
        return 0, {}
    count = len(_spans(n, size))
    if not all(isinstance(sums.get(name), list) and len(sums[name]) == count for name in layouts):
        return 0, {}
    return size, {name: list(sums[name]) for name in layouts}


def _open(folder: Path, name: str, layout: Layout, n: int) -> np.ndarray:
    """A memory-mapped array. ValueError if it differs from the layout."""
    file = folder / f"{name}.npy"
    try:
        array = np.load(file, mmap_mode="r")
    except OSError:
        raise
    except Exception as error:  # a changed header lets numpy raise errors of Python's tokenizer, too
        raise ValueError(f"{name}.npy: {error}") from error
    shape = (layout.row_offset(n), *layout.shape)
    if array.shape != shape or array.dtype != np.dtype(layout.dtype) or not array.flags.c_contiguous:
        raise ValueError(f"{name}.npy holds {array.dtype} {list(array.shape)} instead of {layout.dtype} {list(shape)}")
    if isinstance(array, np.memmap) and array.offset + array.nbytes != file.stat().st_size:
        raise ValueError(f"{name}.npy has another size than its header says")
    return array
