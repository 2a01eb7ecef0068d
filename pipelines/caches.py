"""List and remove the encoded corpora that runs keep on disk.

    python -m pipelines.caches list
    python -m pipelines.caches remove 3f2a 91c0           # by the beginning of a key
    python -m pipelines.caches remove --older_than 30     # days since the last use; --unfinished, --all

A cache is one corpus split under one model, tokenizer, length and dtype; all runs share it. The folder is encoded/ in
--cache_dir; --folder names that of --latent_cache_dir instead. What is removed is encoded again when a run needs it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from utils.argparse_utils import OneLineParser
from utils.cache_folder import Cache, encoded_folder, find_caches
from utils.errors import UserError, exit_on_user_error, one_line_text, user_message
from utils.terminal import printable

KEY = 12  # characters of a key in the list
DAY = 86400.0


def parser() -> argparse.ArgumentParser:
    made = OneLineParser(
        prog="python -m pipelines.caches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("command", choices=("list", "remove"))
    made.add_argument("keys", nargs="*", metavar="KEY", help="beginnings of keys, of which each fits one cache")
    made.add_argument("--cache_dir", help="folder of what runs share (default: $LATENT_DIFFUSION_CACHE, else "
                      "~/.cache/latent-text-diffusion)")  # fmt: skip
    made.add_argument("--folder", help="folder of encoded corpora, if it was named with --latent_cache_dir")
    made.add_argument("--older_than", type=float, metavar="DAYS", help="those that no run used for this many days")
    made.add_argument("--unfinished", action="store_true", help="those that no run has completed")
    made.add_argument("--all", action="store_true", help="all of them")
    return made


def select(caches: Sequence[Cache], given: argparse.Namespace) -> list[Cache]:
    """The caches that the arguments name. UserError for a key that fits none or several."""
    named = [_by_key(caches, key) for key in given.keys]
    oldest = None if given.older_than is None else time.time() - given.older_than * DAY
    return [
        cache
        for cache in caches
        if given.all
        or cache in named
        or (given.unfinished and not cache.is_complete)
        or (oldest is not None and cache.used < oldest)
    ]


def _by_key(caches: Sequence[Cache], key: str) -> Cache:
    fitting = [cache for cache in caches if cache.folder.name.startswith(key)]
    if len(fitting) != 1:
        problem = "no cache" if not fitting else f"{len(fitting)} caches"
        raise UserError(f"{problem} begin with {one_line_text(key)[:40]}: `python -m pipelines.caches list` shows keys")
    return fitting[0]


def table(caches: Sequence[Cache], folder: Path) -> str:
    """One line per cache, and their sum."""
    from utils.array_cache import format_bytes

    rows = [("key", "size", "dtype", "texts", "corpus, split", "latents", "model", "last used")]
    for cache in caches:
        about = cache.about
        of = ", ".join(str(about[name]) for name in ("corpus", "split") if about.get(name))
        rows.append(
            (
                cache.folder.name[:KEY],
                format_bytes(cache.bytes),
                str(about.get("dtype", "")),
                f"{about['texts']:,}" if isinstance(about.get("texts"), int) else "",
                of if cache.is_complete else "unfinished",
                str(about.get("latents", "")),
                Path(str(about.get("model", ""))).name,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(cache.used)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = f"{len(caches)} caches, {format_bytes(sum(cache.bytes for cache in caches))}, in {folder}"
    return printable("\n".join([*lines, total] if caches else [f"no caches in {folder}"]))


def remove(caches: Sequence[Cache]) -> int:
    """Remove caches, and say what was freed. One that is being written stays. Returns the exit code."""
    from utils.array_cache import format_bytes

    freed, code = 0, 0
    for cache in caches:
        try:
            if cache.is_being_written():
                print(f"{cache.folder.name[:KEY]} is being written by a run: it stays", file=sys.stderr)
                code = 1
                continue
            cache.remove()
        except OSError as error:
            raise UserError(f"{cache.folder} cannot be removed ({user_message(error)}): remove it by hand") from None
        freed += cache.bytes
        print(f"removed {cache.folder.name[:KEY]}, {format_bytes(cache.bytes)}")
    print(f"{format_bytes(freed)} freed")
    return code


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_intermixed_args(argv)
    if given.older_than is not None and not given.older_than >= 0:
        raise UserError(f"--older_than {given.older_than:g} is no number of days: give 0 or more")
    folder = encoded_folder(given.cache_dir, given.folder)
    if given.folder is not None and not folder.is_dir():
        raise UserError(f"--folder {folder} does not exist: name the folder of --latent_cache_dir")
    caches = find_caches(folder)
    is_selection = bool(given.keys) or given.older_than is not None or given.unfinished or given.all
    if given.command == "remove" and not is_selection:
        raise UserError("remove needs to know what: name keys, --older_than DAYS, --unfinished or --all")
    chosen = select(caches, given) if is_selection else caches
    if given.command == "remove":
        return remove(chosen)
    print(table(chosen, folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
