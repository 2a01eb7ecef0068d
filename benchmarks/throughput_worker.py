"""A second process for the cases of benchmarks/throughput.py that return freed memory to the system.

A process that keeps freed memory cannot return to the behavior of the C library (utils/malloc), so that both are timed
in one round only if one of them runs elsewhere. The second process waits while the first one computes.
"""

from __future__ import annotations

import multiprocessing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.throughput_sizes import Case, Maker, Size


class Worker:
    """The process, started at its first case; it ends with this one. It runs on the CPU."""

    def __init__(self, size: Size, threads: int, *, keep_cases: bool, compile_flag: str = "auto") -> None:
        """keep_cases: hold the networks of earlier cases when another one is made. compile_flag: see Networks."""
        self.size, self.threads, self.keep_cases, self.compile_flag = size, threads, keep_cases, compile_flag
        self._connection: Connection | None = None
        self._pid = 0

    def maker(self, maker: Maker) -> Maker:
        """The same case in the other process."""
        return Maker(maker.part, maker.name, partial(self._make, maker.part, maker.name), maker.freed_memory)

    def _make(self, part: str, name: str) -> Case:
        facts: dict[str, Any] = self._ask("make", part, name)
        losses: list[float] = []

        def run(k: int) -> None:
            losses[:] = self._ask("run", part, name, k)

        case = Case(run=run, losses=losses, **facts)
        case.pid = self._pid
        case.count_flops = partial(self._ask, "flops", part, name)
        return case

    def _ask(self, *message: Any) -> Any:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            args = theirs, self.size, self.threads, self.keep_cases, self.compile_flag
            process = context.Process(target=serve, args=args, daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is seen here
            self._pid = process.pid or 0
        self._connection.send(message)
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(connection: Connection, size: Size, threads: int, keep_cases: bool, compile_flag: str) -> None:
    """Answer until the other end closes: "make", "run" and "flops" of a case."""
    import torch

    from benchmarks.throughput_cases import cases
    from benchmarks.throughput_machine import count_flops
    from benchmarks.throughput_networks import Networks
    from benchmarks.throughput_sizes import PARTS

    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        networks = Networks(size, torch.device("cpu"), Path(folder), "return", compile_flag=compile_flag)
        makers = {(maker.part, maker.name): maker for maker in cases(networks, list(PARTS))}
        made: dict[tuple[str, str], Case] = {}

        def answer(action: str, part: str, name: str, *rest: Any) -> Any:
            if action == "make":
                if not keep_cases:
                    made.clear()
                case = made[part, name] = makers[part, name].make()
                facts = ("part", "name", "texts", "tokens", "switches", "parameters", "bytes_read")
                return {fact: getattr(case, fact) for fact in facts}
            case = made[part, name]
            if action == "flops":
                return count_flops(case)
            case.run(rest[0])
            return case.losses

        while True:
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            try:
                connection.send(answer(*message))
            except Exception as error:  # raised by the asking process
                connection.send(error)
