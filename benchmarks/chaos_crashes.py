"""Kill this process by SIGKILL at a call of the operating system: the n-th of all, or the n-th inside a save.

For the children of benchmarks/chaos.py. The calls are counted where Python makes them: files are opened, written,
synced, renamed and removed by functions of os and io, which are replaced here; the file of tensors, which a library
writes in one call, counts twice, and the second kill leaves half of it.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OS_CALLS = ("open", "write", "pwrite", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "remove", "link")
SAVES = ("save", "save_best")  # functions of utils.checkpoints


@dataclass
class Crash:
    """Where to kill: at call number `call`, from 1, of a save (`inside` names it) or of the whole process (None).

    note: file that gets the name of the call, just before the kill. call 0 kills nowhere, and counts.
    """

    call: int
    inside: str | None
    note: Path
    seen: int = 0
    most: dict[str, int] = field(default_factory=dict)  # save -> the most calls that one of them made
    _current: str | None = None

    def install(self) -> None:
        """Replace the functions, until the process ends."""
        import safetensors.torch

        from utils import checkpoints

        self.write_note, self.kill = _bound(self.note)
        for name in OS_CALLS:
            setattr(os, name, self._counting(getattr(os, name), name))
        opened = self._counting(io.open, "open of a file")
        io.open = builtins.open = opened
        library: Any = safetensors.torch
        library.serialize_file = self._halving(library.serialize_file)
        for name in SAVES:
            setattr(checkpoints, name, self._entering(getattr(checkpoints, name), name))

    def count(self, name: str, before_kill: Callable[[], object] = lambda: None) -> None:
        """One call. Kills if it is the one."""
        if self.inside is not None and self._current != self.inside:
            return
        self.seen += 1
        if self.seen == self.call:
            before_kill()
            self.kill(name)

    def _counting(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count(name)
            return call(*args, **kwargs)

        return counted

    def _halving(self, serialize: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensors: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            self.count("start of a file of tensors")
            found = serialize(tensors, file, *args, **kwargs)
            self.count("half of a file of tensors", lambda: os.truncate(file, os.stat(file).st_size // 2))
            return found

        return counted

    def _entering(self, save: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self._inside(name):
                return save(*args, **kwargs)

        return counted

    @contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        before = self.seen
        if self.inside is not None:
            self.seen = before = 0
        self._current = name
        try:
            yield
        finally:
            self._current = None
            self.most[name] = max(self.most.get(name, 0), self.seen - before)


def _bound(note: Path) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """(write the note, kill this process after writing it), with the functions as they are now."""
    open_, write, close, kill, pid = os.open, os.write, os.close, os.kill, os.getpid

    def write_note(text: str) -> None:
        handle = open_(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write(handle, text.encode())
        close(handle)

    def kill_now(text: str) -> None:
        write_note(text)
        kill(pid(), signal.SIGKILL)

    return write_note, kill_now
