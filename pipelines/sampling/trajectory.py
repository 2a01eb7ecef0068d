"""Decoded intermediate estimates of a batch, shown in a terminal and written as JSON.

At some steps the hook decodes the estimate of x0 in the same way as samples. It changes no sample, so it works in every
space and with every sampler.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from pipelines.sampling.sampler_call import SamplerCall
from utils.records import Latents
from utils.run_folder import write_json
from utils.terminal import single_line

RED_TO_BLUE = (196, 202, 208, 214, 220, 190, 118, 48, 51, 45, 39, 33, 27)  # codes of the 256 terminal colors


@dataclass
class Snapshot:
    """The texts after one step."""

    step: int  # steps done
    t: float  # the time reached, in [0, 1]
    texts: list[str]


class Trajectory:
    """A hook that records snapshots of the first batch of each call of the generator; it ignores other batches."""

    def __init__(
        self,
        decode: Callable[[Latents], list[str]],
        *,
        texts: int = 3,
        snapshots: int = 20,
        file: TextIO | None = None,
        path: Path | None = None,
    ) -> None:
        """decode: clean latents -> texts. texts: number of rows of the batch to decode. snapshots: number of steps to
        record, evenly spread and including the last. file: terminal or log to print them to. path: JSON file, which
        each call replaces.
        """
        self.decode, self.texts, self.count, self.file, self.path = decode, texts, snapshots, file, path
        self.snapshots: list[Snapshot] = []

    def __call__(self, call: SamplerCall) -> None:
        if not call.has_first_text:
            return
        self.snapshots = []
        steps, rows = len(call.timesteps) - 1, slice(0, self.texts)
        count = min(self.count, steps)
        recorded = {steps * (k + 1) // count for k in range(count)}

        def record(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
            if step + 1 in recorded:
                with torch.no_grad():
                    texts = self.decode(call.latents(x0)[rows])
                self.snapshots.append(Snapshot(step + 1, float(s), texts))
                if self.file is not None:
                    show(self.snapshots[-1], steps, self.file)
                if self.path is not None and step + 1 == steps:
                    self.write(call)
            return z

        call.step_hooks.append(record)

    def write(self, call: SamplerCall) -> None:
        """Write all snapshots of a call as JSON."""
        assert self.path is not None
        write_json(self.path, self.as_dict(call))

    def as_dict(self, call: SamplerCall) -> dict[str, Any]:
        """All snapshots of a call: {"seed", "steps", "views": [{"step", "t", "texts"}]}."""
        snapshots = [asdict(snapshot) for snapshot in self.snapshots]
        return {"seed": call.seed, "steps": len(call.timesteps) - 1, "views": snapshots}


def show(snapshot: Snapshot, steps: int, file: TextIO) -> None:
    """Print a line for each text, from red to blue in a terminal. Control codes are stripped from the texts."""
    colored = file.isatty() and not os.environ.get("NO_COLOR")
    color = RED_TO_BLUE[round((len(RED_TO_BLUE) - 1) * snapshot.step / steps)]
    begin, end = (f"\033[38;5;{color}m", "\033[0m") if colored else ("", "")
    for text in snapshot.texts:
        print(f"{begin}[{snapshot.step:>{len(str(steps))}}/{steps}] {single_line(text)}{end}", file=file)
    if len(snapshot.texts) > 1:
        print(file=file)
    file.flush()
