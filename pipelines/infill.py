"""Fill the blanks of texts with a trained run of token embeddings.

    python -m pipelines.infill --run runs/simple --text "The ___ apple is ___." --num_samples 5
    python -m pipelines.infill --run runs/simple --text_file blanks.txt --sampler dpmpp --sampling_timesteps 20

___ and [blank] stand for one token, [blank:3] for three. The samples go to standard output, one per line; with several
texts each line begins with its text and a tab.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.cli.run_arguments import add_text_arguments, parse_known, read_texts, run_parser
from utils.errors import exit_on_user_error


def parser() -> argparse.ArgumentParser:
    made = run_parser("pipelines.infill", __doc__, samples=5, of="number of versions of each text")
    return add_text_arguments(made, "with blanks")


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    texts = read_texts(given, "fill")
    from evaluation.report import single_line
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipeline = TextDiffusionPipeline.from_pretrained(given.run, device=given.device, argv=others)
    for text, samples in zip(texts, pipeline.infill(texts, given.num_samples, seed=given.seed), strict=True):
        for sample in samples:
            prefix = f"{single_line(text)}\t" if len(texts) > 1 else ""
            sys.stdout.write(prefix + single_line(sample) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
