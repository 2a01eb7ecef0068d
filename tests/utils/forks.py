"""Several ranks in forks of this process, which has imported everything already: real process groups in a fraction of a
second."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Environment = Callable[[int, int, int], dict[str, str]]  # (rank, number of ranks, port) -> variables of a launcher


def of_torchrun(rank: int, n: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def in_ranks(n: int, fn: Callable[[Any], Any], folder: Path, environment: Environment = of_torchrun) -> list[Any]:
    """Call fn(dist) on n ranks; returns their results, or the exceptions that they raised, in order of rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [os.fork() or _child(rank, environment(rank, n, port), fn, folder) for rank in range(n)]
    for pid in pids:
        os.waitpid(pid, 0)
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(n)]


def _child(rank: int, variables: dict[str, str], fn: Callable[[Any], Any], folder: Path) -> int:
    from utils.distributed import init_distributed

    os.environ |= variables
    try:
        try:
            result = fn(init_distributed("cpu"))
        except BaseException as error:
            result = error
            traceback.print_exc()
        (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(result))
    finally:
        sys.stderr.flush()
        os._exit(0)
