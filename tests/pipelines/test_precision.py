"""Precision that nobody gave: the device chooses it, and another device that uses the run chooses its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines import train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.load_run import load_run
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import distributed
from utils.cli.args_io import read_config
from utils.cli.parse import parse
from utils.precision import is_chosen, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def has_bf16(monkeypatch) -> Callable[[bool], None]:
    """A function: whether the device of this test computes bfloat16 fast."""
    return lambda fast: monkeypatch.setattr(distributed, "has_bf16", lambda device=None: fast)


@pytest.fixture
def recorded(chain, tmp_path) -> Callable[..., Path]:
    """A function: a run that was trained with a precision, chosen by its device or given."""

    def make(precision: str, chosen: bool) -> Path:
        folder = tmp_path / f"{precision}{chosen}"
        shutil.copytree(chain / "diff", folder)
        path = folder / "args.json"
        entries = {"mixed_precision": precision, "precision_chosen": chosen}
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
        return folder

    return make


def dtype_of(pipeline: TextDiffusionPipeline) -> torch.dtype:
    with pipeline.generator.autocast():
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


@pytest.mark.parametrize("before, fast, dtype", [("no", True, torch.bfloat16), ("bf16", False, torch.float32)])
def test_another_device_chooses_its_own_and_says_so(recorded, has_bf16, capsys, before, fast, dtype):
    folder = recorded(before, True)
    has_bf16(fast)
    pipeline = TextDiffusionPipeline.from_pretrained(folder, device="cpu")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "precision" in line]
    assert dtype_of(pipeline) == dtype and str(folder) in line and f"--mixed_precision {before} for that" in line
    has_bf16(not fast)
    assert dtype_of(pipeline.to("cpu")) != dtype  # as if it were moved to another device
    assert "precision" not in capsys.readouterr().err


@pytest.mark.parametrize("fast", [True, False])
def test_the_same_choice_is_no_news(recorded, has_bf16, capsys, fast):
    has_bf16(fast)
    pipeline = TextDiffusionPipeline.from_pretrained(recorded("bf16" if fast else "no", True), device="cpu")
    assert dtype_of(pipeline) == (torch.bfloat16 if fast else torch.float32)
    assert "precision" not in capsys.readouterr().err


def test_a_precision_that_was_given_stays(recorded, has_bf16, capsys):
    has_bf16(True)
    given, chosen = recorded("no", False), recorded("no", True)
    for folder, flags in ((given, {}), (chosen, {"mixed_precision": "no"})):
        pipeline = TextDiffusionPipeline.from_pretrained(folder, device="cpu", **flags)
        assert dtype_of(pipeline) == torch.float32 and dtype_of(pipeline.to("cpu")) == torch.float32
    has_bf16(False)
    assert dtype_of(TextDiffusionPipeline.from_pretrained(recorded("bf16", False), device="cpu")) == torch.bfloat16
    assert "precision" not in capsys.readouterr().err


@pytest.mark.parametrize("before, fast", [("no", True), ("bf16", False)])
def test_resumed_training_keeps_the_precision_and_says_what_is_faster(recorded, has_bf16, capsys, before, fast):
    folder = recorded(before, True)
    words = ["--resume_training", "--resume_dir", str(folder)]
    for differs in (True, False):
        has_bf16(fast == differs)
        settings = parse(DIFFUSION, words)
        resolve_precision(settings, CPU)
        assert settings.config.loop.mixed_precision == before and is_chosen(settings)
        lines = [line for line in capsys.readouterr().err.splitlines() if "precision" in line]
        assert len(lines) == differs and all("training goes on" in line for line in lines)
    other = "bf16" if before == "no" else "no"
    settings = parse(DIFFUSION, [*words, "--mixed_precision", other])
    resolve_precision(settings, CPU)
    assert settings.config.loop.mixed_precision == other and not is_chosen(settings)


def test_the_record_says_who_chose(programs, chain, tmp_path, has_bf16, capsys):
    has_bf16(True)
    asked = f"{programs.data} --latent_model_path {chain / 'ae'} --device cpu --max_seq_len 40 --tx_dim 64 --tx_depth 1"
    few = f"--num_train_steps 1 --train_batch_size 8 --num_samples 2 --sampling_timesteps 2 --scorer {programs.scorer}"
    command = f"{asked} {few} --decoding greedy --no_wandb"
    for name, flags, chosen in (("chosen", "", True), ("given", "--mixed_precision bf16", False)):
        assert train_diffusion.train(parse(DIFFUSION, f"{command} --output_dir {tmp_path / name} {flags}".split())) == 0
        saved = json.loads((tmp_path / name / "args.json").read_text())
        assert saved["mixed_precision"] == "bf16" and saved["precision_chosen"] is chosen
    # as --config it gives no precision that its device chose
    for name, is_given in (("chosen", False), ("given", True)):
        assert ("mixed_precision" in read_config(DIFFUSION, tmp_path / name / "args.json")) == is_given
    has_bf16(False)
    capsys.readouterr()
    assert programs.again("diffusion", tmp_path / "chosen", "--eval --num_samples 2") == 0
    assert "is used with --mixed_precision no" in capsys.readouterr().err
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "chosen", device="cpu")
    pipeline.save_pretrained(tmp_path / "saved")
    has_bf16(True)
    assert dtype_of(TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")) == torch.bfloat16


def test_the_attention_of_cudnn_is_off_in_every_process(chain):
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_run(chain / "diff", device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    code = "import torch\nassert torch.backends.cuda.cudnn_sdp_enabled()\nimport model.attention\n"
    code += "assert not torch.backends.cuda.cudnn_sdp_enabled()"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
