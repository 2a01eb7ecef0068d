"""The best checkpoint of a run by a validation metric, remembered across interruptions."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext
from utils.distributed import gather_objects
from utils.state import State

Score = tuple[str, float]  # a metric's name and value; more is better


def save_if_best(job: RunContext[TrainingConfig], state: State, score: Score | None) -> None:
    """Save the weights and their average as best/ where no earlier score was as good. Called by every rank.

    score: found by the main rank alone; None: nothing to compare.
    """
    scores = gather_objects(job.dist, [score])
    if scores[0] is None:
        return
    name, value = scores[0]
    if state.best.get("metric") == name and value <= state.best["value"]:
        return
    state.best = {"metric": name, "value": value, "step": state.step}
    state.save_best(job.folder)
    job.log(f"best so far by {name}: {value:.4g} at step {state.step}")


def load_best_score(folder: Path, held: dict[str, Any]) -> dict[str, Any]:
    """What best/ says of itself, where that is more than the checkpoint knew: it was saved after it."""
    with suppress(OSError, ValueError, KeyError):
        kept = json.loads((folder / "best" / "state.json").read_text(encoding="utf-8"))["facts"]["best"]
        if kept.get("metric") and (held.get("metric") != kept["metric"] or kept["value"] > held["value"]):
            return kept
    return held
