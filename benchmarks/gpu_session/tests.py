"""The tests of the repository that need a GPU, by pytest, as far as the time allows."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from benchmarks.gpu_session.report import LeftOut, Report
from benchmarks.gpu_session.scales import Setting
from utils.run_folder import ROOT

TESTS = "tests/pipelines/test_on_a_gpu.py"
PACKAGES = ("pytest", "hypothesis")


def run(setting: Setting, report: Report) -> None:
    if not setting.on_gpu:
        raise LeftOut("its tests need a GPU; scripts/test_slow.sh runs those of them that do not")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise LeftOut(f"not installed: {', '.join(missing)}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow or not slow", "-v", TESTS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            name, _, outcome = line.partition(" ")
            if "::" in name and outcome.split()[:1] in (["PASSED"], ["FAILED"], ["ERROR"]):
                report.check(name.rpartition("::")[2], outcome.startswith("PASSED"), outcome.split()[0])
    report.check("pytest ends with exit code 0", process.returncode == 0, str(process.returncode))
