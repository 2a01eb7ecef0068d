"""Download a corpus, verify its checksum, and convert it into the form that the catalog reads.

    python -m dataset_utils.fetch qqp                   download and convert into datasets/qqp
    python -m dataset_utils.fetch qqp --dry_run         print what would be downloaded from where
    python -m dataset_utils.fetch qqp --from FOLDER     convert local files, without a network

Only https is used. Files are compared with their SHA-256, which is recorded in SHA256SUMS if it was unknown. An
interrupted download is resumed. Existing corpora are never overwritten.
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
from dataset_utils.convert import Rows
from dataset_utils.downloads import DOWNLOADS, Download, HubParquet, RemoteFile
from dataset_utils.splits import SPLITS
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, did_you_mean, exit_on_user_error
from utils.progress import ProgressBar

SUMS = "SHA256SUMS"  # file in the format of sha256sum
_BLOCK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without data


# ------------------------------------------------------------------------------------------------ network


def _is_safe(url: str) -> bool:
    """Whether a URL is https, or of this machine, which tests and mirrors may use."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"))


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _is_safe(newurl):
            raise UserError(f"{req.full_url} redirects to {newurl}, which is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, offset: int = 0) -> Any:
    if not _is_safe(url):
        raise UserError(f"{url} is not https: refused")
    request = urllib.request.Request(url, headers={"User-Agent": "latent-text-diffusion"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    return urllib.request.build_opener(_OnlyHttps).open(request, timeout=_TIMEOUT)


def _unreachable(url: str, error: BaseException) -> UserError:
    reason = getattr(error, "reason", None) or error
    return UserError(
        f"{url} cannot be downloaded ({type(error).__name__}: {reason}): run again with a network, or download the "
        "files elsewhere and give their folder with --from"
    )


def download(remote: RemoteFile, folder: Path) -> Path:
    """The path of the file, downloaded into the folder unless it exists. An interrupted download is resumed."""
    target, partial = folder / remote.name, folder / (remote.name + ".partial")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _download_to(remote, partial)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(remote.url, error) from None
        os.replace(partial, target)
    _check_sha256(remote, target)
    return target


def _download_to(remote: RemoteFile, partial: Path) -> None:
    offset = partial.stat().st_size if partial.exists() else 0
    try:
        answer = _open(remote.url, offset)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:  # 416: the partial file is complete
            raise
        return
    with answer:
        if answer.status != 206:
            offset = 0  # the server ignores the offset and sends the whole file
        length = answer.headers.get("Content-Length") or ""
        total = offset + int(length) if length.isdecimal() else None
        with (
            partial.open("ab" if offset else "wb") as file,
            ProgressBar(
                f"fetch {remote.name}", max((total or 0) // _BLOCK, 1), start=offset // _BLOCK, unit="MiB"
            ) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                offset += len(block)
                bar.advance_to(offset // _BLOCK)
        if total is not None and offset < total:
            raise OSError(f"interrupted after {offset:,} of {total:,} bytes")


def _check_sha256(remote: RemoteFile, path: Path) -> None:
    """Compare a file with its known or recorded checksum; record the checksum if there is none."""
    sums = path.with_name(SUMS)
    lines = sums.read_text(errors="replace").splitlines() if sums.exists() else []
    recorded = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    found = _sha256(path)
    wanted = remote.sha256 or recorded.get(path.name)
    if wanted and found != wanted:
        source = "the known checksum" if remote.sha256 else f"the checksum in {sums}"
        raise UserError(f"{path} has SHA-256 {found}, but {source} is {wanted}: remove the file and run again")
    if path.name not in recorded:
        with sums.open("a") as file:
            file.write(f"{found}  {path.name}\n")
        if not remote.sha256:
            print(f"{path.name}: its checksum was unknown, and is now recorded in {sums}: {found}", file=sys.stderr)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shards(hub: HubParquet) -> list[RemoteFile]:
    """The parquet files of a repository, from the index of the hub."""
    found = []
    for split in hub.splits:
        url = _index(hub, split)
        try:
            with _open(url) as answer:
                listed = json.load(answer)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise _unreachable(url, error) from None
        if not (isinstance(listed, list) and listed and all(isinstance(u, str) for u in listed)):
            raise UserError(f"{url} lists no files: the repository may have moved; look for it on the hub")
        found += [RemoteFile(f"{split}-{i:04d}.parquet", u) for i, u in enumerate(listed)]
    return found


def _index(hub: HubParquet, split: str) -> str:
    end = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{end}/api/datasets/{hub.repository}/parquet/{hub.config}/{split}"


# ------------------------------------------------------------------------------------------------ conversion


def output_names(spec: DatasetSpec) -> dict[str, str]:
    """split -> name of its converted file."""
    return {split: spec.files[split][0] if spec.files else f"{split}.jsonl" for split in SPLITS}


def write(split_rows: Mapping[str, Rows], folder: Path, names: Mapping[str, str]) -> dict[str, int]:
    """Write all splits or none: into temporary files, which are then renamed. Returns the number of rows by split."""
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
            raise UserError(f"nothing to write into {folder / names[split]}: the source files have no {split} rows")
    for split in counts:
        os.replace(folder / (names[split] + ".partial"), folder / names[split])
    return counts


def convert_folder(name: str, row: Download, source: Path, folder: Path) -> dict[str, int]:
    """Convert the files in a folder: the first file set of the row that matches."""
    available = sorted(path.name for path in source.iterdir() if path.is_file()) if source.is_dir() else []
    for file_set in row.file_sets:
        if matched := file_set.match(available):
            return write(file_set.convert({n: source / n for n in matched}), folder, output_names(_spec(name, row)))
    wanted = "; or ".join(", ".join(file_set.patterns) for file_set in row.file_sets)
    raise UserError(f"{source} does not contain the files of {name}: give a folder with {wanted}")


def _spec(name: str, row: Download) -> DatasetSpec:
    return DATASETS[row.corpus or name]


def plan(name: str, row: Download, folder: Path) -> str:
    """Description of what would be downloaded from where, and of what would be written."""
    spec = _spec(name, row)
    lines = [f"{name}: {spec.description}", f"  terms: {spec.license}"]
    for remote in row.files:
        checksum = remote.sha256 or "unknown: will be recorded"
        lines.append(f"  download {remote.url} as {remote.name}, SHA-256 {checksum}")
    if row.hub:
        lines += [f"  download the parquet files that {_index(row.hub, split)} lists" for split in row.hub.splits]
    lines += [f"  note: {row.note}"] if row.note else []
    return "\n".join([*lines, f"  write {output_names(spec)['train']} and the files of the other splits into {folder}"])


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dataset_utils.fetch", description="Download and convert a corpus.")
    parser.add_argument("name", help=f"one of {', '.join(DOWNLOADS)}")
    parser.add_argument(
        "--data_dir", type=Path, default=Path("datasets"), help="root of the data (default: %(default)s)"
    )
    parser.add_argument("--from", dest="source", type=Path, help="folder with the published files: no download")
    parser.add_argument("--dry_run", action="store_true", help="print what would be downloaded from where, and stop")
    args = parser.parse_args(argv)
    if args.name not in DOWNLOADS:
        raise UserError(f"there is no download of {args.name!r}{did_you_mean(args.name, DOWNLOADS)}: "
                        f"one of {', '.join(DOWNLOADS)}")  # fmt: skip
    row = DOWNLOADS[args.name]
    spec = _spec(args.name, row)
    folder = args.data_dir / spec.folders[0]
    if args.dry_run:
        print(plan(args.name, row, folder))
        return
    existing = [name for name in output_names(spec).values() if (folder / name).exists()]
    if existing:
        raise UserError(f"{folder / existing[0]} already exists: remove it, or name another --data_dir")
    print(f"terms of {args.name}: {spec.license}" + (f"; {row.note}" if row.note else ""), file=sys.stderr)
    source = args.source
    if source is None:
        source = folder / "upstream"
        for remote in [*row.files, *(shards(row.hub) if row.hub else ())]:
            download(remote, source)
    counts = convert_folder(args.name, row, source, folder)
    print(f"wrote {', '.join(f'{split} {n:,}' for split, n in counts.items())} rows to {folder}")
    if args.source is None:
        print(f"the downloaded files ({_mebibytes(source)} MiB) are still in {source}: you may remove them")


def _mebibytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / _BLOCK:,.1f}"


if __name__ == "__main__":
    main()
