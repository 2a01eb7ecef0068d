"""glibc keeps the memory of freed tensors for later tensors, unless environment variables set its thresholds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.malloc import USER_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
# tensors of 8 MB, allocated and freed; prints the number of pages that the system provided, of 4 KiB each
PAGES = """
import resource, sys
import torch
from utils.malloc import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
torch.ones(8 << 20)  # like a corpus that was read and freed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.ones(2 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is meant")


def pages(word: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if name not in (*USER_VARIABLES, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", PAGES, word],
        env=clean | {"PYTHONPATH": str(ROOT), "THP_MEM_ALLOC_ENABLE": "0"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept, count = done.stdout.split()
    return kept, int(count)


def test_a_new_tensor_reuses_the_memory_of_a_freed_one():
    kept, few = pages("keep")
    assert kept == "True"
    # alignment leaves gaps, so that some of the first tensors' memory is not reused
    assert few < 10 * 2048, "the pages of a few tensors, and not of a hundred"


def test_environment_variables_take_precedence():
    kept, many = pages("keep", MALLOC_MMAP_THRESHOLD_="1000000")
    assert kept == "False" and many > 100 * 2000
    assert pages("keep", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1000000")[0] == "False"
