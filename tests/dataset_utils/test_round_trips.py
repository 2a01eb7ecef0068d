"""Any list of texts and labels, as the writers of Python's standard library write it, is read back the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_utils.characters import mend
from dataset_utils.columns import Columns
from dataset_utils.labels import canonical_label
from dataset_utils.raw_split import RawSplit, collect_rows
from dataset_utils.rows import Tally
from dataset_utils.user_files import read_rows
from utils.errors import UserError

QUICK = settings(max_examples=60, deadline=None)
QUOTING = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]
ENDS = ["\n", "\r\n", "\r"]


def is_kept(text: str) -> bool:
    """Whether no rule changes a text, and something is left of it."""
    return text.strip() == text != "" and "\0" not in text and mend(text, Tally(), "f", 1) == text


def texts_of(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.text(characters, min_size=1, max_size=30).filter(is_kept)


ALPHABET = st.one_of(
    st.sampled_from("ab \"',;|\t\\#=:.é日"),
    st.characters(exclude_categories=["Cs", "Cc"]),
)
LINES = texts_of(ALPHABET)  # without line ends
TEXTS = texts_of(st.one_of(ALPHABET, st.sampled_from("\n\r")))
LABELS = st.sampled_from(["x", "y", "no label", "1", "2.50", "True", "né"])


def rows_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(texts, LABELS), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def read_back(tmp_path_factory) -> Callable[..., RawSplit]:
    folder = tmp_path_factory.mktemp("round_trips")

    def read(name: str, content: str) -> RawSplit:
        path: Path = folder / name
        columns = Columns(guess=True)
        data = content.encode()
        path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        return collect_rows(read_rows(path, columns), columns, str(path))

    return read


def assert_same(split: RawSplit, rows: Sequence[tuple[str, str]]) -> None:
    assert split.texts == [text for text, _ in rows]
    assert split.labels is None or split.labels == [canonical_label(label) for _, label in rows]


@QUICK
@given(rows=rows_of(TEXTS), ascii_only=st.booleans(), end=st.sampled_from(ENDS), mark=st.booleans())
def test_json_lines(read_back, rows, ascii_only: bool, end: str, mark: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only) for text, label in rows]
    content = "\ufeff" * mark + end.join([*lines, ""])
    for name in ("a.jsonl", "a.jsonl.gz", "a.json"):
        assert_same(read_back(name, content), rows)


@QUICK
@given(rows=rows_of(TEXTS), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_json_files(read_back, rows, indent: int | None, ascii_only: bool) -> None:
    objects = [{"text": text, "label": label} for text, label in rows]
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    for value in (objects, columns, {"data": objects}):
        assert_same(read_back("a.json", json.dumps(value, indent=indent, ensure_ascii=ascii_only)), rows)
    texts = [text for text, _ in rows]
    assert read_back("b.json", json.dumps(texts, indent=indent, ensure_ascii=ascii_only)).texts == texts


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_of(TEXTS), separator=st.sampled_from(",;\t|"), quoting=st.sampled_from(QUOTING),
    end=st.sampled_from(ENDS), name=st.sampled_from(["a.csv", "a.tsv", "a.csv.gz", "a.tsv.gz"]), mark=st.booleans(),
)  # fmt: skip
def test_tables(read_back, rows, separator: str, quoting: int, end: str, name: str, mark: bool) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # Python 3.11 does not quote a line end that is not that of the table
        other = {"\n", "\r"} - set(end)
        rows = [(text.translate(dict.fromkeys(map(ord, other), "/")), label) for text, label in rows]
    cells = io.StringIO(newline="")
    writer = csv.writer(cells, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([("text", "label"), *rows])
    assert_same(read_back(name, "\ufeff" * mark + cells.getvalue()), rows)


@QUICK
@given(rows=rows_of(texts_of(st.characters(exclude_categories=["Cs", "Cc"]).filter(lambda c: c != '"'))))
def test_unquoted_tables(read_back, rows) -> None:
    """QUOTE_NONE: quotation marks stand for themselves; a text that begins with one could be either."""
    cells = io.StringIO(newline="")
    writer = csv.writer(cells, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
    writer.writerows([("text", "label"), *((f'{text} "{text}"', label) for text, label in rows)])
    assert_same(read_back("a.tsv", cells.getvalue()), [(f'{text} "{text}"', label) for text, label in rows])


@QUICK
@given(texts=st.lists(LINES, min_size=1, max_size=8), end=st.sampled_from(ENDS), mark=st.booleans())
def test_plain_texts(read_back, texts, end: str, mark: bool) -> None:
    content = "\ufeff" * mark + end.join([*texts, ""])
    assert read_back("a.txt", content).texts == texts
    assert read_back("a.txt.gz", content.removesuffix(end)).texts == texts


@QUICK
@given(rows=rows_of(TEXTS))
def test_parquet(read_back, rows, tmp_path_factory) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path_factory.getbasetemp() / "a.parquet"
    pq.write_table(pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}), path)
    columns = Columns(guess=True)
    assert_same(collect_rows(read_rows(path, columns), columns, str(path)), rows)


@QUICK
@given(rows=rows_of(LINES), parts=st.integers(2, 4), end=st.sampled_from(ENDS), mark=st.booleans())
def test_joined_files(read_back, rows, parts: int, end: str, mark: bool) -> None:
    """The same file several times, one after another: headers and marks of the later parts are no texts."""
    cells = io.StringIO(newline="")
    csv.writer(cells, lineterminator=end).writerows([("text", "label"), *rows])
    assert_same(read_back("a.csv", ("\ufeff" * mark + cells.getvalue()) * parts), rows * parts)
    lines = "".join(json.dumps({"text": text, "label": label}) + end for text, label in rows)
    assert_same(read_back("a.jsonl", ("\ufeff" * mark + lines) * parts), rows * parts)
    plain = "".join(text + end for text, _ in rows)
    assert read_back("a.txt", ("\ufeff" * mark + plain) * parts).texts == [text for text, _ in rows] * parts


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_mended_or_refused(text: str) -> None:
    try:
        mended = mend(text, Tally(), "f", 1)
    except UserError:
        assert "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
        return
    assert mend(mended, Tally(), "f", 1) == mended
    left = [c for c in mended if unicodedata.category(c) == "Cc" and c not in "\t\n\r"]
    assert not left and "\ufeff" not in mended
    if not any(unicodedata.category(c) in ("Cc", "Cn") or c == "\ufeff" for c in text):
        assert mended == text


PIECES = ['{"text": "a"}', '["a"]', '"', "text,label", "a,b", "a\tb", "\\", "[", "{", "1", "", '"a""b"\tc']
NAMES = [f"f{end}" for end in (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt.gz", ".csv.bz2", ".tsv.xz")]


@settings(max_examples=200, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=120),
        st.text(st.sampled_from('ab{}[]":,;|\t\n\r "\\0\ufeff'), max_size=80).map(str.encode),
        st.lists(st.sampled_from(PIECES), max_size=8).map("\n".join).map(str.encode),
    ),
    name=st.sampled_from(NAMES),
)  # fmt: skip
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        split = collect_rows(read_rows(path, Columns(guess=True)), Columns(guess=True), str(path))
    except UserError as error:
        assert "\n" not in str(error) and name in str(error)
    else:
        assert all(is_kept(text) for text in split.texts)
