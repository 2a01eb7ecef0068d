"""glibc keeps the memory of freed tensors for later tensors, unless environment variables set its thresholds; what it
keeps in gaps that no tensor fits is returned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.malloc import MMAP_BYTES, TRIM_BYTES, USER_VARIABLES, is_scarce

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
# 150 blocks of 4 MB with small ones between them, which stay in use; prints the MB of the process before the blocks,
# when they are freed, and after some more steps of a training
GAPS = """
import torch
from utils.malloc import EVERY, SETTLING, GapsInMemory, keep_freed_memory, resident_bytes
keep_freed_memory()
after_step, small = GapsInMemory(), []
sizes = [resident_bytes()]
for _ in range(SETTLING):
    after_step()
blocks = []
for _ in range(150):
    blocks.append(torch.ones(1 << 20))
    small.append(torch.ones(2000))
del blocks
sizes.append(resident_bytes())
for _ in range(EVERY):
    after_step()
print(*(size >> 20 for size in (*sizes, resident_bytes())))
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is meant")


def run(code: str, *argv: str, **environment: str) -> list[str]:
    """The words that a script prints."""
    clean = {name: value for name, value in os.environ.items() if name not in (*USER_VARIABLES, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=clean | {"PYTHONPATH": str(ROOT), "THP_MEM_ALLOC_ENABLE": "0"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def pages(word: str, **environment: str) -> tuple[str, int]:
    kept, count = run(PAGES, word, **environment)
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


def test_gaps_between_tensors_are_returned_where_memory_grows():
    before, grown, after = map(int, run(GAPS))
    assert grown > before + 550, "freed memory is kept"
    assert after < before + 50
    by_user = dict(MALLOC_MMAP_THRESHOLD_=str(MMAP_BYTES), MALLOC_TRIM_THRESHOLD_=str(TRIM_BYTES))
    before, grown, after = map(int, run(GAPS, **by_user))
    assert after >= grown > before + 550, "the user decides, and nothing is returned"


def test_memory_is_scarce_where_a_tenth_of_it_is_available():
    for available, expected in ((900, True), (1100, False)):
        text = (
            f"MemTotal:       10000 kB\nMemFree:           1 kB\nMemAvailable:   {available} kB\nHugePages_Total:  0\n"
        )
        assert is_scarce(lambda text=text: text) == expected
    assert is_scarce() in (True, False)  # the file of this machine can be read
