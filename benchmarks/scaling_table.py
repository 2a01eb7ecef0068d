"""The tables of training and sampling time in docs/scaling.md, from the records of benchmarks/throughput.py.

    python benchmarks/scaling_table.py [--write]

It reads every throughput.json in a folder of benchmarks/records, or one folder down, that has the cases of a recipe,
and prints the tables; --write puts them into docs/scaling.md, between the lines that name this program. A test holds
that the page has what the records say. How long: a second.

Arithmetic: texts of the published number of steps / measured texts a second, and 1,000 texts / measured texts a second.
The official code is not timed here: it computes in float32 with the encoder at every step, which is the case
"everything off", so that its time on a machine is estimated as that of this case. What its authors published, on one
A6000, stands beside.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from benchmarks.throughput_sizes import PROJECTED, SIZES
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
RECORDS = ROOT / "benchmarks" / "records"
BEGIN = "<!-- written by benchmarks/scaling_table.py -->"
END = "<!-- end of what benchmarks/scaling_table.py writes -->"
# Lovelace et al. 2023, arXiv:2212.09462: hours of the published steps and texts of a step, on one A6000
PUBLISHED = {"denoiser": (35.0, 128), "autoencoder": (12.6, 256)}
BATCHES = {"denoiser": "batch", "autoencoder": "ae_batch"}  # fields of a Size
# stage -> case -> its title: the recipe of the autoencoder is without a cache of the encoder's states, which is large
TITLES = {
    "denoiser": {"all on": "denoiser"},
    "autoencoder": {"without cache": "autoencoder", "all on": "autoencoder, cached states"},
}
# the same, 1,000 texts by beam search in 50, 100, 250 and 1,000 steps: 58 s and .57 s for each step
PUBLISHED_SAMPLING = (58.0, 0.57)
NOTE = """\
Times are projected: the texts of the published number of steps divided by the measured texts a second. The official
code was not timed here. It computes in float32 and runs the encoder at every step, as the case "everything off" does,
so the last column is its cost by the same arithmetic; in the rows of the A6000 it is what its authors published. The
size small is that of the quickstart, and its networks are not those of the paper. Cached states of the encoder
(--cache_encoder_states float16) are off by default."""


def records(folder: Path = RECORDS) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(path, contents) of the records that have the cases of a recipe, sorted by size, device and path."""
    found = []
    for path in [*folder.glob("*/throughput.json"), *folder.glob("*/*/throughput.json")]:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "slower" in record and record["rows"]:
            found.append((path, record))
    order = {"small": 0, "paper": 1}
    yield from sorted(found, key=lambda one: (order.get(one[1]["size"], 2), one[1]["device"], str(one[0])))


def rates(record: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """case -> row of a part."""
    return {row["case"]: row for row in record["rows"] if row["part"] == part}


def duration(seconds: float) -> str:
    """A time in the unit that suits it, with two or three digits."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (200 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:,.0f} days"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine(record: dict[str, Any], path: Path, page: Path = PAGE) -> str:
    cpu = record["memory"].startswith("of the process")
    name = f"{record['device']}, {record['threads']} threads" if cpu else record["device"]
    link = Path("..", *path.parent.relative_to(page.parents[1]).parts) if path.is_relative_to(page.parents[1]) else path
    return f"[{name}]({link.as_posix()})"


def training_rows(found: Iterable[tuple[Path, dict[str, Any]]]) -> Iterator[list[str]]:
    """A row for each case of TITLES that a record has."""
    for path, record in found:
        for part, steps in PROJECTED.items():
            cases, batch = rates(record, part), record["layout"][BATCHES[part]]
            # texts of all steps: where the memory of a CPU allows only a smaller batch, more of its steps hold them
            texts, off = steps * getattr(SIZES[record["size"]], BATCHES[part]), cases.get("everything off")
            for case, title in TITLES[part].items():
                if case not in cases:
                    continue
                row = cases[case]
                rate, taken = row["steps_per_second"]["median"], row["steps_per_round"] * record["rounds"]
                line = [record["size"], machine(record, path), title, number(rate), number(row["texts_per_second"])]
                line += [f"{taken:,} of {batch} texts", f"{steps:,} in {duration(texts / row['texts_per_second'])}"]
                yield [*line, duration(texts / off["texts_per_second"]) if off else "not measured"]
    for part, (hours, batch) in PUBLISHED.items():
        rate = PROJECTED[part] / (3600 * hours)
        taken = f"{PROJECTED[part]:,} in {duration(3600 * hours)}"
        yield ["paper", "one A6000, as published", part, number(rate), number(rate * batch), "", "", taken]


def sampling_rows(found: Iterable[tuple[Path, dict[str, Any]]]) -> Iterator[list[str]]:
    """A row for each way to sample or decode of each record that has its case "all on"."""
    for path, record in found:
        cases = rates(record, "sampling")
        for case, row in cases.items():
            title, _, variant = case.rpartition(", ")
            if variant != "all on":
                continue
            rate, off = row["texts_per_second"], cases.get(f"{title}, everything off")
            other = duration(1000 / off["texts_per_second"]) if off else "not measured"
            yield [record["size"], machine(record, path), title, number(rate), duration(1000 / rate), other]
    fixed, per_step = PUBLISHED_SAMPLING
    for steps in (50, 250):
        seconds = fixed + per_step * steps
        name = f"end to end, {steps} steps, beam"
        yield ["paper", "one A6000, as published", name, number(1000 / seconds), "", duration(seconds)]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(found: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """Both tables with the sentences between them."""
    training = [
        "size",
        "machine",
        "stage",
        "steps/s",
        "texts/s",
        "measured steps",
        "published number of steps",
        "everything off, as the official code",
    ]
    sampling = ["size", "machine", "what", "texts/s", "1,000 texts", "everything off, as the official code"]
    return "\n\n".join(
        [
            NOTE,
            markdown(training, training_rows(found)),
            markdown(sampling, sampling_rows(found)),
        ]
    )  # fmt: skip


def page_with(text: str, written: str) -> str:
    """The page with these tables between its two lines. UserError if it lacks the lines."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} lacks the lines {BEGIN!r} and {END!r}, between which the tables stand")
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    args = parser.parse_args(argv)
    written = tables(list(records()))
    if args.write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), written), encoding="utf-8")
    print(written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
