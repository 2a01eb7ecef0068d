"""TensorBoard, by accelerate's tracker: event files in tensorboard/ of the run folder.

tensorboard --logdir runs        shows every run below the folder
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker

from utils.errors import UserError
from utils.trackers import Histogram, flatten

FOLDER = "tensorboard"  # below the run folder


class TensorBoard(TensorBoardTracker):
    """Event files of one run. A resumed run hides what was logged after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.goes_on = (folder / FOLDER).is_dir()  # also after a run that was killed before its first checkpoint
        super().__init__(FOLDER, folder)
        PartialState(cpu=True)  # the logging of accelerate needs it; the device is chosen already (utils.distributed)
        self.start()

    def cut_back(self, step: int) -> None:
        if step or self.goes_on:
            self.finish()
            self.init_kwargs["purge_step"] = step + 1  # TensorBoard hides events of this step and later ones
            self.start()

    def store_init_configuration(self, values: Mapping[str, Any], part: str = "") -> None:
        """The configuration as text, and that of the run also as hyper-parameters, by which runs are compared."""
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would write them as a further run beside this one; they cannot hold None
        flat = {} if part else {k: "none" if v is None else v for k, v in flatten(values).items()}
        for summary in hparams(flat, {}) if flat else ():
            self.writer.file_writer.add_summary(summary)
        text = f"<pre>{escape(json.dumps(values, indent=1, default=str))}</pre>"
        self.log({f"configuration/{part}" if part else "configuration": text}, 0)

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        super().log({name: value for name, value in values.items() if value is not None}, step=step)

    def log_table(self, name: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None:
        lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (columns, ["---"] * len(columns), *data)]
        self.log({name: "\n".join(lines)}, step)

    def log_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        edges, counts = histogram.edges, histogram.counts
        middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
        total = sum(c * x for c, x in zip(counts, middles, strict=True))
        squares = sum(c * x * x for c, x in zip(counts, middles, strict=True))
        self.writer.add_histogram_raw(
            name, edges[0], edges[-1], sum(counts), total, squares, list(edges[1:]), list(counts), global_step=step
        )
        self.writer.flush()

    def log_file(self, path: Path, name: str, step: int) -> None:
        """TensorBoard stores no files: its text says where the file is."""
        self.log({name: escape(str(path))}, step)


def check_tensorboard() -> None:
    """UserError if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard needs a package that is not installed: pip install tensorboard (or the extra `track`)"
        ) from None


def _cell(value: Any) -> str:
    """A value as a cell of a Markdown table, without markup of its own."""
    text = escape(" ".join(str(value).split()))
    return "".join(f"&#{ord(c)};" if c in r"|\`*_[]~#" else c for c in text)
