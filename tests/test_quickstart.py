"""The quickstart as a user runs it; slow, because it trains every stage. The project guarantees these thresholds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report_browser import CHROMIUM, check_report, started_browser

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_quickstart_trains_and_evaluates_in_one_command(tmp_path):
    folder = tmp_path / "quickstart"
    # the environment of this test run is the one that the script would make
    environment = {**os.environ, "USE_PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts/quickstart.sh"), "--output_dir", str(folder)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=3600)

    report = json.loads((folder / "report.json").read_text())
    assert report["n"] >= 1000
    assert report["reconstruction_exact"] >= 0.97
    assert report["grammatical"] >= 0.98
    assert report["agreement"] >= 0.97
    assert report["novel"] >= 0.5
    assert {"mauve", "perplexity", "diversity", "memorization"} <= report.keys()
    assert report["seconds"]["total"] > 0
    assert all((folder / part).is_dir() for part in ("lm", "autoencoder", "diffusion"))
    assert "Run report" in (folder / "report.html").read_text(encoding="utf-8")
    if CHROMIUM is not None:
        with started_browser() as browser:
            check_report(browser, folder / "report.html")

    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # an ordinary Hugging Face folder

    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "lm")
    assert len(AutoTokenizer.from_pretrained(folder / "lm")) == model.config.vocab_size

    options = {"cwd": tmp_path, "env": environment, "timeout": 60, "capture_output": True, "text": True}
    again = subprocess.run(command, check=True, **options)
    assert "is finished" in again.stdout
