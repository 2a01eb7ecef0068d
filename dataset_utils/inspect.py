"""What a corpus holds, before anything is trained: the survey of --dry_run as a program of its own.

    python -m dataset_utils.inspect --train_file stories.jsonl [--valid_file F] [--tokenizer T] [--json]

It prints the files, the columns that are used and those that are not, what happened to rows, the splits, classes with
counts, lengths, duplicates within and across splits, scripts, and three texts of each split. With a tokenizer also
lengths in tokens, the share of truncated texts, and the share of texts that the tokenizer brings back unchanged.
--json prints all of it as one JSON object on standard output. A corpus that is refused ends with exit code 2 and one
line on standard error, as in every training program.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.corpus_stats import compute_corpus_stats, format_table, round_trip_lines
from dataset_utils.options import DataOptions
from dataset_utils.splits import Split
from dataset_utils.text_stats import evenly_spaced, lengths, script_shares
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error, refuse_unreadable
from utils.terminal import escape_unencodable, single_line

NUM_EXAMPLES = 3
_SHOWN = 200  # characters of an example that are printed; JSON has all of them


def inspect_corpus(
    corpus: Corpus, tokenizer: Any = None, max_length: int | None = None, num_examples: int = NUM_EXAMPLES
) -> dict[str, Any]:
    """All that the program prints, for JSON. tokenizer, max_length: None leaves out what is counted in tokens.

    splits.<name>: num_texts, examples (texts), source_examples, num_sources (different ones), classes (label -> rows),
    words and characters (percentiles of lengths), scripts (shares of letters), and the figures of compute_corpus_stats.
    """
    stats = compute_corpus_stats(corpus, tokenizer, max_length)
    splits = {}
    for name, split in corpus.splits.items():
        texts = evenly_spaced(split.texts)
        splits[name] = {
            "num_texts": len(split),
            **_examples(split, num_examples),
            **lengths(texts),
            "scripts": script_shares(texts),
            **({"classes": _num_rows(corpus, split)} if split.labels is not None else {}),
            **({"num_sources": len(set(split.sources))} if split.sources is not None else {}),
            **stats["splits"][name],
        }
    return {
        "name": corpus.name,
        "files": corpus.files,
        "columns": corpus.columns,
        "unused_columns": list(corpus.unused_columns),
        "classes": _num_rows(corpus, *corpus.splits.values()),
        "notes": list(corpus.notes),
        "warnings": stats["warnings"],
        "splits": splits,
        "max_length": max_length,
    }


def _examples(split: Split, number: int) -> dict[str, list[str]]:
    found = {"examples": split.texts[:number]}
    return {**found, "source_examples": split.sources[:number]} if split.sources is not None else found


def _num_rows(corpus: Corpus, *splits: Split) -> dict[str, int]:
    """Label -> number of rows in these splits."""
    counts = dict.fromkeys(corpus.class_names, 0)
    for split in splits:
        for index in split.labels or ():
            counts[corpus.class_names[index]] += 1
    return counts


def format_report(found: dict[str, Any]) -> str:
    """The figures as text, safe for a terminal."""
    lines = [f"corpus: {found['name']}"]
    lines += [f"  {split}: {where}" for split, where in found["files"].items()]
    lines += ["columns: " + ", ".join(f"{role} = {column}" for role, column in found["columns"].items())]
    if found["unused_columns"]:
        lines += ["columns that are not used: " + ", ".join(map(str, found["unused_columns"]))]
    lines += [f"note: {note}" for note in found["notes"] if not note.startswith("columns: ")]  # stated above
    lines = [single_line(line) if not line.startswith("  ") else "  " + single_line(line) for line in lines]
    has_tokens = all("round_trip" in s for s in found["splits"].values())
    lines += ["", format_table(found), *(round_trip_lines(found) if has_tokens else []), ""]
    for name, s in found["splits"].items():
        words, scripts = s["words"], [f"{script} {share:.1%}" for script, share in list(s["scripts"].items())[:5]]
        lines.append(
            f"{name}: {s['num_texts']:,} texts of {words['50']} words (median; 95 % have at most {words['95']}, the "
            f"longest {words['100']}); scripts: {', '.join(scripts) or 'no letters'}"
        )
        if "num_sources" in s:
            each = f"{s['num_texts'] / max(1, s['num_sources']):,.1f}".removesuffix(".0")
            lines.append(f"  {s['num_sources']:,} different sources, with {each} texts each")
        sources = s.get("source_examples", [None] * len(s["examples"]))
        for source, text in zip(sources, s["examples"], strict=True):
            shown = [single_line(part)[:_SHOWN] for part in (source, text) if part is not None]
            lines.append("  " + " -> ".join(shown))
    return "\n".join(lines)


def load_tokenizer(source: str) -> Any:
    """A tokenizer of a folder or a hub id. UserError if there is none."""
    from transformers import AutoTokenizer

    from utils.hub import hub_kwargs

    if source.startswith(("/", ".", "~")) and not Path(source).exists():
        raise UserError(f"--tokenizer {source}: there is no such folder: check the path")
    with refuse_unreadable(f"--tokenizer {source}", "name a folder with a tokenizer, or a hub id"):
        where = {} if Path(source).is_dir() else hub_kwargs()
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Print what a corpus holds."""
    parser = OneLineParser(
        prog="python -m dataset_utils.inspect",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for f in fields(DataOptions):
        parser.add_argument(f"--{f.name}", type=int if "int" in str(f.type) else str, help=f.metadata["help"])
    parser.add_argument("--tokenizer", help="folder or hub id of a tokenizer; unset: no lengths in tokens")
    parser.add_argument("--max_seq_len", type=int, default=64, help="longest text, in tokens, with --tokenizer")
    parser.add_argument("--num_examples", type=int, default=NUM_EXAMPLES, help="texts of each split that are shown")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the report")
    args = parser.parse_args(argv)
    options = DataOptions(**{name: getattr(args, name) for name in asdict(DataOptions())})
    if args.max_seq_len < 1 or args.num_examples < 0:
        raise UserError("--max_seq_len is 1 or more, --num_examples 0 or more")
    escape_unencodable()
    corpus = registry.load(options)
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    found = inspect_corpus(corpus, tokenizer, args.max_seq_len if args.tokenizer else None, args.num_examples)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else format_report(found))


if __name__ == "__main__":
    raise SystemExit(main())
