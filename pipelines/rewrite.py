"""Variations of texts, an interpolation between two texts, or an edit by latent arithmetic, with a trained run.

    python -m pipelines.rewrite runs/quickstart/diffusion --text "Felix ran to the sea." -n 3
    python -m pipelines.rewrite runs/ag_news/diffusion --text_file news.txt --class_id sports --guidance 2
    python -m pipelines.rewrite runs/quickstart/diffusion --text "Felix ran to the sea." --to "Anna sat in town."
    python -m pipelines.rewrite runs/captions/diffusion --text "A man rides a horse." --remove "A man." --add "A woman."
    python -m pipelines.rewrite runs/qqp --source "How do I learn to swim?" --text "What is the way to swim?"

A text is noised to time --strength and denoised again (SDEdit): at 0.5 a little of it changes, at 1 all of it. --to
interpolates between two texts, in --num_samples texts, both ends included; with --invert between the noises that DDIM
inversion finds for them, so that the ends are the two texts. --add and --remove move latents by the difference of
their texts (of the means, if repeated), --edit_weight times, before the noise. The samples go to standard output, one
per line; with several texts each line begins with its text and a tab. Many texts are rewritten a part at a time, each
of which is written as soon as it is done. A run on pairs needs the source of each text: --source for all of them, or
repeated, or --source_file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipelines.cli.run_arguments import (
    add_decoding_argument,
    add_guidance_argument,
    add_source_arguments,
    add_text_arguments,
    check_no_decoding,
    guidance_as_typed,
    parse_known,
    read_sources,
    read_texts,
    run_parser,
)
from utils.errors import UserError, exit_on_user_error


def parser() -> argparse.ArgumentParser:
    made = add_text_arguments(
        run_parser("pipelines.rewrite", __doc__, samples=5, of="number of variations of each text"), "to rewrite"
    )
    made.add_argument("--to", help="second text of an interpolation")
    made.add_argument(
        "--invert", action="store_true", help="with --to: interpolate by DDIM inversion instead of --strength"
    )
    made.add_argument("--add", action="append", metavar="TEXT", help="text with what an edit adds; may be repeated")
    made.add_argument("--remove", action="append", metavar="TEXT", help="text with what it removes; may be repeated")
    made.add_argument("--edit_weight", type=float, help="with --add and --remove: how far to move (default 1)")
    made.add_argument(
        "--strength",
        type=float,
        help="time in (0, 1] to which texts are noised (default 0.7; with --to 0.5, with --add 0.3)",
    )
    made.add_argument("--class_id", help="class of the variations, by name or number (class-conditional runs)")
    return add_guidance_argument(add_decoding_argument(add_source_arguments(made)))


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    texts = read_texts(given, "rewrite")
    if given.to is not None and (len(texts) > 1 or given.class_id is not None):
        raise UserError("--to interpolates between two texts: give one --text, and no --class_id")
    if given.to is not None and given.num_samples < 2:
        raise UserError("--num_samples 1 is no interpolation: give 2 or more, both texts included")
    sources = read_sources(given, texts)
    if given.guidance not in (None, 1) and given.class_id is None and sources is None:
        raise UserError(f"--guidance {given.guidance:g} needs a class: add --class_id, or leave --guidance out")
    if given.invert and (given.to is None or given.strength is not None):
        raise UserError("--invert interpolates without added noise: give --to, and no --strength")
    if (given.add is None) != (given.remove is None) or (given.add is None and given.edit_weight is not None):
        raise UserError("an edit needs a text with what it adds and one with what it removes: give --add and --remove")
    if given.add is not None and given.to is not None:
        raise UserError("--to interpolates, and --add edits: give one of them")
    from pipelines.text_diffusion import TextDiffusionPipeline

    with guidance_as_typed(given):
        pipeline = TextDiffusionPipeline.from_pretrained(given.run, device=given.device, argv=others)
    decoding = given.decoding or pipeline.decoding or "greedy"
    check_no_decoding(decoding, not pipeline.generator.space.has_text_decoder)
    options = {"seed": given.seed, "decoding": decoding}
    options |= {} if given.strength is None else {"strength": given.strength}
    if given.to is None:
        options |= {"source": sources, "class_id": given.class_id, "on_rows": Lines(texts)}
    if given.add is not None:
        options |= {} if given.edit_weight is None else {"weight": given.edit_weight}
        pipeline.edit(texts, given.num_samples, add=given.add, remove=given.remove, **options)
    elif given.to is None:
        pipeline.variations(texts, given.num_samples, **options)
    else:
        options |= {"invert": given.invert, "source": None if sources is None else sources[0]}
        Lines(texts)([pipeline.interpolate(texts[0], given.to, given.num_samples, **options)])
    return 0


class Lines:
    """Writes rows of samples to standard output, a row for each text in turn."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.written = texts, 0  # number of texts whose rows were written

    def __call__(self, rows: Sequence[Sequence[str]]) -> None:
        from utils.terminal import single_line

        for text, row in zip(self.texts[self.written :], rows, strict=False):
            prefix = f"{single_line(text)}\t" if len(self.texts) > 1 else ""
            sys.stdout.writelines(f"{prefix}{single_line(sample)}\n" for sample in row)
        self.written += len(rows)
        sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
