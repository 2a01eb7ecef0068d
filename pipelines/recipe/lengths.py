"""The length of a stage: a probe measures its rate, and its part of the time that is left becomes a number of steps."""

from __future__ import annotations

import time
from typing import Any

from pipelines.probes import PROBE_STEPS, Rate, command_of, probe, uncompiled, untracked
from pipelines.recipe import plan
from pipelines.recipe.folder import RecipeFolder, log
from pipelines.recipe.plan import Steps
from pipelines.recipe.stages import STAGE_ROWS, make_stage

LONGEST_PROBE, PROBE_SHARE = 25.0, 0.02  # seconds of training, and share of a stage
MOST_LAST = 120.0  # seconds of a stage for its last evaluation
MOST_START = 15.0  # seconds
NO_LIMIT = 86400.0 * 365  # seconds


def fix_length(folder: RecipeFolder, name: str) -> dict[str, Any]:
    """The record of a stage that begins: its steps, and the seconds after which it ends in any case."""
    row, setting, choices = STAGE_ROWS[name], folder.setting, folder.choices
    batch, typed = setting.batch_size(name), folder.given.get(row.steps_flag)
    began = time.monotonic()
    rate = _measure(folder, name, _seconds(folder, name, folder.left())) if typed is None else Rate(0.0, 0.0)
    left = folder.left() - (time.monotonic() - began)  # the clock gets the seconds of the probe later
    seconds = _seconds(folder, name, left)
    last = min(MOST_LAST, plan.LAST_SHARE * seconds)
    start = min(MOST_START, rate.started)  # of the stage itself: in this process, with what its probe has encoded
    steps = plan.choose_steps(
        seconds - last,
        rate.steps_per_second,
        start,
        batch,
        fewest=row.fewest,
        least_batch=row.smallest_batch,
        half_batch=row.half_batch,
        steps=typed,
        fixed_batch=bool(row.batch_size and choices[row.batch_size].given),
    )
    if typed is None and steps.steps < row.fewest and row.with_fewer:
        _note_few_steps(folder, name, steps, start, left)
    # however small the budget, the least number of steps is made; typed steps are made whatever they take
    least = start + steps.steps / max(1e-9, steps.steps_per_second)
    limit = NO_LIMIT if typed is not None else max(seconds - last, least)
    return {**steps.record(), "max_seconds": round(limit, 1), "started": round(rate.started, 1)}


def show_length(folder: RecipeFolder, name: str, steps: Steps) -> None:
    """A line: what the stage will do, what comes after it, and when all will be done."""
    left, stages = folder.left(), list(folder.stages)
    after = stages[stages.index(name) + 1 :]
    at = time.strftime("%H:%M", time.localtime(time.time() + max(0.0, left)))
    rate = f" at {steps.steps_per_second:.2f} steps/s" if steps.steps_per_second else ""
    log(
        f"{name}: {steps.steps:,} steps of {steps.batch_size} texts{rate}, {steps.seconds / 60:.1f} min; "
        + (f"then {', '.join(after)}; " if after else "")
        + f"{max(0.0, left) / 60:.1f} min are left for training, to about {at}"
    )


def _seconds(folder: RecipeFolder, name: str, left: float) -> float:
    """The part of a stage of the seconds that are left."""
    return plan.stage_seconds(name, left, folder.stages, [*folder.state["stages"]])


def _measure(folder: RecipeFolder, name: str, seconds: float) -> Rate:
    """Probe a stage that may take so many seconds."""
    from utils.preemption import exit_on_termination

    setting = folder.setting
    stage = make_stage(name, setting, Steps(PROBE_STEPS, setting.batch_size(name), 0, 0.999, 0.0, 0.0))
    place = folder.root / f"{name}.probe"
    flags = ["--log_every", "1", "--config", "val_loss_examples=1", "--output_dir", str(place)]
    flags += untracked(stage.program)
    command = command_of(stage.program, [*uncompiled(stage.program), *stage.argv(folder.root), *flags])
    length = min(LONGEST_PROBE, max(1.0, PROBE_SHARE * seconds))
    log(f"\n{name}: a probe of {length:.0f} s tells its rate")
    with exit_on_termination():  # which ends the probe, too
        return probe(command, place, length)


def _note_few_steps(folder: RecipeFolder, name: str, steps: Steps, started: float, left: float) -> None:
    """Say that the budget is too small, and which one would do.

    started: seconds until the first step. left: seconds of the budget after the probe.
    """
    row, stages, minutes = STAGE_ROWS[name], folder.stages, folder.args.minutes
    share = stages[name] / sum(part for other, part in stages.items() if other not in folder.state["stages"])
    counts = folder.args.count_evaluation
    spent = 60 * minutes * (1 - plan.EVALUATION_SHARE if counts else 1) - left
    needed = plan.minutes_needed(row.fewest, steps.steps_per_second, started, share, spent, with_evaluation=counts)
    log(
        f"note: {minutes:g} minutes allow {steps.steps:,} steps of the {name}; below about {row.fewest} "
        f"steps {row.with_fewer}: give --minutes {needed} or more"
    )
