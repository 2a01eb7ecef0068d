"""Random and damaged inputs for all that reads one: files of texts, command lines, configurations, run folders.

    python benchmarks/fuzz.py --inputs 100000 --seed 1 --out benchmarks/records/DATE/fuzz

Hypothesis makes the inputs: random bytes, mutations of valid files, and generated structures. Each is read in this
process. The outcome must be a right reading or one line (UserError, or an OSError that names a file); anything else is
a finding, which Hypothesis reduces to a minimal input, and which is printed and written to OUT.json. A finding of the
same place in the code counts once. tests/fuzz runs the same targets on few inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for name, value in {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ.setdefault(name, value)

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

from benchmarks.fuzz_targets import Target, make_targets, outcome, save_model, train_run  # noqa: E402
from utils.argparse_utils import OneLineParser  # noqa: E402
from utils.errors import UserError, exit_on_user_error  # noqa: E402

MEMORY = 12 << 30  # bytes of address space: a size that nobody has must be an error, not the end of the process


@dataclass
class Finding:
    target: str
    place: str  # file, function and class of the error
    error: str
    case: str


def place_of(error: BaseException) -> str:
    """Where an error was raised: its class, and the last frame in this project."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename and ".venv" not in f.filename
    ]
    own = [f for f in frames if not f.filename.endswith(("fuzz.py", "fuzz_targets.py"))] or frames
    last = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].name}" if own else "?"
    return f"{type(error).__name__} in {last}"


def fuzz(target: Target, inputs: int, start: int, folder: Path, known: set[str]) -> Finding | None:
    """Read `inputs` inputs drawn from the seed `start`. Returns the first finding that is not in `known`, reduced."""
    last: dict[str, Any] = {}

    @seed(start)
    @settings(
        max_examples=inputs, deadline=None, database=None, derandomize=False, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(target.inputs)
    def run(case: Any) -> None:
        try:
            target.outcomes[outcome(lambda: target.read(case, folder))] += 1
        except Exception as error:
            place = place_of(error)
            if place in known or last.get("place", place) != place:
                target.outcomes["known finding"] += 1
                return
            last.update(place=place, error=f"{type(error).__name__}: {error}"[:500], case=repr(case)[:2000])
            raise

    try:
        run()
    except Exception:
        if not last:
            raise
        target.outcomes["finding"] += 1
        known.add(last["place"])
        return Finding(target.name, last["place"], last["error"], last["case"])
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs of all targets (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="seed of the inputs")
    parser.add_argument("--only", help="the target with this word in its name")
    parser.add_argument("--skip", help="not the targets with this word in their names")
    parser.add_argument("--batch", type=int, default=250, help="inputs of a target in a row (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.log")
    args = parser.parse_args(arguments)
    if args.inputs < 1 or args.batch < 1:
        raise UserError("--inputs and --batch are 1 or more")
    import torch

    torch.set_num_threads(1)
    log = args.out.with_suffix(".log").open("w", encoding="utf-8") if args.out else None

    def say(line: str) -> None:
        print(line, flush=True)
        if log:
            print(line, file=log, flush=True)

    with tempfile.TemporaryDirectory(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        run, model = train_run(Path(root)), save_model(Path(root) / "model")
        folder = Path(root) / "case"
        folder.mkdir()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        targets = [
            t
            for t in make_targets(run, model)
            if (args.only or "") in t.name and not (args.skip and args.skip in t.name)
        ]
        total = sum(t.share for t in targets)
        left = {t.name: max(1, round(args.inputs * t.share / total)) for t in targets}
        wanted, done, batch, started, shown = sum(left.values()), 0, 0, time.monotonic(), 0.0
        findings: list[Finding] = []
        known: set[str] = set()
        say(f"{wanted:,} inputs, seed {args.seed}: " + ", ".join(f"{name} {n:,}" for name, n in left.items()))
        while any(left.values()):
            for target in targets:
                count = min(left[target.name], max(1, round(args.batch * target.share / total * len(targets))))
                if not count:
                    continue
                found = fuzz(target, count, args.seed * 1_000_003 + batch, folder, known)
                batch += 1
                left[target.name] -= count
                done = sum(sum(t.outcomes.values()) for t in targets)
                if found:
                    findings.append(found)
                    say(
                        f"FINDING in {found.target}: {found.place}\n  {found.error}\n  input: {found.case}".replace(
                            root, "FOLDER"
                        )
                    )
                seconds = time.monotonic() - started
                if seconds - shown > 15:
                    shown, rate = seconds, done / seconds
                    say(
                        f"{done:,} inputs, {rate:,.0f} per second, {len(findings)} findings, "
                        f"{sum(left.values()) / rate:,.0f} s left"
                    )
        seconds = time.monotonic() - started
        outcomes = {t.name: dict(t.outcomes) for t in targets}
        say(
            f"{done:,} inputs in {seconds:,.0f} s, {done / seconds:,.0f} per second, {len(findings)} findings\n"
            f"{json.dumps(outcomes, indent=1)}"
        )
        if args.out:
            record = {"inputs": done, "seed": args.seed, "seconds": round(seconds, 1), "outcomes": outcomes,
                      "findings": [{**vars(f), "case": f.case.replace(root, "FOLDER")} for f in findings]}  # fmt: skip
            args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(main)())
