"""Fill the blanks of texts with a trained run of token embeddings.

    python -m pipelines.infill --run runs/simple --text "The ___ apple is ___." --num_samples 5
    python -m pipelines.infill --run runs/simple --text_file blanks.txt --sampler dpmpp --sampling_timesteps 20

A blank is ___ or [blank], one token, or [blank:3], three. One line a sample goes to standard output; with several texts
each line begins with its text and a tab.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.flags.run_commands import parse_known, run_parser, texts_of, with_texts
from utils.errors import one_line


def parser() -> argparse.ArgumentParser:
    made = run_parser("pipelines.infill", __doc__, samples=5, of="fillings of each text")
    return with_texts(made, "with blanks")


@one_line
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    texts = texts_of(given, "fill")
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
