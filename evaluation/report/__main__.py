"""Write a report of one run, or of several beside each other, as one page.

    python -m evaluation.report runs/quickstart/diffusion
    python -m evaluation.report RUN_A RUN_B --output comparison.html

The page is one HTML file that needs no network; its charts also stand as PNG files in a folder beside it. What a run
has not recorded is left out. docs/report.md describes the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.terminal import printable


def parser() -> argparse.ArgumentParser:
    made = OneLineParser(
        prog="python -m evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    made.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="HTML file (default: report.html in the folder of the run, of several in this folder)",
    )
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    output = args.output or (args.runs[0] / "report.html" if len(args.runs) == 1 else Path("report.html"))
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it, such as {output / 'report.html'}")
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output}: a browser opens files that end in .html: name one")

    from evaluation.report.page import write_page
    from evaluation.report.run_files import read_runs

    runs = read_runs(args.runs)
    for run in runs:
        if not run.is_evaluated and not run.validation:
            advice = f"python train_text_diffusion.py --eval --resume_dir {run.folder}"
            print(printable(f"note: {run.folder} has no evaluation: {advice} makes one"), file=sys.stderr)
    page, *images = write_page(runs, output)
    size = page.stat().st_size / 1e6
    print(printable(f"report: {page} ({size:.1f} MB), and {len(images)} figures in {images[0].parent}" if images else
                    f"report: {page} ({size:.1f} MB)"))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
