"""A note on explicit flags without effect: a flag that declares `needs` has an effect only with another one.

It is a note and not an error, since published command lines name such flags. Contradictions are refused by the rules.
"""

from __future__ import annotations

import sys
from typing import Any

from pipelines.cli.configs import TrainingConfig
from utils.cli.settings import Settings


def warn_unused_flags(settings: Settings[TrainingConfig]) -> None:
    """A rule: one note on all explicit flags that differ from their defaults and have no effect."""
    flags, unused = settings.program.flags, {}
    for name in flags:
        needed = flags[name].needed
        if needed is None or needed[0] not in flags or name not in settings.explicit:
            continue
        if settings.get(name) != flags[name].default:
            other, values = needed
            found = settings.get(other)
            if not (found in values if values else found):
                unused[f"--{name}"] = _condition(other, values)
    if unused:
        reasons = "; ".join(f"{name} has an effect only {condition}" for name, condition in unused.items())
        print(f"note: these flags have no effect here: {reasons}", file=sys.stderr)


def _condition(other: str, values: tuple[Any, ...]) -> str:
    if not values:
        return f"with --{other}"
    if values in ((None,), (False,)):
        return f"without --{other}"
    return f"with --{other} {' or '.join(map(str, values))}"
