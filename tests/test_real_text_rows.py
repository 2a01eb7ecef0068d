"""The rows of the study of real text: their commands, to the flags that are quoted for a stage."""

from __future__ import annotations

import pytest

from benchmarks.real_text_rows import ROWS, Models, row_flags, sampled_run
from pipelines.builders.diffusion_process import make_process
from pipelines.recipe.arguments import parser, typed_choices
from pipelines.recipe.checks import rules_without_folders
from pipelines.recipe.corpus_facts import CorpusFacts
from pipelines.recipe.plan import Machine, Steps, choose, shares
from pipelines.recipe.stages import Setting, make_stage
from utils.cli.parse import check_flags

CAPTIONS = CorpusFacts(texts=60_000, held_out=1_000, words=12, tokens=38, sentences=1, most_sentences=1)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.program == "recipe"])
def test_every_stage_of_a_row_has_flags_of_its_program(name, tmp_path):
    """A mistake in a late stage would end a row after most of its minutes."""
    words = row_flags(name, tmp_path, Models("lm", "encoder"))
    args = parser().parse_args(["--train_file", "x", "--minutes", "60", "--output_dir", str(tmp_path), *words])
    given = typed_choices(args)
    choices = choose(CAPTIONS, Machine("lm", "encoder", 400), 3600, given)
    setting = Setting("--train_file x", choices, "lm", "encoder", False, given)
    for stage in (make_stage(stage, setting, Steps(100, 32, 8, 0.9, 60.0, 1.0)) for stage in shares(choices)):
        found = check_flags(stage.program, stage.argv(tmp_path), rules_without_folders(stage.program))
        if stage.name == "diffusion":
            config = found.config
            process = make_process(config.process, config.sampling, config.denoiser.denoiser_variant)
            times = process.grid(config.sampling.sampling_timesteps)
            assert len(times) == 33 and times.diff().max() < 0


def test_a_row_is_sampled_from_the_run_in_which_its_denoiser_trained_last(tmp_path):
    assert sampled_run(tmp_path) == tmp_path
    (tmp_path / "recipe.json").touch()
    assert sampled_run(tmp_path) == tmp_path / "diffusion"
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "args.json").touch()
    assert sampled_run(tmp_path) == tmp_path / "joint"
