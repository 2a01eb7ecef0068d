"""Keep the memory of freed CPU tensors in the process, by glibc's mallopt.

By default glibc returns a large block to the system when it is freed, and the next tensor of that size is mapped and
cleared again, page by page. In a training loop, which allocates the same sizes at each step, this takes up to a fifth
of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys

# parameters of mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Blocks above MMAP_BYTES are returned when freed, so that a corpus that was read does not stay in memory; at most
# TRIM_BYTES of smaller ones stay unused at the top of the heap.
MMAP_BYTES, TRIM_BYTES = 256 << 20, 1 << 30
# environment variables by which the user sets these thresholds
USER_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


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
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
