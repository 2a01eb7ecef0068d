"""A few thousand random and damaged inputs: a right reading or one line. benchmarks/fuzz.py has the long run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from benchmarks import fuzz, fuzz_targets
from utils.errors import UserError

INPUTS = {  # 2,000 in all
    "corpus files": 700, "readers": 500, "command lines": 350, "small programs": 100, "configurations": 150,
    "run folders": 40, "resumed runs": 5, "language models": 25, "calls from Python": 130,
}  # fmt: skip
SEED = 14


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, fuzz_targets.Target]:
    root = tmp_path_factory.mktemp("fuzz")
    made = fuzz_targets.make_targets(fuzz_targets.train_run(root), fuzz_targets.save_model(root / "model"))
    return {target.name: target for target in made}


def test_there_are_two_thousand_inputs(targets):
    assert set(INPUTS) == set(targets) and sum(INPUTS.values()) == 2000


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_is_read_or_refused_in_one_line(targets, name, tmp_path):
    target = targets[name]
    finding = fuzz.fuzz(target, INPUTS[name], SEED, tmp_path, set())
    assert finding is None, f"{finding.place}: {finding.error}\nminimal input: {finding.case}"
    assert target.outcomes["read"] and target.outcomes["refused"], "one of the two never happened"


def test_an_error_of_the_program_is_found_reduced_and_counted_once(tmp_path):
    def read(case: list[int], folder: Path) -> Any:
        if len(case) > 4 and case[0] > 100:
            return {}["absent"]
        raise UserError("a short list")

    target, known = fuzz_targets.Target("lists", st.lists(st.integers()), read, 1.0), set()
    finding = fuzz.fuzz(target, 300, 1, tmp_path, known)
    assert finding is not None and finding.error == "KeyError: 'absent'" and finding.case == "[101, 0, 0, 0, 0]"
    assert fuzz.fuzz(target, 300, 2, tmp_path, known) is None and target.outcomes["known finding"]


@pytest.mark.parametrize(
    "error", [ValueError("math domain error"), KeyError("x"), OSError("no file named"), SystemExit(1)]
)
def test_what_is_no_line_for_a_user_is_a_finding(error):
    def read() -> None:
        raise error

    with pytest.raises(BaseException, match="|".join(("math", "x", "named", "exit status"))):
        fuzz_targets.outcome(read)
