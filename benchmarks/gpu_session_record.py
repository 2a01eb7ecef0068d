"""A record for the repository of a GPU session: its files, and a README made of them.

    python benchmarks/gpu_session_record.py RESULTS --output_dir benchmarks/records/DATE_gpu_session_DEVICE

RESULTS: the folder of scripts/gpu_session.sh.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from benchmarks.gpu_session.table import NO_GPU, failed_checks
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_text

FILES = ("record.json", "results.jsonl", "table.txt")
THROUGHPUT = ("throughput.json", "table.txt")
COMMAND = "bash scripts/gpu_session.sh --minutes {minutes:g}"

# (what, phase, measure, what is aimed at on one H100 or H200, whether less is better)
AIMS: tuple[tuple[str, str, str, float, bool], ...] = (
    ("denoiser, steps a second", "denoiser", "steps per second", 60.0, False),
    ("denoiser, minutes for 250,000 steps", "denoiser", "time of 250,000 steps", 70.0, True),
    ("autoencoder, minutes for 50,000 steps", "autoencoder", "time of 50,000 steps", 30.0, True),
    ("1,000 texts by the fast preset, seconds", "sampling", "1,000 texts by the fast preset", 5.0, True),
)


def readme(record: Mapping[str, Any], throughput: bool) -> str:
    """The README of a record (Session.record). throughput: whether the record holds the table of that benchmark."""
    where = record["gpu"] or "a CPU"
    lines = [f"# GPU session on {where}, {record['started'][:10]}", ""]
    if not record["gpu"]:
        lines += [NO_GPU, ""]
    command = COMMAND.format(minutes=record["minutes"])
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers"))
    about = f"`{command}`, {record['seconds']:.0f} seconds, commit `{record['commit'] or 'unknown'}`, {versions}."
    about += " [table.txt](table.txt) has every measurement, `results.jsonl` also every check."
    if throughput:
        about += " [throughput.txt](throughput.txt) is the table of `benchmarks/throughput.py`."
    lines += [about, ""]
    if record["gpu"]:
        lines += _aims(record)
    lines += ["| phase | result | seconds | checks that hold |", "|---|---|---|---|"]
    for result in record["phases"]:
        holding = sum(check["holds"] for check in result["checks"])
        checks = f"{holding} of {len(result['checks'])}" if result["checks"] else ""
        lines.append(
            f"| {result['phase']}: {result['title']} | {result['status']} | {result['seconds']:.0f} | {checks} |"
        )
    failed = [
        f"- **{result['phase']}**: {text}"
        for result in record["phases"]
        for text in [*(f"{c['check']}: {c['detail']}" for c in failed_checks(result)), *_last_line(result)]
    ]
    notes = [f"- {result['phase']}: {note}" for result in record["phases"] for note in result["notes"]]
    for title, items in (("## What failed", failed), ("## What was not done", notes)):
        if items:
            lines += ["", title, "", *items]
    return "\n".join(lines) + "\n"


def _aims(record: Mapping[str, Any]) -> list[str]:
    """A table of what was measured beside what is aimed at."""
    found = {result["phase"]: result["measures"] for result in record["phases"]}
    lines = ["| at the size of the paper | measured | aim on one H100 or H200 | reached |", "|---|---|---|---|"]
    for title, phase, name, aim, less in AIMS:
        value = found.get(phase, {}).get(name, {}).get("value")
        if value is None:
            lines.append(f"| {title} | not measured | {aim:g} | |")
        else:
            reached = value <= aim if less else value >= aim
            lines.append(f"| {title} | {value:.4g} | {aim:g} | {'yes' if reached else 'no'} |")
    return [*lines, ""]


def _last_line(result: Mapping[str, Any]) -> list[str]:
    lines = [line.strip() for line in result.get("last lines", ()) if line.strip()]
    ended = f"ended by its limit of {result.get('limit', 0):.0f} s" if result["status"] == "timed out" else ""
    return [f"{ended}{': ' if ended and lines else ''}{lines[-1] if lines else ''}"] if ended or lines else []


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of scripts/gpu_session.sh")
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder of the record")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    path = args.results / "record.json"
    if not path.is_file():
        raise UserError(f"{args.results} has no record.json: give the folder of scripts/gpu_session.sh")
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise UserError(f"--output_dir {args.output_dir} exists and is not empty: name a new folder")
    record = json.loads(path.read_text(encoding="utf-8"))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(args.results / name, args.output_dir / name)
    throughput = args.results / "throughput"
    # without a GPU it is a trial of two texts, whose figures nobody must take for rates
    has_throughput = bool(record["gpu"]) and all((throughput / name).is_file() for name in THROUGHPUT)
    if has_throughput:
        shutil.copyfile(throughput / "throughput.json", args.output_dir / "throughput.json")
        shutil.copyfile(throughput / "table.txt", args.output_dir / "throughput.txt")
    write_text(args.output_dir / "README.md", readme(record, has_throughput))
    print(f"{args.output_dir / 'README.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
