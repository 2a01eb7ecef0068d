"""Arguments shared by the programs that use a trained run: its folder, the number of texts, seed and device.

Any other flag is passed on to the run, with the meaning that it has at an evaluation by train_text_diffusion.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dataset_utils.readers import lines
from utils.argparse_utils import OneLineParser
from utils.errors import UserError


def run_parser(program: str, description: str | None, *, samples: int, of: str) -> argparse.ArgumentParser:
    """program: name of its module. samples: default of --num_samples. of: help text of --num_samples."""
    made = OneLineParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Other flags of an evaluation may follow: train_text_diffusion.py --help lists them.",
    )
    made.add_argument("--run", required=True, metavar="FOLDER", help="folder of a run, or of a checkpoint in it")
    made.add_argument("--num_samples", type=int, default=samples, help=f"{of} (default %(default)s)")
    made.add_argument("--seed", type=int, default=42, help="seed of the samples (default %(default)s)")
    made.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default %(default)s)")
    return made


def run_folder(path: Path) -> Path:
    """Return the run folder, given it or a checkpoint in it. UserError if there is no args.json."""
    for folder in (path, *path.parents[:2]):
        if (folder / "args.json").is_file():
            return folder
    raise UserError(f"--run {path} is not a run folder: it holds no args.json")


def parse_known(parser: argparse.ArgumentParser, arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the program's own flags, with --run as a run folder; returns them and the flags for loading the run."""
    given, others = parser.parse_known_args(arguments)
    given.run = run_folder(Path(given.run))
    if given.num_samples < 1:
        raise UserError(f"--num_samples {given.num_samples} is too small: give 1 or more")
    return given, others


def add_text_arguments(made: argparse.ArgumentParser, what: str) -> argparse.ArgumentParser:
    """Add --text and --text_file; returns the parser. what: describes the texts in the help, as in "with blanks"."""
    made.add_argument("--text", action="append", default=[], help=f"text {what}; may be repeated")
    made.add_argument("--text_file", type=Path, help=f"texts {what}, one per line")
    return made


def add_decoding_argument(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --decoding; returns the parser."""
    made.add_argument("--decoding", help="beam, nucleus or greedy (default: that of --preset, else greedy)")
    return made


def check_no_decoding(decoding: str, of_embeddings: bool) -> None:
    """UserError for another strategy than greedy in a run of token embeddings, which has no language model."""
    if of_embeddings and decoding != "greedy":
        raise UserError(f"--decoding {decoding} is for language models, and embeddings have none: leave it out")


def read_texts(given: argparse.Namespace, action: str) -> list[str]:
    """The texts of --text and --text_file. action: verb for the error message.

    UserError if there is no text, or no such file.
    """
    texts = list(given.text)
    if given.text_file is not None:
        if not given.text_file.exists():
            raise UserError(f"--text_file {given.text_file}: no such file")
        texts += [line for _, line in lines(given.text_file) if line.strip()]
    if not texts:
        raise UserError(f"there is nothing to {action}: give --text or --text_file")
    return texts
