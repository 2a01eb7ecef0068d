"""Local models that a run names by a flag, found again where the run and they moved together, or from another folder.

args.json holds their places relative to the run folder, beside the flags as they were typed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.cli.configs import TrainingConfig
from utils.cli.settings import Settings

ENTRY = "models_relative"  # of args.json
FLAGS = (
    "model", "scorer", "mauve_encoder", "bertscore_model", "classifier", "latent_classifier", "draft_model",
    "alignment_model", "denoiser_run", "diffusion_run",
)  # fmt: skip


def model_places(settings: Settings[TrainingConfig], folder: Path) -> dict[str, str]:
    """Flag -> path relative to the run folder, for each flag that names a local folder or file."""
    given = {flag: settings.get(flag) for flag in FLAGS if flag in settings.program.flags}
    return {flag: os.path.relpath(name, folder) for flag, name in given.items() if name and Path(name).exists()}


def find_moved_models(settings: Settings[TrainingConfig]) -> list[str]:
    """Where a recorded model is not at the path that was typed for the run, name it at its place beside the run.

    Flags that are typed now stay. Returns notes. A model at neither place is left to the code that loads it.
    """
    folder = settings.config.run.resume_dir
    places = settings.checkpoint_args.get(ENTRY) if folder is not None else None
    notes = []
    for flag, relative in (places if isinstance(places, Mapping) else {}).items():
        if flag not in FLAGS or flag in settings.explicit or flag not in settings.program.flags:
            continue
        given: Any = settings.get(flag)
        place = Path(os.path.normpath(Path(str(folder)) / str(relative)))
        if given and not Path(str(given)).exists() and place.exists():
            settings.set(flag, str(place), source="saved")
            notes.append(f"--{flag} {given} of {folder} is found at {place}")
    return notes
