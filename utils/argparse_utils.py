"""Command lines of small programs: argparse with error messages of one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage; wrap main with utils.errors.exit_on_user_error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")
