"""Keep the memory of freed CPU tensors in the process, by glibc's mallopt, and return what is kept for nothing.

By default glibc returns a large block to the system when it is freed, and the next tensor of that size is mapped and
cleared again, page by page. In a training loop, which allocates the same sizes at each step, this takes up to a fifth
of the time. Where lengths differ from step to step, freed blocks leave gaps that fit no later tensor, and the heap can
grow until memory is full: GapsInMemory returns them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# parameters of mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Blocks above MMAP_BYTES are returned when freed, so that a corpus that was read does not stay in memory; at most
# TRIM_BYTES of smaller ones stay unused at the top of the heap.
MMAP_BYTES, TRIM_BYTES = 256 << 20, 1 << 30
# environment variables by which the user sets these thresholds
USER_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
# A decoder of stories (SmolLM2-135M, 32 texts of 40 to 80 tokens a step) grew from 8 to 13 GB in 30 steps.
SETTLING = 10  # steps whose largest memory is what a training needs
EVERY = 5  # steps: after those, so often is the memory looked at
GROWTH = 1.5  # times that memory: then it is returned
SCARCE = 0.1  # part of the memory of the machine: if no more is available, it is returned before that

_is_kept = False


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones, until the process ends: mallopt cannot be undone.

    Returns whether it is kept: False if the environment sets these thresholds, and with other C libraries than glibc.
    """
    by_user = any(n in os.environ for n in USER_VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if by_user or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # setting only the first would fix the second at its small default, which is slower than setting neither
    global _is_kept
    _is_kept = bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
    return _is_kept


class GapsInMemory:
    """A hook of a training: after a step, returns freed memory to the system where it has grown too much.

    The next step then takes what it needs again, which costs about as much as without keep_freed_memory. Does nothing
    in a process that does not keep freed memory.
    """

    def __init__(self) -> None:
        self.steps, self.needed = 0, 0  # since memory was returned: steps, and the most bytes in the first of them

    def __call__(self, state: Any = None, report: Any = None) -> None:
        self.steps += 1
        if not _is_kept or (self.steps > SETTLING and self.steps % EVERY):
            return
        used = resident_bytes()
        if self.steps <= SETTLING:
            self.needed = max(self.needed, used)
        elif used > GROWTH * self.needed or is_scarce():
            return_freed_memory()
            self.steps = self.needed = 0


def return_freed_memory() -> None:
    """Return all freed memory to the system, by glibc's malloc_trim: gaps between blocks in use as well."""
    ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_scarce(read: Callable[[], str] = Path("/proc/meminfo").read_text) -> bool:
    """Whether this machine has little memory left. read: the text of /proc/meminfo, in kB."""
    kilobytes = {
        name: int(words[0]) for name, *words in (line.replace(":", " ").split() for line in read().splitlines())
    }
    return kilobytes["MemAvailable"] < SCARCE * kilobytes["MemTotal"]
