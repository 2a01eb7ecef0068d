"""The best checkpoint of a run by a validation metric. It survives interruptions."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext
from utils.distributed import gather_objects
from utils.state import State

Score = tuple[str, float]  # a metric's name and value; larger is better


def save_if_best(run: RunContext[TrainingConfig], state: State, score: Score | None) -> None:
    """Save weights and averaged weights to best/ if the score exceeds all earlier ones. Every rank must call it.

    score: the score on rank 0; the other ranks pass None. If rank 0 passes None, nothing is saved.
    """
    scores = gather_objects(run.dist, [score])
    if scores[0] is None:
        return
    name, value = scores[0]
    if state.best.get("metric") == name and value <= state.best["value"]:
        return
    state.best = {"metric": name, "value": value, "step": state.step}
    state.save_best(run.folder)
    run.log(f"new best {name}: {value:.4g} at step {state.step}")


def load_best_score(folder: Path, from_checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The score of best/, where it is newer than that of the checkpoint: best/ is saved after the checkpoint."""
    with suppress(OSError, ValueError, KeyError):
        saved = json.loads((folder / "best" / "state.json").read_text(encoding="utf-8"))["facts"]["best"]
        if saved.get("metric") and (
            from_checkpoint.get("metric") != saved["metric"] or saved["value"] > from_checkpoint["value"]
        ):
            return saved
    return from_checkpoint
