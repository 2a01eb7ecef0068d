"""The first three texts of every system in the records of the study, as a page: docs/real-text-samples.md.

    python benchmarks/first_texts.py            # write the page
    python benchmarks/first_texts.py --check    # say whether it is up to date

The texts are the first lines of the files samples-*.txt, the order in which they were sampled.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.real_text_rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
RECORDS, PAGE = ROOT / "benchmarks" / "records", ROOT / "docs" / "real-text-samples.md"
SHOWN = 3
OTHER_SYSTEMS = {  # systems whose samples have a name that is no row of real_text.py
    "guided-2": "the recipe, guidance 2",
    "guided-3": "the recipe, guidance 3",
    "recipe-no-source-dropout": "the recipe, its decoder trained with all sources",
    "recipe-scratch-94": "the recipe with nothing pretrained, top-p .94",
    "recipe-source-dropout": "the recipe, half of the sources hidden in training",
    "recipe-states-not-adapted": "the recipe without an encoder, before its decoder is adapted",
}
LEFT_OUT = ("2026-11-29_compare_flickr30k_cpu",)  # a comparison of other systems, with a page of its own
INTRODUCTION = """# What the systems of the study write

The first three texts of every system in the [study](real-text-study.md), not chosen; the files `samples-*.txt` of each
record have all of them, most of them 1,000. Of pairs they are for the first sources of the test set. Written by
`python benchmarks/first_texts.py`.
"""


def title(record: Path) -> str:
    """The heading of a record."""
    return (record / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def system(file: Path) -> str:
    """In words, the system that wrote a file of samples. Raises KeyError for one that has no description."""
    name = file.stem.removeprefix("samples-")
    return OTHER_SYSTEMS.get(name) or ROWS[name].what


def in_study(record: Path) -> bool:
    """Whether a record is one of benchmarks/real_text.py."""
    command = record / "command"
    if record.name in LEFT_OUT or not command.is_file() or not list(record.glob("samples-*.txt")):
        return False
    return "real_text.py" in command.read_text(encoding="utf-8")


def first_texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [_escaped(line.strip()) for line, _ in zip(lines, range(SHOWN), strict=False)]


def _escaped(text: str) -> str:
    """A text as Markdown shows it, character by character."""
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", text)


def page() -> str:
    parts = [INTRODUCTION]
    for record in sorted(filter(in_study, RECORDS.iterdir())):
        lines = [f"## {title(record)}", "", f"[Record](../benchmarks/records/{record.name}).", ""]
        for file in sorted(record.glob("samples-*.txt")):
            lines += [f"**{system(file)}**", "", *(f"- {text}" for text in first_texts(file)), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/real-text-samples.md from the samples of the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not up to date")
    if parser.parse_args().check:
        is_current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print(f"{PAGE.relative_to(ROOT)}: {'up to date' if is_current else 'run python benchmarks/first_texts.py'}")
        return 0 if is_current else 1
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
