"""List the corpora of the catalog: description, license, and the folder in which each is expected.

python -m dataset_utils [--data_dir ROOT] [--markdown]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataset_utils.catalog import DATASETS
from dataset_utils.options import DataOptions
from dataset_utils.registry import missing_files_message
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error

HEADS = ("name", "texts", "kind", "length", "license", "where")


def rows(data_dir: str | None = None, places: bool = True) -> list[tuple[str, ...]]:
    """A row per corpus. length: tokens of text (and source) in published runs. places: mark those on this disk."""
    table: list[tuple[str, ...]] = []
    for name, spec in DATASETS.items():
        length = f"{spec.max_source_tokens} -> {spec.max_tokens}" if spec.source else str(spec.max_tokens)
        where = f"{spec.folders[0]}/"
        if places:
            where += f" ({_place(name, data_dir)})"
        table.append((name, spec.description, spec.kind, length, spec.license, where))
    return table


def _place(name: str, data_dir: str | None) -> str:
    try:
        if missing_files_message(DataOptions(dataset_name=name, data_dir=data_dir)) is None:
            return "here"
    except UserError:  # two files for one split
        return "here, in two files of a split"
    return "from the hub" if DATASETS[name].hub else "absent"


def plain(table: Sequence[tuple[str, ...]]) -> str:
    """The table as aligned plain text."""
    lines = [HEADS, *table]
    widths = [max(len(row[i]) for row in lines) for i in range(len(HEADS))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in lines)


def markdown(table: Sequence[tuple[str, ...]]) -> str:
    """The table of docs/usage.md."""
    lines = [HEADS, ("---",) * len(HEADS), *((f"`{row[0]}`", *row[1:]) for row in table)]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dataset_utils", description="List the corpora of the catalog.")
    parser.add_argument("--data_dir", type=Path, help="folder of the corpora (default: datasets/)")
    parser.add_argument("--markdown", action="store_true", help="as in docs/usage.md, without what is on this disk")
    args = parser.parse_args(argv)
    if args.markdown:
        print(markdown(rows(places=False)))
    else:
        print(plain(rows(str(args.data_dir) if args.data_dir else None)))
        print("\n--dataset_name takes one, or several joined by '+', or a hub id (org/name)")


if __name__ == "__main__":
    raise SystemExit(main())
