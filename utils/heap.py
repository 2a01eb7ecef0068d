"""What the C library does with the memory of freed tensors, on a CPU.

glibc gives a large block back to the system when it is freed, and the next operation's tensor is mapped and cleared
anew, page by page. From which size on depends on what was freed before. In a loop that asks for the same sizes again
and again that is up to a fifth of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys

# of mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# A block above the first number is returned when freed, so that a corpus that was read does not stay; of smaller ones
# at most the second number lies unused at the top of the heap.
MAPPED, UNUSED = 256 << 20, 1 << 30
# who set one of them has chosen
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones, from here to the end of the process: there is no way back.

    Returns whether it does: not where the environment has chosen, nor with another C library than glibc.
    """
    chosen = any(name in os.environ for name in CHOSEN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # the first alone would fix the second at its small default, where everything is mapped: slower than none
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(M_TRIM_THRESHOLD, UNUSED))
