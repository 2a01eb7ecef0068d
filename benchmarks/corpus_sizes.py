"""Speed and memory of reading, summarizing and tokenizing a large corpus.

    python benchmarks/corpus_sizes.py --rows 500000

It writes pairs of random sentences in each format and reads each file in a separate process, so that peaks of memory do
not mix. Prints a line per format, or JSON with --json. About two minutes a format on one core.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("jsonl", "csv", "parquet")
MIB = 1 << 20


def sentence(rng: random.Random, words: list[str]) -> str:
    return " ".join(words[int(rng.random() * len(words))] for _ in range(8 + int(rng.random() * 24)))


def write(folder: Path, rows: int, kind: str, seed: int = 0) -> Path:
    """Pairs of sentences of 8 to 31 words, from a vocabulary of 20,000 random words."""
    rng = random.Random(seed)
    words = ["".join(chr(97 + int(rng.random() * 26)) for _ in range(2 + int(rng.random() * 8))) for _ in range(20_000)]
    pairs = ((sentence(rng, words), sentence(rng, words)) for _ in range(rows))
    path = folder / f"train.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        sources, texts = zip(*pairs, strict=True)
        pyarrow.parquet.write_table(pyarrow.table({"src": sources, "trg": texts}), path)
        return path
    with path.open("w", newline="") as file:
        if kind == "csv":
            csv.writer(file).writerows([("src", "trg"), *pairs])
        else:
            file.writelines(json.dumps({"src": s, "trg": t}) + "\n" for s, t in pairs)
    return path


def measure(path: Path, max_length: int) -> dict[str, float]:
    """Seconds and peaks of memory (MiB, without that of imports) of reading, summarizing and tokenizing a file."""
    from dataset_utils.batching import tokenize
    from dataset_utils.corpus_stats import compute_corpus_stats
    from dataset_utils.options import DataOptions
    from dataset_utils.registry import load
    from latent_models.tokenizers.training import train_tokenizer

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - start

    start = 0.0
    start = peak()
    began = time.monotonic()
    corpus = load(DataOptions(train_file=str(path)))
    found = {"rows": len(corpus.train), "file_mib": path.stat().st_size / MIB}
    found |= {"read_s": time.monotonic() - began, "read_peak_mib": peak()}
    tokenizer = train_tokenizer(corpus.train.texts[:20_000], "bpe", 20_000, max_length)
    began, found["tokenizer_peak_mib"] = time.monotonic(), peak()
    compute_corpus_stats(corpus, tokenizer, max_length)
    found |= {"survey_s": time.monotonic() - began, "survey_peak_mib": peak()}
    began = time.monotonic()
    table = tokenize(tokenizer, corpus.train.texts, max_length)
    found |= {"tokenize_s": time.monotonic() - began, "tokenize_peak_mib": peak(), "table_mib": table.ids.nbytes / MIB}
    return found


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--max_seq_len", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # the process that is measured
    args = parser.parse_args(argv)
    if args.read:
        print(json.dumps(measure(args.read, args.max_seq_len)))
        return
    for kind in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), args.rows, kind)
            command = [sys.executable, __file__, "--read", str(path), "--max_seq_len", str(args.max_seq_len)]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        if args.json:
            print(json.dumps({"format": kind, **found}))
            continue
        print(
            f"{kind}: {found['rows']:,} pairs, {found['file_mib']:.0f} MiB; "
            f"read {found['rows'] / found['read_s']:,.0f} rows/s, peak {found['read_peak_mib']:.0f} MiB; "
            f"survey {found['survey_s']:.1f} s; "
            f"tokenize {found['rows'] / found['tokenize_s']:,.0f} texts/s, table {found['table_mib']:.0f} MiB, "
            f"peak {found['tokenize_peak_mib']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
