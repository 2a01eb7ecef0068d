"""Optional packages, imported when a metric first needs them. Knows nothing of the metrics themselves.

Importing a room must stay cheap (spaCy, mauve-text, bert-score and evaluate cost seconds each), and a machine that only
trains may lack them: then a metric says so in one line, and the evaluation goes on without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from utils.errors import UserError


class MissingPackage(UserError):
    """A metric's package is not installed. `package` is its name for pip."""

    def __init__(self, package: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package}, which is not installed: pip install {package}")
        self.package = package


def optional_import(module: str, package: str, purpose: str) -> Any:
    """Import `module`, which pip installs as `package`; MissingPackage where it is absent."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there, and something that it imports is broken: not ours to explain away
        raise MissingPackage(package, purpose) from error
