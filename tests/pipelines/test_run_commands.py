"""What sample and infill share: a run, or a checkpoint in one; every mistake one line and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.flags.run_commands import run_folder
from pipelines.infill import main as infill
from pipelines.sample import main as sample


def test_a_checkpoint_means_its_run(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000005"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "args.json").write_text("{}")
    assert run_folder(checkpoint) == run_folder(tmp_path / "run") == tmp_path / "run"


@pytest.mark.parametrize("main", [sample, infill])
@pytest.mark.parametrize(
    "argv, said",
    [
        ("", "--run"),
        ("--run {here}", "{here} is not a run folder"),
        ("--run {here} --num_samples x", "--num_samples: invalid int value: 'x'; see --help"),
    ],
)
def test_a_mistake_is_one_line(main, argv, said, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv.format(here=tmp_path).split())
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said.format(here=tmp_path) in line
