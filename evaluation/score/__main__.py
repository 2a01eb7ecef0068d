"""Score texts of any system with all metrics of this project.

    python -m evaluation.score --samples samples.txt --references valid.txt --train train.txt --json scores.json

Files hold one text per line (.txt), or objects (.jsonl, .json, .csv, ...) with a text under a usual name: text,
sample, reference, target, source, candidates. Several files of samples are several seeds of one system: their scores
are averaged. With --sources the three files go line by line, and each sample is compared with its reference.
Perplexity and MAUVE need a judge: --scorer, --mauve_encoder (docs/judges.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from evaluation.options import PairOptions
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error

TEXT = ("text", "sentence", "story", "caption")
KEYS = {  # flag -> names of the column with the text, in order of precedence
    "samples": ("candidates", "sample", "prediction", "pred", "generated", "output", *TEXT),
    "references": ("references", "reference", "target", "trg", "tgt", *TEXT),
    "train": ("target", "trg", "tgt", *TEXT),
    "sources": ("source", "src", "input", *TEXT),
}
BLEU_TOKENIZERS = next(f.metadata["choices"] for f in fields(PairOptions) if f.name == "bleu_tokenizer")
Texts = list[list[str]]  # of each row its texts: several candidates or references, else one


@dataclass(frozen=True)
class TextFile:
    """The texts of a file, and the lines on which they stand."""

    path: Path
    rows: Texts
    lines: list[int]

    def first(self) -> list[str]:
        return [row[0] for row in self.rows]

    def record(self) -> dict[str, Any]:
        """Return what the protocol says of it: no path, which belongs to one machine."""
        digest = sha256(json.dumps(self.rows).encode()).hexdigest()
        return {"name": self.path.name, "texts": len(self.rows), "sha256": digest}


def parser() -> argparse.ArgumentParser:
    made = OneLineParser(
        prog="python -m evaluation.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--samples", type=Path, nargs="+", required=True, metavar="FILE", help="texts to score; one file per seed")
    add(
        "--references",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="real texts; one file, or one a seed",
    )
    add("--train", type=Path, metavar="FILE", help="training texts: for memorization, and for MAUVE between real texts")
    add("--sources", type=Path, metavar="FILE", help="source texts: samples and references belong to them line by "
        "line; lines of one source share their references")  # fmt: skip
    add("--scorer", metavar="MODEL", help="causal language model, a folder or a hub id; none for no scorer (default: "
        "smollm2-135m, if python -m latent_models.pretrained has made it)")  # fmt: skip
    add("--mauve_encoder", metavar="MODEL", help="sentence encoder, a folder or a hub id; none for none (default: "
        "minilm-l6, if python -m latent_models.pretrained has made it)")  # fmt: skip
    add("--split", choices=("val", "test"), default="val", help="how keys name the references (default: %(default)s)")
    add("--bleu_tokenizer", choices=BLEU_TOKENIZERS, metavar="NAME", help="of sacreBLEU, with --sources (default: 13a)")
    add("--bertscore_model", metavar="MODEL", help="encoder of BERTScore, with --sources (default: no BERTScore)")
    add("--json", type=Path, metavar="FILE", help="also write all numbers and their protocol to this file")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.json is not None and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder: name a file in it")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # an error now rather than after minutes
    for flag in ("bleu_tokenizer", "bertscore_model"):
        if getattr(args, flag) and args.sources is None:
            raise UserError(f"--{flag} compares each sample with its reference: add --sources")
    samples = [read(path, "samples") for path in args.samples]
    references = [read(path, "references") for path in args.references]
    train = read(args.train, "train") if args.train else None
    sources = read(args.sources, "sources") if args.sources else None
    check_files(samples, references, sources)
    fewest = min(len(file.rows) for file in references)
    if fewest < len(samples[0].rows):
        print(f"note: {fewest} references for {len(samples[0].rows)} samples: MAUVE and linear_auc compare {fewest} of "
              "each", file=sys.stderr)  # fmt: skip

    from evaluation import report

    result = score(args, samples, references, train, sources)
    files: dict[str, list[TextFile | None]]
    files = {"samples": [*samples], "references": [*references], "train": [train], "sources": [sources]}
    result["protocol"] |= {"files": {flag: [f.record() for f in given if f] for flag, given in files.items()}}
    print(report.table(result, f"{len(samples[0].rows)} samples"))
    if args.json is not None:
        from utils.run_folder import write_json

        write_json(args.json, report.nan_to_none(result))
        print(f"written to {args.json}")
    return 0


def score(
    args: argparse.Namespace,
    samples: list[TextFile],
    references: list[TextFile],
    train: TextFile | None,
    sources: TextFile | None,
) -> dict[str, Any]:
    """Load the judges, and compute all metrics."""
    import torch

    from evaluation import encoders, scorers
    from evaluation.overlap import one_of_each
    from evaluation.score.scoring import SEEDS_FROM, Judges, score_pairs, score_sets
    from utils.local_models import find_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides: dict[str, tuple[str, Callable[..., Any]]]
    sides = {"scorer": ("smollm2-135m", scorers.load), "mauve_encoder": ("minilm-l6", encoders.load)}
    judges: dict[str, Any] = {}
    for flag, (default, load) in sides.items():
        source = getattr(args, flag) or find_model(default)
        judges[flag] = None if source is None or str(source).lower() == "none" else load(source, device=device)
        if source is None:
            advice = f"python -m latent_models.pretrained {default} makes one"
            print(f"note: no --{flag}: its metrics are left out ({advice})", file=sys.stderr)
    pair_options: dict[str, Any] = {"device": device, "bertscore_model": args.bertscore_model}
    if args.bleu_tokenizer:
        pair_options["tokenizer"] = args.bleu_tokenizer
    given = Judges(judges["scorer"], judges["mauve_encoder"], train.first() if train else (), args.split, pair_options)
    if sources is not None:
        return score_pairs([f.rows for f in samples], [f.rows for f in references], given, sources.first())
    drawn = [one_of_each(file.rows, SEEDS_FROM + i) for i, file in enumerate(references)]  # the first may be of a kind
    return score_sets([f.first() for f in samples], drawn, given)


def read(path: Path, flag: str) -> TextFile:
    """Read the texts of a file. Raises UserError, with file and line, for anything that is no text.

    A sample may be empty, which is counted; a reference, a source and a training text may not.
    """
    where = f"--{flag} {path}"
    if not path.exists():
        raise UserError(f"{where}: there is no such file: check the path")
    if path.is_dir():
        raise UserError(f"{where} is a folder: name a file in it")
    rows: Texts = []
    lines: list[int] = []
    for number, row in _rows(path):
        rows.append(_texts(row, path, number, flag))
        lines.append(number)
    empty = [number for number, row in zip(lines, rows, strict=True) if not all(text.strip() for text in row)]
    if empty and flag != "samples":
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"{where}, line {empty[0]} is empty{more}: remove the line, and its partners in other files")
    if len(rows) < 2:
        raise UserError(f"{where} holds {'one text' if rows else 'no text'}: sets of texts are compared: give more")
    if len(empty) == len(rows):
        raise UserError(f"{where}: every text is empty: there is nothing to score")
    if empty:
        print(f"note: {path.name}: {len(empty)} of {len(rows)} samples are empty, the first on line {empty[0]}; "
              "they count as empty texts", file=sys.stderr)  # fmt: skip
    return TextFile(path, rows, lines)


def _rows(path: Path) -> Any:
    """Yield (line, row) of a file; a .json file may also hold one list of texts, as evaluations of runs write it."""
    from dataset_utils import readers

    if path.suffix.lower() == ".json" and path.is_file():
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            value = None  # the reader reports what is wrong
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return [(i, {"text": one}) for i, one in enumerate(value, start=1)]
    return readers.by_suffix(path)(path)


def _texts(row: dict[str, Any], path: Path, number: int, flag: str) -> list[str]:
    """Return the text or the texts of a row."""
    key = next((key for key in KEYS[flag] if row.get(key) is not None), None)
    if key is None:
        found = ", ".join(map(str, list(row)[:6])) or "nothing"
        raise UserError(f"--{flag} {path}, line {number}: none of {', '.join(KEYS[flag])} is there, only {found}: "
                        "name the text one of these")  # fmt: skip
    value = row[key]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"--{flag} {path}, line {number}: {key} is not a text: give a text, or a list of texts")
    return texts


def check_files(samples: list[TextFile], references: list[TextFile], sources: TextFile | None) -> None:
    """Raise UserError if the files do not belong together."""
    if len(references) not in (1, len(samples)):
        raise UserError(f"--references: {len(references)} files for {len(samples)} files of samples: give one file for "
                        "all, or one for each")  # fmt: skip
    if sources is None:
        return
    for file in (*samples, *references):
        if len(file.rows) != len(sources.rows):
            raise UserError(f"{file.path} holds {len(file.rows)} texts, and --sources {sources.path} "
                            f"{len(sources.rows)}: each source needs one sample and one reference")  # fmt: skip
    for file in samples:
        width = len(file.rows[0])
        other = next((n for n, row in zip(file.lines, file.rows, strict=True) if len(row) != width), None)
        if other is not None:
            raise UserError(f"--samples {file.path}, line {other}: another number of candidates than on line "
                            f"{file.lines[0]} ({width}): give every source as many")  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
