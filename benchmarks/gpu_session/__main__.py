"""Checks and measures this project on one GPU in a few minutes; without one, the same phases run small on the CPU.

Writes results.jsonl (a line after each phase), record.json, table.txt and phases/ (the output of each phase).
benchmarks/gpu_session_record.py makes a record for the repository of them. Exit code 1 if a phase failed or timed out,
or on a GPU was left out for want of time. The time counts from SESSION_BEGAN (seconds since 1970) of the environment:
what the shell script did before counts as well.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from any directory

from benchmarks.gpu_session.phases import PHASES
from benchmarks.gpu_session.session import Session
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="bash scripts/gpu_session.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = os.environ.get("OUT")
    parser.add_argument("--output_dir", type=Path, default=out and Path(out), help="default: the environment's OUT")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole session (default: %(default)g)")
    parser.add_argument("--scale", choices=("auto", "paper", "tiny"), default="auto", help="auto: paper on a GPU")
    parser.add_argument("--phases", help=f"only these, by commas: {', '.join(phase.name for phase in PHASES)}")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if args.output_dir is None:
        raise UserError("--output_dir is missing, and the environment has no OUT: name a folder")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir} is a file: name a folder")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}: give a positive number")
    wanted = [phase.name for phase in PHASES] if args.phases is None else args.phases.split(",")
    unknown = next((name for name in wanted if name not in [phase.name for phase in PHASES]), None)
    if unknown is not None:
        raise UserError(f"--phases {unknown!r} is no phase: choose from {', '.join(phase.name for phase in PHASES)}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stop)  # so that the running phase is ended, too
    gpu = _gpu_name()
    scale = ("paper" if gpu else "tiny") if args.scale == "auto" else args.scale
    session = Session(args.output_dir.resolve(), scale, args.minutes, gpu, began=began())
    return session.run([phase for phase in PHASES if phase.name in wanted])


def began() -> float:
    """When the session began, by time.monotonic()."""
    text = os.environ.get("SESSION_BEGAN", "")
    since = time.time() - int(text) if text.isdecimal() else 0.0
    return time.monotonic() - max(0.0, since)


def _gpu_name() -> str | None:
    """In a process of its own, so that this one holds no memory of the GPU."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if found.returncode:
        raise UserError(f"torch cannot be used here: {found.stderr.strip().splitlines()[-1]}")
    return found.stdout.strip() or None


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
