"""A context in which a training step that makes the host wait for the GPU raises an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from utils import loop

PARTS = ("_gradients", "_update")  # functions of utils/loop that make up a step, without hooks and log lines


@contextmanager
def no_waiting(first_step: int = 0) -> Iterator[None]:
    """Inside, utils.loop.train raises RuntimeError where a step waits for the GPU, beginning with first_step.

    The first steps of a run may wait: they compile, and fill caches. Without a GPU the context has no effect.
    """
    plain = {name: getattr(loop, name) for name in PARTS}

    def strict(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(state: Any, *args: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error" if state.step >= first_step else "default")
            try:
                return fn(state, *args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    if not torch.cuda.is_available():
        yield
        return
    for name, fn in plain.items():
        setattr(loop, name, strict(fn))
    try:
        yield
    finally:
        for name, fn in plain.items():
            setattr(loop, name, fn)
