"""One phase in its process.

python -m benchmarks.gpu_session.run_phase MODULE --output_dir DIR --work_dir DIR --scale paper --seconds 60
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

LEFT_OUT, FAILED = 77, 1  # exit codes; 77 as in Automake's test programs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args(argv)

    from benchmarks.gpu_session.report import LeftOut, Report
    from benchmarks.gpu_session.scales import SCALES, Setting
    from utils.distributed import pick_device

    faulthandler.register(signal.SIGTERM, chain=True)  # at the limit: the log then says where it was
    name = args.module.rpartition(".")[2]
    report = Report(args.output_dir / "phases" / f"{name}.jsonl")
    setting = Setting(SCALES[args.scale], pick_device("auto"), args.output_dir, args.work_dir, args.seconds)
    try:
        import_module(args.module).run(setting, report)
    except LeftOut as reason:
        report.note(f"left out: {reason}")
        return LEFT_OUT
    return FAILED if report.failed else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the seconds that libraries take to end; all files are closed
