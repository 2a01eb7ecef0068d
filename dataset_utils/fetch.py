"""Fetch a corpus from its source, check it, convert it into the form that the catalog reads.

    python -m dataset_utils.fetch qqp                   fetch and convert into datasets/qqp
    python -m dataset_utils.fetch qqp --dry_run         say what would be fetched from where
    python -m dataset_utils.fetch qqp --from FOLDER     convert files that are here already, without a network

Only https; what is fetched is compared with its SHA-256, or recorded in SHA256SUMS where none is known. A download that
broke off goes on. Corpora that are there are never written over.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dataset_utils.catalog import DATASETS, DatasetSpec
from dataset_utils.columns import nearest
from dataset_utils.convert import Rows
from dataset_utils.downloads import UPSTREAM, HubParquet, Remote, Upstream
from dataset_utils.splits import SPLITS
from utils.command_line import OneLineParser
from utils.errors import UserError, one_line
from utils.progress import Progress

SUMS = "SHA256SUMS"  # as sha256sum writes it
_BLOCK = 1 << 20  # bytes
_PATIENCE = 30.0  # seconds without a byte


# ------------------------------------------------------------------------------------------------ network


def _safe(url: str) -> bool:
    """https; or this machine itself, which tests and mirrors may use."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"))


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _safe(newurl):
            raise UserError(f"{req.full_url} leads to {newurl}, which is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, offset: int = 0) -> Any:
    if not _safe(url):
        raise UserError(f"{url} is not https: refused")
    request = urllib.request.Request(url, headers={"User-Agent": "latent-text-diffusion"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    return urllib.request.build_opener(_OnlyHttps).open(request, timeout=_PATIENCE)


def _unreachable(url: str, error: BaseException) -> UserError:
    reason = getattr(error, "reason", None) or error
    return UserError(
        f"{url} cannot be fetched ({type(error).__name__}: {reason}): run again when there is a network, or fetch the "
        "files elsewhere and give their folder with --from"
    )


def download(remote: Remote, folder: Path) -> Path:
    """The file in the folder, fetched unless it is there whole; goes on where an earlier attempt broke off."""
    target, partial = folder / remote.name, folder / (remote.name + ".partial")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _receive(remote, partial)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(remote.url, error) from None
        os.replace(partial, target)
    _check(remote, target)
    return target


def _receive(remote: Remote, partial: Path) -> None:
    offset = partial.stat().st_size if partial.exists() else 0
    try:
        answer = _open(remote.url, offset)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:  # 416: there is nothing behind what is here
            raise
        return
    with answer:
        if answer.status != 206:
            offset = 0  # the server sends all of it again
        length = answer.headers.get("Content-Length")
        whole = offset + int(length) if length else None
        with (
            partial.open("ab" if offset else "wb") as file,
            Progress(f"fetch {remote.name}", max((whole or 0) // _BLOCK, 1), start=offset // _BLOCK, unit="MiB") as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                offset += len(block)
                bar.at(offset // _BLOCK)
        if whole is not None and offset < whole:
            raise OSError(f"broke off after {offset:,} of {whole:,} bytes")


def _check(remote: Remote, path: Path) -> None:
    """Compare with the checksum that is known or was recorded; record it where there is none."""
    sums = path.with_name(SUMS)
    recorded = dict(line.split("  ", 1)[::-1] for line in sums.read_text().splitlines()) if sums.exists() else {}
    found = _sha256(path)
    wanted = remote.sha256 or recorded.get(path.name)
    if wanted and found != wanted:
        whose = "the checksum that is known" if remote.sha256 else f"that recorded in {sums}"
        raise UserError(f"{path} has SHA-256 {found}, but {whose} is {wanted}: remove it and run again")
    if path.name not in recorded:
        with sums.open("a") as file:
            file.write(f"{found}  {path.name}\n")
        if not remote.sha256:
            print(f"{path.name}: no checksum is known for it; recorded in {sums}: {found}", file=sys.stderr)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shards(hub: HubParquet) -> list[Remote]:
    """The parquet files of a repository, by the hub's index."""
    found = []
    for split in hub.splits:
        url = _index(hub, split)
        try:
            with _open(url) as answer:
                listed = json.load(answer)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise _unreachable(url, error) from None
        if not (isinstance(listed, list) and listed and all(isinstance(u, str) for u in listed)):
            raise UserError(f"{url} lists no files: the repository has moved; look for it on the hub")
        found += [Remote(f"{split}-{i:04d}.parquet", u) for i, u in enumerate(listed)]
    return found


def _index(hub: HubParquet, split: str) -> str:
    end = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{end}/api/datasets/{hub.repository}/parquet/{hub.config}/{split}"


# ------------------------------------------------------------------------------------------------ conversion


def names_of(spec: DatasetSpec) -> dict[str, str]:
    """What the converted file of each split is called."""
    return {split: spec.files[split][0] if spec.files else f"{split}.jsonl" for split in SPLITS}


def write(split_rows: Mapping[str, Rows], folder: Path, names: Mapping[str, str]) -> dict[str, int]:
    """Write every split, all of them or none: beside their names, then renamed. Returns rows by split."""
    counts = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in split_rows.items():
        counts[split] = 0
        with (folder / (names[split] + ".partial")).open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n")
                counts[split] += 1
            file.flush()
            os.fsync(file.fileno())
        if not counts[split]:
            raise UserError(
                f"nothing to write into {folder / names[split]}: the files that were given hold no {split} rows"
            )
    for split in counts:
        os.replace(folder / (names[split] + ".partial"), folder / names[split])
    return counts


def convert_folder(name: str, row: Upstream, source: Path, folder: Path) -> dict[str, int]:
    """Convert what lies in a folder, in the first of the row's forms that it has."""
    there = sorted(path.name for path in source.iterdir() if path.is_file()) if source.is_dir() else []
    for form in row.forms:
        if chosen := form.match(there):
            return write(form.convert({n: source / n for n in chosen}), folder, names_of(_spec(name, row)))
    wanted = "; or ".join(", ".join(form.patterns) for form in row.forms)
    raise UserError(f"{source} holds no form of {name} that is known: give a folder with {wanted}")


def _spec(name: str, row: Upstream) -> DatasetSpec:
    return DATASETS[row.corpus or name]


def plan(name: str, row: Upstream, folder: Path) -> str:
    """What would be fetched from where, and what would be written, in words."""
    spec = _spec(name, row)
    lines = [f"{name}: {spec.about}", f"  terms: {spec.licence}"]
    for remote in row.files:
        lines.append(f"  fetch {remote.url} as {remote.name}, SHA-256 {remote.sha256 or 'not known: will be recorded'}")
    if row.hub:
        lines += [f"  fetch the parquet files that {_index(row.hub, split)} lists" for split in row.hub.splits]
    lines += [f"  note: {row.note}"] if row.note else []
    return "\n".join([*lines, f"  write {names_of(spec)['train']} and what other splits there are into {folder}"])


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dataset_utils.fetch", description="Fetch and convert a corpus.")
    parser.add_argument("name", help=f"one of {', '.join(UPSTREAM)}")
    parser.add_argument(
        "--data_dir", type=Path, default=Path("datasets"), help="root of the data (default: %(default)s)"
    )
    parser.add_argument("--from", dest="source", type=Path, help="a folder with the upstream files: nothing is fetched")
    parser.add_argument("--dry_run", action="store_true", help="say what would be fetched from where, and stop")
    args = parser.parse_args(argv)
    if args.name not in UPSTREAM:
        raise UserError(f"nothing is known of where to fetch {args.name!r}{nearest(args.name, UPSTREAM)}: "
                        f"one of {', '.join(UPSTREAM)}")  # fmt: skip
    row = UPSTREAM[args.name]
    spec = _spec(args.name, row)
    folder = args.data_dir / spec.folders[0]
    if args.dry_run:
        print(plan(args.name, row, folder))
        return
    there = [name for name in names_of(spec).values() if (folder / name).exists()]
    if there:
        raise UserError(f"{folder / there[0]} is there already: remove it to make it anew, or name another --data_dir")
    print(f"terms of {args.name}: {spec.licence}" + (f"; {row.note}" if row.note else ""), file=sys.stderr)
    source = args.source
    if source is None:
        source = folder / "upstream"
        for remote in [*row.files, *(shards(row.hub) if row.hub else ())]:
            download(remote, source)
    counts = convert_folder(args.name, row, source, folder)
    print(f"wrote {', '.join(f'{split} {n:,}' for split, n in counts.items())} rows to {folder}")
    if args.source is None:
        print(f"what was fetched ({_mebibytes(source)} MiB) stays in {source}: remove it when you no longer need it")


def _mebibytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / _BLOCK:,.1f}"


if __name__ == "__main__":
    main()
