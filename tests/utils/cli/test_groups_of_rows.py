"""Options of a row of a table are flags of the programs that use the table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from utils.cli.flags import flag
from utils.cli.parse import parse
from utils.cli.settings import Program, group, groups_of_rows


@dataclass
class SharedOptions:
    width: int = flag(8, "width", unit="channels", at_least=1)


@dataclass
class OwnOptions:
    heads: int = flag(2, "heads", unit="heads", at_least=1)


ROWS = {"first": SharedOptions, "second": None, "third": OwnOptions, "fourth": OwnOptions}


@groups_of_rows(ROWS, "denoiser", flags={"may_change": "eval"})
@dataclass
class Config:
    shared: SharedOptions = group(SharedOptions, "shared")


def test_options_of_a_row_are_flags_once_each():
    program = Program("program", "a program", Config)
    assert list(program.groups) == ["shared", "denoiser third"]
    assert program.flags["heads"].may_change == "eval"
    settings = parse(program, ["--heads", "4"])
    assert settings.get("heads") == 4 and settings.config.shared.width == 8


def test_a_config_that_declares_the_options_of_every_row_stays_as_it_is():
    assert groups_of_rows({"first": SharedOptions}, "denoiser")(Config) is Config


def test_two_rows_cannot_share_the_name_of_a_flag():
    @dataclass
    class OtherOptions:
        width: int = flag(1, "another width", unit="channels")

    config = groups_of_rows({"other": OtherOptions}, "denoiser")(Config)
    with pytest.raises(AssertionError, match="--width lies in two groups"):
        Program("program", "a program", config)
