"""Variations of texts, or what lies between two, by a trained run.

    python -m pipelines.rewrite --run runs/quickstart/diffusion --text "Felix ran to the sea." --num_samples 3
    python -m pipelines.rewrite --run runs/ag_news/diffusion --text_file news.txt --class_id sports --strength 0.8
    python -m pipelines.rewrite --run runs/quickstart/diffusion --text "Felix ran to the sea." --to "Anna sat in town."

A text is noised to a time, --strength, and denoised again: a little of it changes at one half, all of it at 1. With
--to the texts lead from one to the other, --num_samples of them, both ends included; with --invert by way of the noise
that each is made of, so that the ends are the two texts. One line a sample goes to standard output; of several texts
each line begins with its text and a tab.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.flags.run_commands import parse_known, refuse_decoding, run_parser, texts_of, with_decoding, with_texts
from utils.errors import UserError, one_line


def parser() -> argparse.ArgumentParser:
    made = with_texts(run_parser("pipelines.rewrite", __doc__, samples=5, of="texts for each text"), "to rewrite")
    made.add_argument("--to", help="a text to go to from the one of --text")
    made.add_argument("--invert", action="store_true", help="with --to: nothing is noised; ends come back as they are")
    made.add_argument("--strength", type=float, help="time in (0, 1] (default 0.7; with --to 0.5)")
    made.add_argument("--class_id", help="class to rewrite towards, by name or number, of a class-conditional run")
    return with_decoding(made)


@one_line
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    texts = texts_of(given, "rewrite")
    if given.to is not None and (len(texts) > 1 or given.class_id is not None):
        raise UserError("--to leads from one text to another: give one --text, and no --class_id")
    if given.invert and (given.to is None or given.strength is not None):
        raise UserError("--invert leads from one text to another without added noise: give --to, and no --strength")
    from evaluation.report import one_line as plain
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipeline = TextDiffusionPipeline.from_run(given.run, device=given.device, flags=others)
    decoding = given.decoding or pipeline.decoding or "greedy"
    refuse_decoding(decoding, pipeline.generator.space.trainable)
    how = {"seed": given.seed, "decoding": decoding}
    how |= {} if given.strength is None else {"strength": given.strength}
    if given.to is None:
        rows = pipeline.vary(texts, given.num_samples, class_id=given.class_id, **how)
    else:
        rows = [pipeline.interpolate(texts[0], given.to, given.num_samples, invert=given.invert, **how)]
    for text, row in zip(texts, rows, strict=True):
        for written in row:
            sys.stdout.write((f"{plain(text)}\t" if len(texts) > 1 else "") + plain(written) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
