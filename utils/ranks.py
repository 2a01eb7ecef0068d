"""The rank of this process, from the environment of its launcher; and who of several processes reports an error.

A mistake in a flag or a file is met by every rank, and is to be read once. But it may also be met by one alone (a file
that another machine lacks, too few GPUs), and then that rank must say it. So rank 0 speaks at once, the others after a
moment: torchrun ends them meanwhile if rank 0 has ended. Imports no torch.
"""

from __future__ import annotations

import os
import re
import sys
import time

_FIRST_OF_MACHINE, _OTHERS = 1.5, 4.0  # seconds until a rank other than 0 reports an error
_LOST = re.compile(
    r"connection (closed|reset|refused|was )|closed by peer|broken pipe|gloo|nccl|remote process|process group|"
    r"timed out|\bsocket|\bTCPStore",
    re.IGNORECASE,
)
_OF_TORCH = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")


def rank() -> int:
    return _number("RANK")


def several() -> bool:
    """Whether a launcher started several processes."""
    return _number("WORLD_SIZE", 1) > 1


def print_error(line: str) -> None:
    """Print an error to stderr, so that it is read once, whether all ranks meet it or one."""
    if several() and rank() > 0:
        time.sleep(_FIRST_OF_MACHINE if _number("LOCAL_RANK") == 0 else _OTHERS)  # the launcher may end us here
        line = f"{line} (rank {rank()})"
    print(line, file=sys.stderr, flush=True)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exchange between ranks failed, as happens to all of them when one has ended or hangs."""
    if not several():
        return False
    names = {c.__name__ for c in type(error).__mro__}
    return bool(names & set(_OF_TORCH)) or (type(error) is RuntimeError and bool(_LOST.search(str(error))))


def report_lost_connection(error: BaseException) -> None:
    """Print one line about a failed exchange, unless the launcher, which saw the process that failed, ends us first."""
    time.sleep(_OTHERS)
    reason = " ".join(str(error).split())[:160]
    advice = "its message stands above; without one it was killed, or hangs"
    print_error(f"error: another process of this run has ended or does not answer ({reason}): {advice}")


def _number(name: str, default: int = 0) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
