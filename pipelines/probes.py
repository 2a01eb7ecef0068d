"""How fast a training program runs on this machine: it starts, trains for some seconds, and is ended.

The schedule of the learning rate needs the number of steps before a training starts, so a budget in minutes becomes a
number of steps by the rate of such a probe.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli.settings import Program
from utils.errors import UserError
from utils.run_folder import ROOT

PROBE_STEPS = 10_000_000  # more than any probe makes
SEEN, ENOUGH = 3, 6  # logged lines that a rate needs, and those that it waits for a while: the first steps are slow
PATIENCE = 2  # times the seconds of a probe: so long it waits for ENOUGH of them
ENDED = (143, -9, -15)  # exit codes of a program that was ended


@dataclass(frozen=True)
class Rate:
    """What a probe measured."""

    started: float  # seconds from the start of the program to its first step: imports, models, cached latents
    steps_per_second: float

    def steps(self, seconds: float, least: int = 2) -> int:
        """The steps that fit into so many seconds, the start of the program among them; at least `least`."""
        return max(least, int(self.steps_per_second * (seconds - min(self.started, 0.8 * seconds))))


def command_of(program: Program, argv: Sequence[str]) -> list[str]:
    """The command that runs a program of pipelines.stages in a process of its own, from any folder."""
    return [sys.executable, "-m", "pipelines.stages", program.name, *argv]


def uncompiled(program: Program) -> list[str]:
    """Flags for a probe: by its number of steps a CPU would compile networks, which the training it is for may not."""
    return ["--compile", "off"] if "compile" in program.flags else []


def untracked(program: Program) -> list[str]:
    """Flags for a probe, after those of the training that it is for: it opens no run of a tracker."""
    return [f"--no_{name}" for name in ("wandb", "tensorboard") if name in program.flags]


def probe(command: Sequence[str], folder: Path, seconds: float, cwd: Path | None = None) -> Rate:
    """Run a program, which writes to `folder`, for so many seconds of training; the folder is removed.

    The command asks for PROBE_STEPS steps and logs each. It goes on until ENOUGH are logged, for PATIENCE times as
    long at most, or until SEEN are, however long that takes. UserError, with its last line, if it fails.
    """
    started = run_logged(command, folder, stop_after=seconds, cwd=cwd)
    points = logged_steps(folder)
    shutil.rmtree(folder)
    return Rate(started, (points[-1][0] - points[0][0]) / (points[-1][1] - points[0][1]))


def run_logged(command: Sequence[str], folder: Path, stop_after: float | None = None, cwd: Path | None = None) -> float:
    """Run a training program, its output in folder/train.log. Returns the seconds from its start to its first step.

    stop_after: end it so many seconds after that. UserError, with its last line, where it fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began, started = time.monotonic(), 0.0
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "train.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            assert process.stdout is not None
            last = "no message"
            for line in process.stdout:
                log.write(line)
                last = line.strip() or last
                if line.startswith("training:") and not started:
                    started = time.monotonic() - began
                    if stop_after is not None:
                        threading.Thread(target=_stop, args=(process, folder, stop_after), daemon=True).start()
            code = process.wait()
        finally:
            if process.poll() is None:  # the caller was interrupted
                process.kill()
                process.wait()
    if code and not (stop_after is not None and code in ENDED):
        raise UserError(f"{folder.name} ended with {code} (see {folder / 'train.log'}): {last.removeprefix('error: ')}")
    return started


def logged_steps(folder: Path) -> list[tuple[int, float]]:
    """(step, seconds of its invocation) of every line of the log with them; half a line, being written or left by a
    kill, is passed over.
    """
    from utils.trackers import read_metrics  # imports accelerate, which --help does without

    try:
        logged = read_metrics(folder / "metrics.jsonl")
    except OSError:
        return []
    return [(line["step"], float(line["seconds"])) for line in logged if isinstance(line.get("seconds"), int | float)]


def logged_seconds(folder: Path, last: int | None = None) -> float:
    """Seconds of training that a log shows up to a step (None: the last), of all invocations: each begins at 0."""
    seconds = [at for step, at in logged_steps(folder) if last is None or step <= last]
    ends = [one for one, after in zip(seconds, seconds[1:], strict=False) if after < one]
    return sum([*ends, *seconds[-1:]])


def _stop(process: subprocess.Popen[str], folder: Path, seconds: float) -> None:
    """End it after so many seconds of training, once the log shows a rate. Nothing of it is kept."""
    time.sleep(seconds)
    patient_until = time.monotonic() + (PATIENCE - 1) * seconds
    while process.poll() is None:
        points = logged_steps(folder)
        needed = ENOUGH if time.monotonic() < patient_until else SEEN
        if len(points) >= needed and points[-1][1] > points[0][1]:
            process.kill()
            return
        time.sleep(0.2)
