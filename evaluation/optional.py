"""Optional packages, imported when a metric first needs them. This module imports no metric.

Importing `evaluation` must stay cheap: spaCy, mauve-text, bert-score and evaluate take seconds each, and a machine that
only trains may lack them. A metric whose package is missing raises MissingPackage, and the evaluation skips it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from utils.errors import UserError


class MissingPackage(UserError):
    """The package of a metric is not installed. `package` is its name for pip."""

    def __init__(self, package: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package}, which is not installed: pip install {package}")
        self.package = package


def optional_import(module: str, package: str, purpose: str) -> Any:
    """Import and return `module`, which pip installs as `package`. Raises MissingPackage if it is not installed.

    purpose: what needs the package, for the message.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is installed, but something that it imports is broken: show that error
        raise MissingPackage(package, purpose) from error
