"""A preset is a row of flags; what is typed goes before it, and what was trained stays behind it."""

from __future__ import annotations

import pytest

from diffusion.options import SamplingOptions
from pipelines.flags.presets import PRESETS
from pipelines.flags.programs import DIFFUSION
from utils.config import parse

BASE = "--train_file t --valid_file v --test_file t"


def test_the_flag_offers_every_row():
    assert DIFFUSION.flags["preset"].metadata["choices"] == tuple(PRESETS)
    names = {name for row in PRESETS.values() for name in row}
    assert names <= set(DIFFUSION.flags) and len({frozenset(row) for row in PRESETS.values()}) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_fills_in_what_is_not_typed(name):
    settings = parse(DIFFUSION, f"{BASE} --preset {name} --sampling_timesteps 7".split())
    assert settings.sampling_timesteps == 7
    for flag, value in PRESETS[name].items():
        assert flag == "sampling_timesteps" or getattr(settings, flag) == value


def test_without_one_nothing_changes():
    settings = parse(DIFFUSION, BASE.split())
    plain = SamplingOptions()
    assert (settings.sampler, settings.sampling_timesteps) == (plain.sampler, plain.sampling_timesteps)


def test_a_trained_run_is_evaluated_by_a_preset_and_remembers_its_own(programs, chain, tmp_path):
    saved = parse(DIFFUSION, f"--eval --resume_dir {chain / 'diff'}".split())
    typed = parse(DIFFUSION, f"--eval --resume_dir {chain / 'diff'} --preset fast".split())
    assert saved.sampling_timesteps == 2, "as it was trained with"
    assert typed.sampling_timesteps == 25 and typed.sampler == PRESETS["fast"]["sampler"]
    flags = f"--eval --preset fast --sampling_timesteps 3 --output_dir {tmp_path}"
    assert programs.again("diffusion", chain / "diff", flags) == 0
