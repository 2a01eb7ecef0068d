"""A trained diffusion run, loaded: its settings, and its parts filled with the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.flags.programs import DIFFUSION
from pipelines.job import refuse_another_programs_run
from pipelines.parts import Parts, fill_from_run, make_parts
from utils import distributed
from utils.config import parse
from utils.settings import Settings


@dataclass
class Trained:
    settings: Settings
    parts: Parts
    device: torch.device
    class_names: list[str]


def load_run(folder: str | Path, *, device: str = "auto", flags: Sequence[str] = (), **named: Any) -> Trained:
    """named: flags that an evaluation may set; flags: the same as they are typed. The corpus is not needed.

    UserError where the folder is no run, or a flag is fixed by training.
    """
    typed = [*flags, *(f"--{name}={value}" for name, value in named.items())]
    settings = parse(DIFFUSION, ["--eval", "--resume_dir", str(folder), "--device", device, *typed])
    refuse_another_programs_run(settings)
    where, names = distributed.pick_device(device), list(settings.saved.get("class_names", ()))
    sources = (settings.max_source_len or 1) if settings.saved.get("seq2seq") else 0
    parts = make_parts(settings, Path(folder), where, len(names), sources)
    fill_from_run(parts.model, Path(folder), best=sources > 0 and not settings.newest_checkpoint)
    return Trained(settings, parts, where, names)
