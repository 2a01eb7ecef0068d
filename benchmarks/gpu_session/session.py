"""Runs the phases one after another, each in a process, within a budget of time, and records what they found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_session.phases import Phase
from benchmarks.gpu_session.report import read
from benchmarks.gpu_session.run_phase import LEFT_OUT
from benchmarks.gpu_session.table import phase_line, table
from utils.run_folder import ROOT, git_commit, package_versions, write_json, write_text

RESERVE = 20.0  # seconds kept for the end of the last phase (SIGTERM, SIGKILL), the table and the record
LAST_LINES = 15  # of the output of a phase that failed, in its result
BAD = ("failed", "timed out")  # states that make the session's exit code 1


@dataclass
class Session:
    """A session in a folder: results.jsonl, record.json, table.txt, and the output of each phase in phases/.

    What the phases train and cache is in a temporary folder, which is removed at the end.
    """

    folder: Path
    scale: str
    minutes: float
    gpu: str | None  # name of the GPU
    results: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)  # by time.monotonic()
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def run(self, phases: Sequence[Phase]) -> int:
        """Run the phases. Returns 1 if one of them failed or timed out, or on a GPU was left out for want of time."""
        (self.folder / "phases").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu_session_", ignore_cleanup_errors=True) as work:
            return self._run(phases, work)

    def _run(self, phases: Sequence[Phase], work: str) -> int:
        lines = self.folder / "results.jsonl"
        lines.unlink(missing_ok=True)
        for number, phase in enumerate(phases):
            later = sum(other.needs for other in phases[number + 1 :] if other.is_required)
            result = self._run_phase(phase, work, later)
            self.results.append(result)
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._write_record()
            print(phase_line(result), flush=True)
        print("\n" + table(self.record()), flush=True)
        late = {phase.name for phase in phases if phase.is_required}.intersection(self.record()["no time"])
        return int(any(result["status"] in BAD for result in self.results) or bool(self.gpu and late))

    def record(self) -> dict[str, Any]:
        def names(*states: str) -> list[str]:
            return [result["phase"] for result in self.results if result["status"] in states]

        return {
            "started": self.started,
            "seconds": round(time.monotonic() - self.began, 1),
            "minutes": self.minutes,
            "gpu": self.gpu,
            "scale": self.scale,
            "commit": git_commit(),
            "versions": dict(package_versions()),
            "failed": names(*BAD),
            "cut short": names("cut short"),
            "left out": names("left out"),
            "no time": [result["phase"] for result in self.results if result.get("no time")],
            "phases": self.results,
        }

    def _write_record(self) -> None:
        record = self.record()
        write_json(self.folder / "record.json", record)
        write_text(self.folder / "table.txt", table(record) + "\n")

    def _run_phase(self, phase: Phase, work: str, later: float) -> dict[str, Any]:
        """later: seconds that required phases after this one need, which its limit leaves to them."""
        remaining = 60 * self.minutes - (time.monotonic() - self.began) - RESERVE
        result: dict[str, Any] = {"phase": phase.name, "title": phase.title, "status": "left out", "seconds": 0.0}
        if remaining < phase.needs:
            why = f"{max(0.0, remaining):.0f} s of --minutes {self.minutes:g} are left, and it needs {phase.needs:g}"
            return {**result, "no time": True, "measures": {}, "checks": [], "notes": [f"left out: {why}"]}
        limit = min(phase.limit, max(phase.needs, remaining - later))
        name = phase.module.rpartition(".")[2]
        log = self.folder / "phases" / f"{name}.log"
        log.with_suffix(".jsonl").unlink(missing_ok=True)  # of an earlier session in this folder
        print(f"== {phase.name}: {phase.title} (at most {limit:.0f} s)", flush=True)
        began = time.monotonic()
        code = _run_process(
            [sys.executable, "-m", "benchmarks.gpu_session.run_phase", phase.module, "--output_dir", str(self.folder),
             "--work_dir", work, "--scale", self.scale, "--seconds", f"{limit:.1f}"],
            log, limit,
        )  # fmt: skip
        found = read(log.with_suffix(".jsonl"))
        status = {0: "passed", LEFT_OUT: "left out", None: "cut short" if phase.may_be_cut else "timed out"}
        result |= {
            "status": status.get(code, "failed"), "seconds": round(time.monotonic() - began, 1),
            "limit": round(limit, 1), "exit code": code, **found,
        }  # fmt: skip
        if result["status"] in BAD:
            result["last lines"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return result


def _run_process(command: list[str], log: Path, limit: float) -> int | None:
    """Run a command in a process group of its own. Returns its exit code, or None if the limit ended it."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONFAULTHANDLER": "1",  # a crash leaves the stack in the log
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started: SIGTERM, then SIGKILL."""
    for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
