"""The best checkpoint of a run by a validation metric. It survives interruptions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext
from utils import checkpoints
from utils.distributed import gather_objects
from utils.errors import UserError
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
        if value == state.best["value"]:
            run.log_once(
                f"note: {name} is {value:.4g} at step {state.step} as at step {state.best['step']}: of equal steps "
                "best/ holds the first; if that goes on, select by another metric with --best_metric, or evaluate the "
                "newest checkpoint with --config newest_checkpoint=true",
                "tie of the best",
            )
        return
    state.best = {"metric": name, "value": value, "step": state.step}
    state.save_best(run.folder)
    run.log(f"new best {name}: {value:.4g} at step {state.step}")


def load_best_score(folder: Path, from_checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The score of best/, which is saved after the checkpoint. {} if best/ is gone or cannot be used.

    The next evaluation is then the best so far, whatever the checkpoint says: a score without weights helps nobody.
    """
    if not from_checkpoint and not checkpoints.has_best(folder):
        return {}
    try:
        return dict(checkpoints.load_best(folder).metadata["best"])
    except UserError as error:
        print(f"note: {error}; the next evaluation becomes the best", file=sys.stderr)
        return {}
