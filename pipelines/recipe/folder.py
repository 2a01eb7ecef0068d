"""The folder of a recipe: its record of choices and stages, the seconds of each, and what is left of the budget."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from pipelines.probes import logged_seconds
from pipelines.recipe import plan
from pipelines.recipe.arguments import typed_choices
from pipelines.recipe.plan import Choices
from pipelines.recipe.stages import Setting, choices_of_record, setting_of_record
from pipelines.stages import StageTimer
from utils.errors import UserError
from utils.locks import try_lock
from utils.run_folder import write_json

RECORD = "recipe.json"
SECONDS = "seconds.json"


class RecipeFolder:
    """Everything of a recipe that survives an interruption.

    args: of the command. state: the record; empty in a new folder. UserError if another command began the folder, or
    its record is damaged.
    """

    def __init__(self, args: Namespace) -> None:
        self.args, self.root = args, args.output_dir
        self.given = typed_choices(args)
        self.state = self._read()
        self.clock = StageTimer(self.root / SECONDS)

    def _read(self) -> dict[str, Any]:
        path = self.root / RECORD
        if not path.is_file():
            return {}
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            before = found["given"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: name another --output_dir") from None
        for name in sorted(before.keys() | self.given.keys()):
            if before.get(name) != self.given.get(name):
                raise UserError(
                    f"{self.root} was begun with {_typed(name, before)} and is now asked for "
                    f"{_typed(name, self.given)}: type the command as it was to go on, or name another --output_dir"
                )
        return found

    def write(self) -> None:
        if not self.args.dry_run:
            write_json(self.root / RECORD, self.state)

    def claim(self) -> None:
        """Make the folder, and keep another process of the same command out: both would count the seconds of both."""
        if self.args.dry_run:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        if not try_lock(self.root):
            raise UserError(f"another recipe is running in {self.root}: wait for it, or name another --output_dir")

    @property
    def choices(self) -> Choices:
        return choices_of_record(self.state)

    @property
    def setting(self) -> Setting:
        return setting_of_record(self.state)

    @property
    def stages(self) -> dict[str, float]:
        """The stages in their order, each with its share of the time for training."""
        return plan.shares(self.choices)

    def left(self) -> float:
        """Seconds of the budget that are left for trainings."""
        total = 60 * self.args.minutes
        if self.args.count_evaluation:
            total -= plan.EVALUATION_SHARE * total
        spent = {name: self.spent(name) for name in self.state["stages"]} if self.state else {}
        return float(total - sum({**self.clock.seconds, **spent, "evaluation": 0.0}.values()))

    def spent(self, name: str) -> float:
        """Seconds that a stage has taken: those of the clock or, after a kill, what the log of that session shows."""
        began = self.state["stages"].get(name, {}).get("began", {"clock": 0.0, "logged": 0.0})
        logged = logged_seconds(self.root / name) - began["logged"]
        return float(max(self.clock.seconds.get(name, 0.0), began["clock"] + logged))

    def begin(self, name: str) -> None:
        """Before a stage begins or goes on, book the seconds of a session that was killed, and note where the clock and
        the log of this one begin: at the last checkpoint, since the stage removes the lines after it.
        """
        from utils import checkpoints

        missing = self.spent(name) - self.clock.seconds.get(name, 0.0)
        if missing > 0:
            self.clock.add(name, missing)
        step = (checkpoints.newest(self.root / name) or {}).get("step", 0)
        self.state["stages"][name]["began"] = {
            "clock": self.clock.seconds.get(name, 0.0),
            "logged": logged_seconds(self.root / name, step),
        }
        self.write()

    def times(self) -> dict[str, float]:
        """Seconds of each stage: of a finished one those that it took, of one that has begun those that it may take.

        The others share what is left.
        """
        records = self.state["stages"]
        known = {name: self.spent(name) for name in records}
        left = self.left()
        for name, record in records.items():
            if "done" not in record and record["seconds"] > known[name]:
                left -= record["seconds"] - known[name]
                known[name] = record["seconds"]
        return {
            name: known[name] if name in known else plan.stage_seconds(name, left, self.stages, [*known])
            for name in self.stages
        }


def log(line: str) -> None:
    print(line, flush=True)


def _typed(name: str, given: dict[str, Any]) -> str:
    value = given.get(name)
    return f"no --{name}" if value in (None, False) else f"--{name}" if value is True else f"--{name} {value}"
