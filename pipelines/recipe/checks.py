"""Which rules of a program can be checked before the stages that come first have written their folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.cli import decoder_rules
from pipelines.cli.distillation_rules import inherit_teacher_flags
from pipelines.cli.embedding_rules import check_embedding_flags
from pipelines.cli.joint_rules import inherit_joint_flags
from pipelines.cli.unused_flags import warn_unused_flags
from utils.cli.settings import Program, Settings

# They read run folders or need what such a rule sets, and the last one prints what the stage itself will print.
LATER = frozenset(
    {
        inherit_teacher_flags,
        inherit_joint_flags,
        check_embedding_flags,
        decoder_rules.check_resume,
        decoder_rules.resolve_space,
        warn_unused_flags,
    }
)


def rules_without_folders(program: Program[Any]) -> list[Callable[[Settings[Any]], None]]:
    """The rules of a program that need no run folder."""
    return [rule for rule in program.rules if rule not in LATER]
