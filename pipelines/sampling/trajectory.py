"""Seeing it happen: what the texts of a block are on their way from noise, in the terminal and as JSON.

At chosen steps the estimate of x0 is decoded as samples are. Works in every space and with every sampler, since it is a
correction that changes nothing (pipelines/sampling/walk).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from evaluation.report import one_line
from pipelines.sampling.walk import Walk
from utils.records import Latents
from utils.runs import write_json

RED_TO_BLUE = (196, 202, 208, 214, 220, 190, 118, 48, 51, 45, 39, 33, 27)  # of the 256 colours of terminals


@dataclass
class View:
    """The texts after one step."""

    step: int  # steps done
    t: float  # the noise level they have reached
    texts: list[str]


class Trajectory:
    """An extra of walks. Looks at the first block of each call; later ones, and other rows, are left alone."""

    def __init__(
        self,
        decode: Callable[[Latents], list[str]],
        *,
        texts: int = 3,
        views: int = 20,
        file: TextIO | None = None,
        path: Path | None = None,
    ) -> None:
        """decode: clean latents to texts. texts: how many are shown. views: of a walk, evenly spread, the last step
        among them. file: a terminal or a log to show them in. path: of a JSON file to write, replaced by each walk."""
        self.decode, self.texts, self.count, self.file, self.path = decode, texts, views, file, path
        self.views: list[View] = []

    def __call__(self, walk: Walk) -> None:
        if walk.block != 0:
            return
        self.views = []
        steps, rows = len(walk.times) - 1, slice(0, self.texts)
        count = min(self.count, steps)
        shown = {steps * (k + 1) // count for k in range(count)}

        def look(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
            if step + 1 in shown:
                with torch.no_grad():
                    texts = self.decode(Latents(x0[rows], walk.read[rows]))
                self.views.append(View(step + 1, float(s), texts))
                if self.file is not None:
                    show(self.views[-1], steps, self.file)
                if self.path is not None and step + 1 == steps:
                    self.write(walk)
            return z

        walk.corrections.append(look)

    def write(self, walk: Walk) -> None:
        """All views of a walk as JSON: {"seed", "steps", "views": [{"step", "t", "texts"}]}."""
        assert self.path is not None
        views = [asdict(view) for view in self.views]
        write_json(self.path, {"seed": walk.seed, "steps": len(walk.times) - 1, "views": views})


def show(view: View, steps: int, file: TextIO) -> None:
    """A line for each text, from red to blue where there is a terminal. Control codes of texts are taken out."""
    coloured = file.isatty() and not os.environ.get("NO_COLOR")
    place = round((len(RED_TO_BLUE) - 1) * view.step / steps)
    begin, end = (f"\033[38;5;{RED_TO_BLUE[place]}m", "\033[0m") if coloured else ("", "")
    for text in view.texts:
        print(f"{begin}[{view.step:>{len(str(steps))}}/{steps}] {one_line(text)}{end}", file=file)
    if len(view.texts) > 1:
        print(file=file)
    file.flush()


def in_terminal() -> TextIO:
    return sys.stderr
