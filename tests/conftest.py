"""Settings of every test run, applied before torch is imported."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile

# Idle OpenMP threads sleep: spinning ones make a machine with another busy process 100 times slower.
# No hub look-ups: each would wait half a minute where there is no network. No tracker contacts a server.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"
os.environ["LATENT_DIFFUSION_MODELS"] = os.devnull  # no test depends on models that this machine happens to have

os.environ["LATENT_DIFFUSION_CACHE"] = tempfile.mkdtemp(prefix="caches-")  # no test writes into the home of its user

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The outcome of CI must depend on the change only, so it draws the same examples every time; elsewhere they are new.
settings.register_profile("same", derandomize=True)
if "SAME_EXAMPLES" in os.environ:
    settings.load_profile("same")


_CACHES = os.environ["LATENT_DIFFUSION_CACHE"]
_tests = itertools.count()
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch):
    """Each test has caches of its own: some count what is encoded."""
    monkeypatch.setenv("LATENT_DIFFUSION_CACHE", f"{_CACHES}/{next(_tests)}")
