"""Fill the blanks of texts with a trained run of token embeddings.

    python -m pipelines.infill --run runs/simple --text "The ___ apple is ___." --num_samples 5
    python -m pipelines.infill --run runs/simple --text_file blanks.txt --sampler dpmpp --sampling_timesteps 20

A blank is ___ or [blank], one token, or [blank:3], three. One line a sample goes to standard output; with several texts
each line begins with its text and a tab.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.flags.run_commands import parse_known, run_parser
from utils.errors import UserError, one_line


def parser() -> argparse.ArgumentParser:
    made = run_parser("pipelines.infill", __doc__, samples=5, of="fillings of each text")
    made.add_argument("--text", action="append", default=[], help="text with blanks; may be repeated")
    made.add_argument("--text_file", type=Path, help="texts with blanks, one per line")
    return made


@one_line
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    texts = list(given.text)
    if given.text_file is not None:
        if not given.text_file.is_file():
            raise UserError(f"--text_file {given.text_file}: no such file")
        texts += [line for line in given.text_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise UserError("there is nothing to fill: give --text or --text_file")
    from evaluation.report import one_line as plain
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipeline = TextDiffusionPipeline.from_run(given.run, device=given.device, flags=others)
    for text, fillings in zip(texts, pipeline.infill(texts, given.num_samples, seed=given.seed), strict=True):
        for filling in fillings:
            begin = f"{plain(text)}\t" if len(texts) > 1 else ""
            sys.stdout.write(begin + plain(filling) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
