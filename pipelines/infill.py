"""Fill the blanks of texts with a trained run.

    python -m pipelines.infill --run runs/simple --text "The ___ apple is ___." --num_samples 5
    python -m pipelines.infill --run runs/simple --text_file blanks.txt --sampler dpmpp --sampling_timesteps 20
    python -m pipelines.infill --run runs/qqp --source "Where is it?" --text "It is ___."

___ and [blank] stand for one token, [blank:3] for three. The given text stays as typed. The samples go to standard
output, one per line; with several texts each line begins with its text and a tab.
"""

from __future__ import annotations

import argparse
import re
import sys

from pipelines.cli.run_arguments import (
    DECODING_FLAGS,
    add_source_arguments,
    add_text_arguments,
    parse_known,
    read_sources,
    read_texts,
    run_parser,
)
from utils.cli.words import flag_names
from utils.errors import UserError, exit_on_user_error
from utils.terminal import printable, single_line

LINE_ENDS = re.compile(r"[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]")


def parser() -> argparse.ArgumentParser:
    made = run_parser("pipelines.infill", __doc__, samples=5, of="number of versions of each text")
    made.add_argument(
        "--strength",
        type=float,
        help="runs with a language model: how far the given text is noised before its blanks are filled, in (0, 1] "
        "(default 0.5)",
    )
    return add_source_arguments(add_text_arguments(made, "with blanks"))


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    texts = read_texts(given, "fill")
    sources = read_sources(given, texts)
    typed = flag_names(others)
    if unused := sorted(typed & {"decoding", *DECODING_FLAGS}):
        raise UserError(f"--{unused[0]} changes nothing here: given words are forced in a beam search: leave it out")
    if "cls_free_guidance" in typed and sources is None:
        raise UserError("--cls_free_guidance needs a source here: add --source, or leave it out")
    from pipelines.data.tokens import tokenizer_of
    from pipelines.sampling.blanks import unknown_words
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipeline = TextDiffusionPipeline.from_pretrained(given.run, device=given.device, argv=others)
    options = {"source": sources, "seed": given.seed, "strength": given.strength}
    found = pipeline.infill(texts, given.num_samples, **options)
    if words := unknown_words(tokenizer_of(pipeline.generator.space.space), texts):
        shown = single_line(", ".join(words[:5])) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
        print(f"note: the run does not know {shown}: they stay as typed, but guide no blank", file=sys.stderr)
    for text, samples in zip(texts, found, strict=True):
        for sample in samples:
            prefix = f"{single_line(text)}\t" if len(texts) > 1 else ""
            # blank for blank, so that the given text stays as typed
            sys.stdout.write(prefix + printable(LINE_ENDS.sub(" ", sample)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
