"""Train a tokenizer on files, into a folder for --vocab.

    python -m latent_models.tokenizers train-word-level datasets/simple/simple-train.txt --output_dir tokenizers/simple
    python -m latent_models.tokenizers train-byte-level train.jsonl valid.jsonl --output_dir tokenizers/mine

Files may be .txt, .jsonl, .csv, .tsv or .parquet; texts and sources are both read. Seconds for a million words.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from latent_models.tokenizers.options import TokenizerOptions
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error

KINDS = {"train-word-level": "word-level", "train-byte-level": "byte-level"}
DEFAULTS = TokenizerOptions()


def parser() -> argparse.ArgumentParser:
    """Flags in their published spellings; --no-X turns off a flag that is on by default."""
    made = OneLineParser(
        prog="python -m latent_models.tokenizers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = made.add_subparsers(dest="kind", required=True)
    for command, kind in KINDS.items():
        one = kinds.add_parser(command, help=f"a {kind} tokenizer", allow_abbrev=False)
        one.add_argument("files", nargs="+", type=Path, metavar="FILE")
        one.add_argument("--output_dir", type=Path, help=f"default: {kind}-tokenizer beside the first file")
        one.add_argument("--vocab_size", type=int, default=DEFAULTS.vocab_size, help="tokens (default %(default)s)")
        one.add_argument("--min_frequency", type=int, default=DEFAULTS.vocab_min_frequency, help="default %(default)s")
        one.add_argument("--max_length", type=int, default=512, help="longest text in tokens (default %(default)s)")
        one.add_argument("--text_column", help="column of the text; found by its name if unset")
        for flag in ("lowercase", "strip_accents", "individual_digits"):
            default = flag == "individual_digits" and kind == "word-level"
            one.add_argument(
                f"--{flag}", default=default, action=argparse.BooleanOptionalAction, help="default %(default)s"
            )
    return made


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    """Train, save, and print the rate of unknown words in the files, and the share of texts that come back."""
    given = parser().parse_args(arguments)
    from dataset_utils.columns import Columns
    from dataset_utils.raw_split import collect_rows
    from dataset_utils.round_trip import format_round_trips, round_trip
    from dataset_utils.user_files import read_rows
    from latent_models.tokenizers.from_flags import unknown_rate
    from latent_models.tokenizers.training import TokenizerTraining, train_tokenizer

    for flag in ("max_length", "min_frequency"):
        if getattr(given, flag) < 1:
            raise UserError(f"--{flag} {getattr(given, flag)} is too small: give 1 or more")
    folder = given.output_dir or given.files[0].parent / f"{KINDS[given.kind]}-tokenizer"
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty, and nothing is overwritten: give another --output_dir")
    columns = Columns(text=given.text_column, guess=True)
    texts: list[str] = []
    for file in given.files:
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        split = collect_rows(read_rows(file, columns), columns, str(file))
        texts += split.texts + (split.sources or [])
    options = TokenizerTraining(
        given.vocab_size, given.min_frequency, given.lowercase, given.strip_accents, given.individual_digits
    )
    tokenizer = train_tokenizer(texts, KINDS[given.kind], options, given.max_length)
    tokenizer.save_pretrained(folder)
    unknown = 100 * unknown_rate(tokenizer, texts)
    print(f"{folder}: {len(tokenizer):,} tokens from {len(texts):,} texts, {unknown:.1f} % of their words unknown")
    print("\n".join(format_round_trips({"the files": round_trip(tokenizer, texts).as_dict()})))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
