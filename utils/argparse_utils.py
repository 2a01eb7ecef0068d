"""Command lines of small programs: argparse with error messages of one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from utils.errors import UserError, did_you_mean, one_line_text


class OneLineParser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage; wrap main with utils.errors.exit_on_user_error."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            flag = message.removeprefix("argument ").partition(":")[0]
            message += f" (a value that begins with a hyphen is written {flag}=VALUE)"
        raise UserError(f"{one_line_text(message)}; see --help")


def choices_of(flag: str, value: str, choices: Sequence[str]) -> None:
    """UserError for a value that is none of the choices."""
    if value not in choices:
        near = did_you_mean(value, choices)
        raise UserError(f"{flag} {one_line_text(value)[:40]} is unknown{near}: give one of {', '.join(choices)}")
