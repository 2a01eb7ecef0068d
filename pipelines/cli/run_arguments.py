"""Arguments shared by the programs that use a trained run: its folder, the number of texts, seed and device.

Any other flag is passed on to the run, with the meaning that it has at an evaluation by train_text_diffusion.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from dataset_utils.readers import lines
from latent_models.generation.options import DecodingOptions
from pipelines.cli.programs import DIFFUSION
from utils.argparse_utils import OneLineParser
from utils.cli.args_io import read_args
from utils.cli.flags import LARGEST, shown
from utils.cli.words import flag_names
from utils.errors import UserError, did_you_mean

MOST_SAMPLES = 10_000_000  # texts of one call are held in memory
DECODING_FLAGS = {f.name for f in fields(DecodingOptions)}
_STEP = re.compile(r"step_\d+")
FIXED = ("resume_dir", "eval", "eval_test", "gen_data", "resume_training")  # the program itself sets them


def run_parser(program: str, description: str | None, *, samples: int, of: str) -> argparse.ArgumentParser:
    """program: name of its module. samples: default of --num_samples. of: help text of --num_samples."""
    made = OneLineParser(
        prog=f"python -m {program}",
        usage=f"python -m {program} RUN [FLAGS]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Other flags of an evaluation may follow: train_text_diffusion.py --help lists them.",
    )
    made.add_argument("--run", metavar="FOLDER", help="folder of a run, or of a checkpoint in it: the same as RUN")
    made.add_argument("-n", "--num_samples", type=int, metavar="N", help=f"{of} (default {samples})")
    made.set_defaults(default_num_samples=samples)
    made.add_argument("--seed", type=int, default=42, help="seed of the samples (default %(default)s)")
    made.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default %(default)s)")
    return made


def run_folder(path: Path) -> Path:
    """Return the run folder, given it or a checkpoint in it. UserError if there is no args.json."""
    for folder in (path, *path.parents[:2]):
        if (folder / "args.json").is_file():
            return folder
    raise UserError(f"--run {path} is not a run folder: it holds no args.json")


def _checkpoint(named: Path, run: Path) -> str | None:
    """The checkpoint that a folder inside a run stands for, best or newest; None for the run itself.

    UserError for an older step: a run is sampled from its best or its newest weights.
    """
    if named.name == "best":
        return "best"
    if not _STEP.fullmatch(named.name) or named.resolve() == run.resolve():
        return None
    newest = max(path.name for path in named.parent.iterdir() if _STEP.fullmatch(path.name))
    if named.name != newest:
        raise UserError(
            f"--run {named} is no longer the newest checkpoint, which is {newest}: name {run} for that one, or "
            f"{run / 'best'} for the best, if the run keeps one"
        )
    return "newest"


def parse_known(parser: argparse.ArgumentParser, arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the program's own flags, with --run as a run folder; returns them and the flags for loading the run."""
    given, others = parser.parse_known_args(arguments)
    _take_run(given, others)
    given.num_samples_typed = given.num_samples is not None
    given.num_samples = given.num_samples if given.num_samples_typed else given.default_num_samples
    for name, value in vars(given).items():
        if isinstance(value, str) and name != "class_id":
            check_name(f"--{name}", value)
    check_range("--num_samples", given.num_samples, 1, MOST_SAMPLES)
    check_range("--seed", given.seed, -LARGEST, LARGEST)
    if getattr(given, "strength", None) is not None and not 0 < given.strength <= 1:  # also where it is nan
        raise UserError(f"--strength {given.strength:g} is no time in (0, 1]: give 0.7, or another; 1 keeps nothing")
    named, given.run = Path(given.run), run_folder(Path(given.run))
    checkpoint = _checkpoint(named, given.run)
    if checkpoint is not None and "checkpoint" not in flag_names(others):
        others += ["--checkpoint", checkpoint]
    _check_others(parser, others)
    _pass_on(given, others)
    return given, others


def _take_run(given: argparse.Namespace, others: list[str]) -> None:
    """Take the positional RUN out of the flags that are passed on: a word that is no flag's value."""
    free = [i for i, word in enumerate(others) if not word.startswith("-") and not (i and _takes_value(others[i - 1]))]
    if given.run is None and not free:
        raise UserError("the run is missing: name its folder first, or with --run; see --help")
    if len(free) > (given.run is None):
        extra = others[free[given.run is None]]
        raise UserError(f"{shown(extra)} is neither a flag nor a flag's value: one run is named, by RUN or --run")
    if given.run is None:
        given.run = others.pop(free[0])


def _takes_value(word: str) -> bool:
    """Whether a flag that is passed on takes the next word as its value."""
    name = word.removeprefix("--").replace("-", "_")
    if not word.startswith("--") or "=" in word:
        return False
    shortened = (name, name.removeprefix("no_"))  # --no_X of a flag X, or a flag such as --no_repeat_ngram_size
    named = DIFFUSION.flags.get(name) or next((f for n, f in DIFFUSION.flags.items() if n.startswith(shortened)), None)
    return named is None or named.type is not bool or name == "config"


def _pass_on(given: argparse.Namespace, others: list[str]) -> None:
    """Add what the run is loaded with: the weight of guidance, and the strategy that settings of decoding are for."""
    names = flag_names(others)
    if "guidance" in vars(given):
        if given.guidance is None:
            given.guidance = _guidance_of(others)  # one flag, two names: what needs a condition is refused alike
        elif "cls_free_guidance" in names:
            raise UserError("--guidance and --cls_free_guidance are the same: give one")
        else:
            others.append(f"--cls_free_guidance={given.guidance}")
    is_chosen = getattr(given, "decoding", None) is not None or "preset" not in names
    if "decoding" in vars(given) and names & DECODING_FLAGS and is_chosen:
        default = "nucleus" if read_args(given.run).get("text_decoder") else "greedy"  # of a causal language model
        others.append(f"--decoding={given.decoding or default}")


def _guidance_of(others: Sequence[str]) -> float | None:
    """The weight of guidance among the flags that are passed on; None without it, and for what is no number."""
    words = [*others, ""]
    for i, word in enumerate(others):
        name, equals, value = word.partition("=")
        if name == "--cls_free_guidance":
            with suppress(ValueError):
                return float(value if equals else words[i + 1])
    return None


def named_path(text: str) -> Path:
    """The path of an argument; Path("") would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty (is a variable of the shell not set?)")
    return Path(text)


def check_range(flag: str, value: int, at_least: int, at_most: int) -> None:
    """UserError for a number outside a range."""
    if not at_least <= value <= at_most:
        raise UserError(f"{flag} {shown(value)} is out of range: give {at_least} or more, and at most {at_most:,}")


def check_name(flag: str, value: str) -> None:
    """UserError for a blank argument, and for one with characters that no name contains."""
    if not value.strip():
        raise UserError(f"{flag} is empty: is a variable of the shell not set?")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"{flag} {shown(ascii(value))} is not UTF-8: rename the file or folder, or type it anew")


def _check_others(parser: argparse.ArgumentParser, others: Sequence[str]) -> None:
    """UserError for a flag that would name another run than --run, and for a misspelt flag of this program."""
    own = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    known = [*DIFFUSION.flags, *DIFFUSION.deprecated, *DIFFUSION.rejected]
    for word in others:
        name = word.removeprefix("--").partition("=")[0]
        if name in FIXED:
            raise UserError(f"--{name} is for train_text_diffusion.py: --run names the run here")
        if word.startswith("--") and not any(flag.startswith((name, name.removeprefix("no_"))) for flag in known):
            near = did_you_mean(name.replace("-", "_"), [*own, *known], "--")
            raise UserError(f"unknown flag --{shown(name)[1:-1]}{near}; --help lists the flags of this program")


def add_text_arguments(made: argparse.ArgumentParser, what: str) -> argparse.ArgumentParser:
    """Add --text and --text_file; returns the parser. what: describes the texts in the help, as in "with blanks"."""
    made.add_argument("--text", action="append", default=[], help=f"text {what}; may be repeated")
    made.add_argument("--text_file", type=named_path, help=f"texts {what}, one per line")
    return made


def add_decoding_argument(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --decoding; returns the parser."""
    made.add_argument(
        "--decoding",
        help="beam, nucleus or greedy (default: that of --preset, else "
        "greedy, or nucleus where a text decoder decodes)",
    )
    return made


def add_guidance_argument(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --guidance; returns the parser."""
    made.add_argument(
        "--guidance", type=float, metavar="W", help="weight of classifier-free guidance (default 1: unguided)"
    )
    return made


@contextmanager
def guidance_as_typed(given: argparse.Namespace) -> Iterator[None]:
    """Context manager that loads the run: a UserError about the weight of guidance names the flag that was typed."""
    try:
        yield
    except UserError as error:
        if given.guidance is None:
            raise
        raise UserError(str(error).replace("--cls_free_guidance", "--guidance")) from None


def check_no_decoding(decoding: str, of_embeddings: bool) -> None:
    """UserError for another strategy than greedy in a run of token embeddings, which has no language model."""
    if of_embeddings and decoding != "greedy":
        raise UserError(f"--decoding {decoding} is for language models, and embeddings have none: leave it out")


def add_source_arguments(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --source and --source_file, for texts of runs on pairs; returns the parser."""
    made.add_argument(
        "--source", action="append", default=[], help="runs on pairs: the source of all texts, or repeated for each"
    )
    made.add_argument("--source_file", type=named_path, help="runs on pairs: the source of each text, one per line")
    return made


def read_sources(given: argparse.Namespace, texts: Sequence[str]) -> list[str] | None:
    """The sources of --source and --source_file: one, or one for each text. None without them."""
    sources = [*given.source, *_lines_of(given.source_file, "--source_file", "source")]
    if sources and len(sources) not in (1, len(texts)):
        raise UserError(f"{len(sources)} sources for {len(texts)} texts: give one source, or one for each text")
    return sources or None


def read_texts(given: argparse.Namespace, action: str) -> list[str]:
    """The texts of --text and --text_file. action: verb for the error message.

    UserError if there is no text, or no such file.
    """
    texts = [*given.text, *_lines_of(given.text_file, "--text_file", "text")]
    if not texts:
        raise UserError(f"there is nothing to {action}: give --text or --text_file")
    return texts


def _lines_of(file: Path | None, flag: str, what: str) -> list[str]:
    """The lines of a file that are not blank; none without a file."""
    if file is None:
        return []
    if not file.exists():
        raise UserError(f"{flag} {file}: no such file")
    found = [line for _, line in lines(file) if line.strip()]
    if not found:
        raise UserError(f"{flag} {file} holds no {what}: write one per line")
    return found
