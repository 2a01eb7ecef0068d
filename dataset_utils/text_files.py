"""Bytes of a file -> lines of text: compression, encoding, line ends, and what is no text.

Every error of the file system, of a decompressor or of decoding is a UserError with the path and, if known, the line.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import IO

from dataset_utils.rows import Tally
from utils.errors import UserError

COMPRESSED: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
MARK = "\ufeff"  # byte-order mark
MARKED = "began with a byte-order mark, which was removed"

# How a file begins that is no text, whatever its name says: what it is, and what to do.
_BINARY: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", "add .gz to its name"),
    (b"BZh91AY", "a bzip2 file", "add .bz2 to its name"),
    (b"\xfd7zXZ\x00", "an xz file", "add .xz to its name"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "decompress it with zstd -d"),
    (b"PK\x03\x04", "a zip archive or an office document", "unzip it, or save the sheet as CSV in UTF-8"),
    (b"PAR1", "a parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "convert it to .parquet"),
    (b"%PDF-", "a PDF file", "convert it to text, e.g. with pdftotext"),
    (b"\xd0\xcf\x11\xe0", "an old office document", "save it as CSV in UTF-8"),
    (b"SQLite format 3", "a database", "export a table as CSV"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with git lfs pull"),
    (b"<!DOCTYPE html", "a web page", "download the file itself"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"{\\rtf", "an RTF document", "save it as plain text in UTF-8"),
)
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
)  # fmt: skip
_HEAD = 4096  # bytes that are inspected for the encoding


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file; one whose name ends in .gz, .bz2 or .xz is decompressed while it is read.

    UserError also for a folder, a pipe or a device, and for a file that another program changes meanwhile.
    """
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    try:
        before = path.stat()
        if stat.S_ISDIR(before.st_mode):
            raise UserError(f"{path} is a folder, not a file: name the file")
        if not stat.S_ISREG(before.st_mode):
            raise UserError(f"{path} is a pipe or a device, not a file: write its contents to a file, and name that")
        with COMPRESSED.get(compression, lambda path: path.open("rb"))(path) as file:
            yield file
        after = path.stat()
    except UserError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, compression, error) from None
    except OSError as error:
        if error.errno is None:  # bz2: "Invalid data stream"
            raise _damaged(path, compression, error) from None
        if isinstance(error, FileNotFoundError):
            raise UserError(f"there is no file {path}: check the path") from None
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from None
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise UserError(f"{path} changed while it was read: run again when no program writes to it")


def _damaged(path: Path, compression: str, error: BaseException) -> UserError:
    return UserError(f"{path} is not a complete {compression} file ({error}): download it again")


def lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends. \\n, \\r\\n and \\r end a line; U+2028 and the like do not.

    newline="\\n": a carriage return alone ends no line, either. The encoding is UTF-8 unless a mark at the beginning
    says UTF-16 or UTF-32. UserError, with the line, for what is no text.
    """
    number, encoding = 0, "utf-8"
    try:
        with opened(path) as file:
            encoding = _encoding(path, file)
            for number, line in enumerate(io.TextIOWrapper(file, encoding, newline=newline), start=1):
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding, number, error) from None


def raw_lines(path: Path, tally: Tally) -> Iterator[str]:
    """Lines with their ends as in the file, for a parser that keeps some of them.

    A byte-order mark at the beginning of a line, where files were joined, is removed, and added to the tally.
    """
    number, encoding = 0, "utf-8"
    try:
        with opened(path) as file:
            encoding = _encoding(path, file)
            for number, line in enumerate(io.TextIOWrapper(file, encoding, newline=""), start=1):
                if line[0] == MARK:
                    tally.add(MARKED, number)
                    line = line.lstrip(MARK)
                yield line
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding, number, error) from None


def check_format(path: Path, file: IO[bytes], expected: str = "text") -> bytes:
    """The first bytes of a file. UserError if they are those of another format than expected."""
    head: bytes = file.peek(_HEAD)[:_HEAD]  # type: ignore[attr-defined]
    for beginning, what, advice in _BINARY:
        if head.startswith(beginning) and expected not in what:
            raise UserError(f"{path} is not {expected} but {what}: {advice}")
    return head


def _encoding(path: Path, file: IO[bytes]) -> str:
    head = check_format(path, file)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        line = 1 + head[: head.index(b"\0")].count(b"\n")
        guess = _guess_wide(head)
        if guess is None:
            raise UserError(
                f"{path}, line {line}: holds NUL bytes, so it is not text in UTF-8: convert it, or remove them with "
                f"tr -d '\\000' < {quote(str(path))} > NEW_FILE"
            )
        name, option = guess
        raise UserError(
            f"{path}, line {line}: holds NUL bytes, so it is not text in UTF-8; is it {name}? Convert it with "
            f"iconv -f {option} -t UTF-8 {quote(str(path))} > NEW_FILE"
        )
    return "utf-8"


def _guess_wide(head: bytes) -> tuple[str, str] | None:
    """UTF-16 or UTF-32 without a mark, by the places of NUL bytes: (name, name for iconv); None if it is neither."""
    size = len(head) // 4 * 4
    zeros = [head[i:size:4].count(0) / max(size // 4, 1) for i in range(4)]  # shares
    if min(zeros[2:]) > 0.9 and zeros[0] < 0.5:
        return "UTF-32 (little-endian)", "UTF-32LE"
    if min(zeros[:2]) > 0.9 and zeros[3] < 0.5:
        return "UTF-32 (big-endian)", "UTF-32BE"
    even, odd = head[::2].count(0), head[1::2].count(0)
    for first, second, name, option in (
        (even, odd, "UTF-16 (little-endian)", "UTF-16LE"), (odd, even, "UTF-16 (big-endian)", "UTF-16BE"),
    ):  # fmt: skip
        if second > 2 * first and _is_text(head[: len(head) // 2 * 2], option):
            return name, option
    return None


def _is_text(data: bytes, encoding: str) -> bool:
    decoded = data.decode(encoding, errors="replace")
    odd = sum(not (c.isprintable() or c.isspace()) or c == "\ufffd" for c in decoded)
    return odd <= 1 + len(decoded) // 50  # the last character may be cut


def _undecodable(path: Path, encoding: str, number: int, error: UnicodeDecodeError) -> UserError:
    """The error of a file that is not in the encoding. number: lines that were read before the error."""
    if encoding not in ("utf-8", "utf-8-sig"):
        return UserError(
            f"{path}, after line {number}: its mark says {encoding.upper()}, but it is not ({error.reason}): convert "
            "it to UTF-8"
        )
    first, reason, bad, total = number + 1, error.reason, 0, 0
    with opened(path) as file:
        for total, raw in enumerate(file, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError as found:
                bad += 1
                if bad == 1:
                    first, reason = total, f"{found.reason} at byte {found.start}"
    share = f"as are {bad:,} of its {total:,} lines" if bad > 1 else f"the only one of its {total:,} lines"
    return UserError(
        f"{path}, line {first}: not UTF-8 ({reason}), {share}: correct them, or convert the file with iconv -f "
        f"ENCODING -t UTF-8 {quote(str(path))} > NEW_FILE (ENCODING may be WINDOWS-1252, GB18030 or SHIFT_JIS)"
    )
