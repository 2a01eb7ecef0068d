"""Each format is parsed; a malformed line raises an error that names file and line."""

from __future__ import annotations

import json

import pytest

from dataset_utils import readers
from dataset_utils.class_indices import binarize, find_classes, lookup_label, parse_class_label, to_split
from dataset_utils.columns import Columns, resolve_columns
from dataset_utils.raw_split import collect_rows
from utils.errors import UserError


def rows_of(reader, tmp_path, content: str | bytes, name: str = "f") -> list:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(reader(path))


def test_plain_lines_end_at_newlines_only(tmp_path) -> None:
    found = rows_of(readers.plain, tmp_path, "\ufeffone\r\ntwo\u2028still two\n\nfour")
    assert found == [
        (1, {"text": "one"}),
        (2, {"text": "two\u2028still two"}),
        (3, {"text": ""}),
        (4, {"text": "four"}),
    ]


def test_rocstories_undoes_escapes(tmp_path) -> None:
    story = 'She said "hi". It\u2019s a caf\u00e9.'
    assert rows_of(readers.rocstories, tmp_path, json.dumps([story]) + "\n") == [(1, {"text": story})]


def test_e2e_parts_meaning_and_text(tmp_path) -> None:
    line = "name : The Eagle | Type : pub||The Eagle is a pub . \n"
    assert rows_of(readers.e2e, tmp_path, line) == [
        (1, {"text": "The Eagle is a pub . ", "meaning": "name : The Eagle | Type : pub"})
    ]


def test_csv_and_tsv_name_their_columns(tmp_path) -> None:
    assert rows_of(readers.csv, tmp_path, 'text,label\n"a, ""b""\nc",1\n') == [(3, {"text": 'a, "b"\nc', "label": "1"})]
    assert rows_of(readers.tsv, tmp_path, 'text\tlabel\nsay "hi\t0\n') == [(2, {"text": 'say "hi', "label": "0"})]


def test_labeled_lines_have_no_header(tmp_path) -> None:
    assert rows_of(readers.labeled_lines, tmp_path, "a pear.\t1\n") == [(1, {"text": "a pear.", "label": "1"})]


def test_parquet_and_inner_columns(tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"translation": [{"de": "Hallo", "en": "Hello"}]}), path)
    ((line, row),) = readers.parquet(path)
    assert line == 1 and row["de"] == "Hallo" and row["en"] == "Hello"
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"f\.parquet is not a complete parquet file"):
        list(readers.parquet(path))


@pytest.mark.parametrize(
    ("reader", "content", "line", "message"),
    [
        (readers.jsonl, '{"text": "a"}\n{"text": \n', 2, "not JSON"),
        (readers.jsonl, '{"text": "a"}\n\n["b"]\n', 3, "found list"),
        (readers.rocstories, '["a"]\n"b"\n', 2, "a list with one string"),
        (readers.rocstories, '["a", "b"]\n', 1, "a list with one string"),
        (readers.rocstories, "[a]\n", 1, "not JSON"),
        (readers.e2e, "name : X||text\nname : Y | text\n", 2, r"no \|\|"),
        (readers.csv, "text,label\na,1\nb\n", 3, "1 cells under 2 columns"),
        (readers.csv, 'text,label\n"a"x,1\n', 2, "a quotation mark is followed by text"),
        (readers.tsv, "text\tlabel\na\t1\tc\n", 2, "3 cells under 2 columns"),
        (readers.labeled_lines, "a\t1\nb 2\n", 2, "text <tab> label"),
        (readers.plain, b"good\nbad \xff\n", 2, "not UTF-8"),
        (readers.csv, b"text\ngood\nbad \xff\n", 3, "not UTF-8"),
        (readers.csv, "text,label,text\na,1,b\n", 1, "two columns are named 'text'"),
        (readers.jsonl, '{"text": "a"}\n{"text": "\\ud800 b"}\n', 2, "half a surrogate pair"),
        (readers.jsonl, '{"text": ' + "[" * 100_000 + "\n", 1, "too many brackets inside each other"),
        (readers.jsonl, '{"text": "a", "label": ' + "9" * 4301 + "}\n", 1, r"more than 4,300 digits; as a string"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, reader, content, line: int, message: str) -> None:
    with pytest.raises(UserError, match=rf"corpus\.x, line {line}: .*{message}") as caught:
        rows_of(reader, tmp_path, content, "corpus.x")
    assert "\n" not in str(caught.value)


def test_whole_surrogate_pairs_are_text(tmp_path) -> None:
    content = r'{"text": "\ud83d\ude00 \u00e9"}'
    assert rows_of(readers.jsonl, tmp_path, content, "a.jsonl")[0][1] == {"text": "\U0001f600 é"}
    with pytest.raises(UserError, match="a.json: .*half a surrogate pair"):
        rows_of(readers.json_file, tmp_path, '[\n{"text": "\\udc00"}\n]', "a.json")


def test_an_unknown_ending_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"'\.docx'.*\.jsonl"):
        readers.by_suffix(tmp_path / "story.docx")


# ------------------------------------------------------------------------------------------------ columns


def test_columns_are_found_by_their_usual_names() -> None:
    rows = [(1, {"id": "7", "src": "q", "trg": " a "}), (2, {"id": "8", "src": "r", "trg": " "})]
    split = collect_rows(rows, Columns(guess=True), "f")
    assert split.texts == ["a"] and split.sources == ["q"] and split.labels is None and split.incomplete == [2]
    assert split.columns == Columns("trg", "src")
    assert collect_rows([(1, {"poem": "x"})], Columns(guess=True), "f").texts == ["x"]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [(1, {"text": "a"})],
            Columns("txt"),
            r"no column 'txt' \(did you mean text\?\), only text: pass --text_column",
        ),
        ([(1, {"text": "a"})], Columns("text", label="mood"), "no column 'mood'.*--label_column"),
        ([(1, {"x": "a", "y": "b"})], Columns(guess=True), r"which of its columns \(x, y\)"),
        ([(1, {"text": "a"}), (4, {"txt": "b"})], Columns("text"), "line 4: no column 'text'"),
        ([(1, {"text": "a"}), (2, {"text": 3})], Columns("text"), "line 2: column 'text' should be text"),
        ([(1, {"text": " "})], Columns("text"), "holds no texts"),
        ([], Columns("text"), "holds no texts"),
    ],
)
def test_wrong_columns_are_named(rows, columns: Columns, message: str) -> None:
    with pytest.raises(UserError, match=message):
        collect_rows(rows, columns, "f")


def test_labels_become_numbers_or_are_refused_by_line() -> None:
    def labeled(*values):
        return collect_rows([(i, {"t": "x", "l": v}) for i, v in enumerate(values, 1)], Columns("t", label="l"), "f")

    assert to_split(labeled(0, "1", "pos"), ("neg", "pos"), parse_class_label).labels == [0, 1, 1]
    assert to_split(labeled(0.0, 0.49, 0.5, "1"), ("neg", "pos"), binarize).labels == [0, 0, 1, 1]
    assert to_split(labeled("b", "a"), ("a", "b"), lookup_label).labels == [1, 0]
    for bad, number in (
        (2, parse_class_label),
        ("odd", parse_class_label),
        (1.5, binarize),
        ("c", lookup_label),
        (None, binarize),
    ):
        with pytest.raises(UserError, match="f, line 2: label"):
            to_split(labeled("0" if number is not lookup_label else "a", bad), ("a", "b"), number)
    assert find_classes([10, 2, "2", None, ""], "f", "l") == ("2", "10")
    assert find_classes(["b", "a", "b"], "f", "l") == ("a", "b")
    with pytest.raises(UserError, match=r"f: column 'l' has 500 different values in 500 rows.*--label_column none"):
        find_classes(list(range(500)), "f", "l")


def test_usual_pairs_and_names_are_found_whatever_their_case() -> None:
    def found(*names: str, **typed: str) -> Columns:
        return resolve_columns(Columns(**typed, guess=True), dict.fromkeys(names, "x"), "f")

    assert found("Document", "Summary", "id") == Columns("Summary", "Document")
    assert found("text", "summary") == Columns("summary", "text") and found("input", "output").source == "input"
    assert found("Text", "Label") == Columns("Text", label="Label") and found("sentence", "label").text == "sentence"
    assert found("src", "trg", text="src") == Columns("src")
    assert found("src", "trg", source="none") == Columns("trg")
    assert found("text", "label", label="none") == Columns("text")
    assert found("de", "en", source="DE", text="en") == Columns("en", "de")


def test_incomplete_rows_are_dropped_and_noted() -> None:
    rows = [
        (1, {"src": "a", "trg": "b"}),
        (2, {"src": "a", "trg": None}),
        (3, {"src": "", "trg": "b"}),
        (4, {"src": "", "trg": ""}),
    ]
    split = collect_rows(rows, Columns(guess=True), "f")
    assert split.texts == ["b"] and split.sources == ["a"] and split.num_blank == 1 and split.incomplete == [2, 3]
    assert split.notes()[1].startswith("2 rows of f were dropped: a source (src) without text (trg)")
    with pytest.raises(UserError, match="a source .* without text .*the first is line 2.*no row is complete"):
        collect_rows(rows[1:], Columns(guess=True), "f")


def test_compressed_files_and_all_layouts_of_json_are_read(tmp_path) -> None:
    import bz2
    import gzip
    import lzma

    for end, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        path = tmp_path / f"a.jsonl{end}"
        path.write_bytes(pack(b'{"text": "a"}\n{"text": "b"}\n'))
        assert [row["text"] for _, row in readers.by_suffix(path)(path)] == ["a", "b"]
        path.write_bytes(pack(b'{"text": "a"}\n' * 100)[:-9])
        with pytest.raises(UserError, match=rf"a\.jsonl\{end} is not a complete \{end} file"):
            list(readers.by_suffix(path)(path))
    path = tmp_path / "a.json"
    for content in ('{"text": "a"}\n{"text": "b"}', '["a"]\n["b"]', '[{"text": "a"}, {"text": "b"}]',
                    '[\n  {"text": "a"},\n  {"text": "b"}\n]\n'):  # fmt: skip
        path.write_text(content)
        assert [row["text"] for _, row in readers.by_suffix(path)(path)] == ["a", "b"]
    for content, message in (
        ('[\n {"text": "a"},\n {"text" "b"}\n]', "line 3: expected a list of objects"),
        ("[1, 2]", "object 1: expected"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            list(readers.by_suffix(path)(path))
