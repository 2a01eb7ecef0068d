"""Command lines of small programs: argparse, whose complaints are one line like those of all programs here."""

from __future__ import annotations

import argparse
from typing import NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Instead of its usage, several lines, it raises a UserError: for a main function within utils.errors.one_line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")
