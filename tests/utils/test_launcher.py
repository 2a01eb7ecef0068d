"""`accelerate launch` and `accelerate config` set defaults, which flags override."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.launcher import launcher_defaults


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


def test_without_accelerate_nothing_is_set():
    assert launcher_defaults() == {}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", {"mixed_precision": "bf16"}),
        ("ACCELERATE_MIXED_PRECISION", "no", {}),
        ("ACCELERATE_USE_CPU", "True", {"device": "cpu"}),
        ("ACCELERATE_USE_CPU", "False", {}),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", {"compile": "on"}),
        ("ACCELERATE_DYNAMO_BACKEND", "NO", {}),
    ],
)
def test_each_setting_is_the_default_of_its_flag(monkeypatch, name, value, found):
    monkeypatch.setenv(name, value)
    assert launcher_defaults() == found


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP.*--fsdp"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed.*--fsdp"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8.*no, fp16, bf16"),
    ],
)
def test_unsupported_settings_are_refused_in_one_line(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as caught:
        launcher_defaults()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_accelerate_launch_passes_its_settings_on(tmp_path):
    """The real launcher: these are the names of its variables in the pinned version."""
    script = tmp_path / "program.py"
    script.write_text("from utils.launcher import launcher_defaults\nprint(sorted(launcher_defaults().items()))\n")
    flags = ["--cpu", "--mixed_precision", "bf16", "--dynamo_backend", "inductor", "--num_processes", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(script)]
    done = subprocess.run(
        launch, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[('compile', 'on'), ('device', 'cpu'), ('mixed_precision', 'bf16')]"
