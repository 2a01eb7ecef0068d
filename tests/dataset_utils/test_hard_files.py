"""Files as other programs write them: read rightly, or refused in one line that says what to do next."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset_utils import __main__ as listing
from dataset_utils.characters import RULES
from dataset_utils.columns import Columns
from dataset_utils.options import DataOptions
from dataset_utils.raw_split import RawSplit, collect_rows
from dataset_utils.registry import load
from dataset_utils.user_files import find_file, read_rows
from utils.errors import UserError

CASES = Path(__file__).resolve().parents[1] / "cases"


def read(path: Path, **columns: str) -> RawSplit:
    asked = Columns(**columns, guess=True)
    return collect_rows(read_rows(path, asked), asked, str(path))


@pytest.fixture
def made(tmp_path) -> Callable[..., RawSplit]:
    """Write a file and read it."""

    def make(name: str, content: str | bytes, **columns: str) -> RawSplit:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(tmp_path / name, **columns)

    return make


def refusal(make: Callable[[], RawSplit]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ the cases


def test_files_of_other_programs_are_read_as_they_were_meant() -> None:
    cr = read(CASES / "cr_line_ends.csv")
    assert cr.texts[0] == "Paul took a bell to Quito." and len(cr) == 60 and set(cr.labels or ()) == {"x", "y"}
    quoted = read(CASES / "quoted_cells.tsv")
    assert quoted.texts[0] == 'She said "go" to Maya.' and not any('""' in text for text in quoted.texts)
    joined = read(CASES / "joined_files.csv")
    assert "text" not in joined.texts and set(joined.labels or ()) == {"x", "y"} and len(joined) == 80
    assert "1 line of" in joined.notes()[0] and "repeated the header" in joined.notes()[0]
    assert "line 42" in joined.notes()[0]
    nested = read(CASES / "nested_author.jsonl")
    assert nested.columns.text == "content" and nested.texts[0].startswith("We walked")
    pairs = read(CASES / "instruction_input_output.jsonl")
    assert len(pairs) == 90 and pairs.columns.source == "instruction+input" and pairs.sources is not None
    assert pairs.sources[0] == "Name the first place. From the station to the forest, part 0"
    assert pairs.sources[2] == "Write a greeting." and not pairs.incomplete
    marked = read(CASES / "mark_inside.txt")
    assert len(marked) == 40 and "\ufeff" not in "".join(marked.texts) and "byte-order mark" in marked.notes()[0]
    semicolons = read(CASES / "semicolons.csv")
    assert len(semicolons) == 60 and "separated by semicolons (';')" in semicolons.notes()[0]
    blanks = read(CASES / "blank_before_quotes.csv")
    assert set(blanks.labels or ()) == {"x", "y"} and blanks.texts[0] == "Paul took a map to Oslo."
    mixed = load(DataOptions(train_file=str(CASES / "labels_mixed.jsonl")))
    assert mixed.class_names == ("0", "1", "true")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_header.tsv", r"line 1: is `quote <tab> mood` a header\?.*--text_column quote --label_column mood"),
        ("label_missing_first.jsonl", "line 1: no column 'label', which line 2 has.*--label_column none"),
        ("utf16_no_mark.txt", r"line 1: .*not text.*UTF-16.*iconv -f UTF-16LE -t UTF-8"),
        ("open_quote.csv", "line 12: a quotation mark that opens here is never closed"),
    ],
)
def test_what_cannot_be_known_is_asked_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(CASES / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_the_flags_of_the_answer_are_enough() -> None:
    own = read(CASES / "own_header.tsv", text="quote", label="mood")
    assert len(own) == 90 and set(own.labels or ()) == {"calm", "loud", "shy"}
    unlabeled = read(CASES / "label_missing_first.jsonl", label="none")
    assert len(unlabeled) == 81 and unlabeled.labels is None


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", [".csv", ".tsv"])
def test_a_header_names_the_separator(made, end: str, separator: str) -> None:
    rows = [("text", "label"), ("one, two; three", "a"), ("four | five", "b"), ("six\tseven", "a")]
    cells = io.StringIO(newline="")
    csv.writer(cells, delimiter=separator).writerows(rows)
    split = made(f"t{end}", cells.getvalue())
    assert split.texts == [text for text, _ in rows[1:]] and split.labels == ["a", "b", "a"]
    assert made(f"u{end}", f"sep={separator}\n{cells.getvalue()}").texts == split.texts  # as Excel writes it


def test_quotation_marks_of_tsv_files_follow_all_rows(made, tmp_path) -> None:
    def texts(*rows: str) -> list[str]:
        return made("t.tsv", "text\tlabel\n" + "".join(f"{row}\t{'ab'[i % 2]}\n" for i, row in enumerate(rows))).texts

    assert texts('say "hi', '"Yes," he said.') == ['say "hi', '"Yes," he said.']  # nothing is quoted
    assert texts('"Yes," he said.', "no") == ['"Yes," he said.', "no"]
    over_two = ['"He left.', 'She left."', "no", "yes"]  # a quotation over two texts: its lines end with labels
    assert texts(*over_two) == over_two
    assert texts('"Yes."', "She left.") == ['"Yes."', "She left."]  # a writer of tables would have no reason to quote
    assert texts('"""Yes,"" he said."', "no") == ['"Yes," he said.', "no"]
    assert texts('"one\ttwo"', "no") == ["one\ttwo", "no"]
    assert texts('"one\ntwo"', "no") == ["one\ntwo", "no"]
    everything = made("q.tsv", '"text"\t"label"\n"Yes."\t"a"\n"No."\t"b"\n')
    assert everything.texts == ["Yes.", "No."] and everything.labels == ["a", "b"]
    line = refusal(lambda: made("b.tsv", 'text\tlabel\n"a ""b"""\tx\n"c" d\tx\n'))
    assert "b.tsv, line 3" in line and "line 2" in line


@pytest.mark.parametrize("header", ["text\tlabel", '"text"\t "label"', None])
def test_quoted_tsv_cells_below_a_bare_header_and_after_blanks(made, header: str | None) -> None:
    rows = [f'"Nora took {i} lamps."\t "{"ab"[i % 2]}"' for i in range(12)]
    split = made("t.tsv", "\n".join([*([header] if header else []), *rows]) + "\n")
    assert set(split.labels or ()) == {"a", "b"} and split.texts[0] == "Nora took 0 lamps."
    spoken = made("s.tsv", "text\tlabel\n" + "".join(f'"Yes {i}."\ta\n' for i in range(3)))
    assert spoken.texts[0] == '"Yes 0."'  # in few rows it may be chance


@pytest.mark.parametrize(("end", "separator"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_single_quotation_marks_quote_if_all_rows_agree(made, end: str, separator: str) -> None:
    rows = [f"'Nora took {i} lamps; it''s ok, \"he\" said.'{separator}'{'ab'[i % 2]}'" for i in range(12)]
    for header in (f"text{separator}label", f"'text'{separator} 'label'"):
        split = made(f"t{end}", "\n".join([header, *rows]))
        assert split.texts[0] == 'Nora took 0 lamps; it\'s ok, "he" said.' and set(split.labels or ()) == {"a", "b"}
        assert any("single quotation marks" in note for note in split.notes())
    mixed = [f"'tis {i}{separator}'a'" for i in range(12)] + [f"'no'{separator}b"]
    assert made(f"m{end}", "\n".join([f"text{separator}label", *mixed])).texts[0] == "'tis 0"


def test_a_second_column_that_holds_no_labels_is_asked_about(made) -> None:
    texts = [f"Nora took {i} lamps." for i in range(12)]
    line = refusal(lambda: made("t.tsv", "".join(f"{text}\tMaya saw {i}.\n" for i, text in enumerate(texts))))
    assert (
        "line 1: there is no header" in line and "12 different values in 12 rows" in line and "source<tab>text" in line
    )
    line = refusal(lambda: made("t.tsv", "".join(f"{i % 2}\t{text}\n" for i, text in enumerate(texts))))
    assert "the first only 2" in line and "`label<tab>text`" in line
    assert made("t.tsv", "".join(f"{text}\t{i % 5}\n" for i, text in enumerate(texts))).labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\na,x\n"b,x\nc,x\nd,"x"\n', "line 3: a quotation mark that opens here is not closed before line 5"),
        ('text,label\n"a"b,x\n', r'line 2: a quotation mark is followed by text.*\(""\)'),
        ('text,label\n"a \\"b\\" c",x\n', "line 2: a quotation mark is followed by text"),
        ("text,label\na, b,x\n", "line 2: 3 cells under 2 columns .text, label.: put quotation marks around"),
        ("text;label\na;b;x\n", "line 2: 3 cells under 2 columns.*';'"),
        ("text,label\na,x\nlabel,text\nx,a\n", "line 3: another header"),
        ("text,text\na,b\n", "line 1: two columns are named 'text'"),
        ("phrase,mood\na,b\n", "line 1: is `phrase , mood` a header.*--text_column phrase --label_column mood"),
        ("phrase;mood\na;b\n", "line 1: is `phrase ; mood` a header.*--text_column phrase --label_column mood"),
        ("a,b,c\nd,e,f\n", r"which of its columns \(a, b, c\) holds the text"),
        ("Anna\nBert\nCarl\n", "line 1: is 'Anna' a header or the first text"),
        ("text,normal\na b,normal\nc d,odd\n", "line 2: column 'normal' holds its own name"),
        ("What a day.,1\nAnd a night.,0\n", "line 1: 'What a day.' is not a column name"),
        ("My data,\ntext,label\na,x\n", "line 1: 'My data' is not a column name"),
        ('text,label\na,x\n"b,x\nc,y\nd",x\ne,y\nf,y\n', "line 3: a quotation mark that opens here closes in line 5"),
        ('label,text\nx,"a\ny,b\nx,c"\ny,d\nx,e\ny,f\n', "line 2: a quotation mark that opens here closes in line 4"),
        ("text\na, b\n", "line 2: 2 cells under 1 columns.*name the file .txt"),
        ('text,label\n"a" ,x\n', "line 2: a quotation mark is followed by text or a blank"),
        ("text,label\na,x\nb,\n", "line 3: label '' is refused, because a blank is no label"),
        ("<!DOCTYPE html>\n<html>\n", "is not text but a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "is not text but a pointer of Git LFS: .*git lfs pull"),
    ],
)
def test_guesses_about_a_table_are_checked_on_all_rows(made, content: str, message: str) -> None:
    import re

    line = refusal(lambda: made("t.csv", content))
    assert re.search(message, line), line


def test_tables_without_a_header_and_with_one_are_told_apart(made) -> None:
    bare = made("bare.tsv", "good\tpositive\nbad\tnegative\nfine\tpositive\nill\tnegative\n")
    assert bare.texts[0] == "good" and len(bare) == 4  # the label of the first line occurs again
    assert "a header?" in refusal(lambda: made("odd.tsv", "The quote\tThe mood\na b\tx\nc d\tx\ne f\ty\ng h\ty\n"))
    assert made("one.csv", "poem\nA red rose.\nIt rains.\n").texts == ["A red rose.", "It rains."]
    index = made("pandas.csv", ",text,label\n0,a,x\n1,b,y\n")
    assert index.texts == ["a", "b"] and index.labels == ["x", "y"]
    spaced = made("spaced.csv", "Text , Label\na,x\nb,y\nText , Label\n")
    assert spaced.texts == ["a", "b"] and spaced.labels == ["x", "y"]
    long_cell = made("long.csv", f'text,label\n"{"word " * 60_000}",x\nb,y\n')
    assert len(long_cell.texts[0]) > 200_000  # more than the limit of the csv module
    assert len(made("first.tsv", f"{'word ' * 60_000}\tx\nb\tx\n")) == 2


def test_two_files_for_one_split_are_refused(tmp_path) -> None:
    for name in ("train.jsonl", "train.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="2 files of the train split .train.jsonl, train.csv.*--train_file"):
        find_file(tmp_path, "train")
    for name in ("valid.txt", "dev.txt.gz"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="valid split .valid.txt, dev.txt.gz"):
        find_file(tmp_path, "valid")
    (tmp_path / "tales").mkdir()
    for name in ("train.jsonl", "train.jsonl.gz"):
        (tmp_path / "tales" / name).write_text("")
    with pytest.raises(UserError, match="2 files of the train split"):
        load(DataOptions(dataset_name="tales", data_dir=str(tmp_path)))
    assert "tales/ (here, in two files of a split)" in [row[-1] for row in listing.rows(str(tmp_path))]


# ------------------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\n{"text": "b"}\n',
        '{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
        '\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n',
        '[{"text": "a"}, {"text": "b"}]',
        '[\n  {\n    "text": "a"\n  },\n  {"text": "b"}\n]\n',
        '["a", "b"]',
        '[\n"a",\n"b"\n]',
        '["a"]\n["b"]\n',
        '{"text": ["a", "b"]}',
        '{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 2}}',
        '{"data": [{"text": "a"}, {"text": "b"}]}',
        '{"version": "1.0", "data": [{"text": "a"}, {"text": "b"}]}',
        '{"text": "a"}{"text": "b"}',
        '{"text": "a"} {"text": "b"}',
        '{\n "text": "a"\n}\n{\n "text": "b"\n}\n',
        '\n\n{"text": "a"}\n{"text": "b"}',
        '{"text": "a"}\r{"text": "b"}\r',
    ],
)
def test_every_layout_of_json_is_read(made, content: str) -> None:
    assert made("a.json", content).texts == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"},\n{"text": "b"}\n', "line 1: .*remove the comma"),
        ("a.jsonl", '[\n{"text": "a"}\n]\n', "line 1: .*name the file .json"),
        ("a.jsonl", '{\n"text": "a"\n}\n', "line 1: .*name the file .json"),
        ("a.jsonl", '"a"\n', "line 1: expected an object"),
        ("a.jsonl", "{'text': 'a'}\n", "line 1: .*double quotation marks"),
        ("a.jsonl", '{"text": "a\tb"}\n', r"line 1: .*Invalid control character at column 12.*as escapes, such as .t"),
        ("a.jsonl", '{"text": null}\n', "holds no texts: column 'text' is blank in all 1 rows"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', "line 1: column 'text' should be text, found list"),
        ("a.jsonl", '{"source": ["a"], "target": "b"}\n', "line 1: column 'source' should be text, found list"),
        ("a.json", '{"text": "a"},\n{"text": "b"}', "line 1: .*commas between the objects"),
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "several lists of objects .train, test"),
        ("a.json", '{"text": ["a", "b"], "label": [1]}', "differ in length .text 2, label 1"),
        ("a.json", '{"columns": ["text"], "index": [0], "data": [["a"]]}', "orient='records'"),
        ("a.json", "3", "found a number"),
        ("a.json", '["a", 1]', "object 2: .*found a number"),
        ("a.json", "[" * 100_000, "cannot be parsed"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "line 1: label 'nan' is refused, because nan is no label"),
        ("a.jsonl", '{"text": "a", "label": 1e999}\n', "line 1: label 'inf' is refused"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "label": null}\n', "line 2: .*null is no label"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', "line 1: .*a list is no label"),
        ("a.jsonl", '{"text": "a", "label": {"x": 1}}\n', "line 1: .*an object is no label"),
        ("a.jsonl", '{"text": "a", "label": ""}\n', "line 1: .*a blank is no label"),
        ("a.csv", "text,label\na,0\nb,1\nc,NaN\n", "line 4: label 'NaN' .*the others are numbers"),
        ("a.jsonl", '{"text": "a", "label": ' + "1" * 4301 + "}\n", "line 1: .*more than 4,300 digits"),
        ("a.jsonl", '{"a": {"text": "x"}, "b": {"text": "y"}}\n', "a and b hold a 'text'.*--text_column.*a.text"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "summary": "c"}\n', "line 1: no column 'summary', which line 2 has"),
        ("a.jsonl", '{"id": 1}\n{"id": 2, "text": "c"}\n', "line 1: no column 'text', which other rows have"),
        ("a.jsonl", '{"id": 1, "name": 2}\n{"id": 2}\n', "which of its columns .id, name. holds the text"),
    ],
)
def test_json_that_contradicts_itself_is_named(made, name: str, content: str, message: str) -> None:
    import re

    line = refusal(lambda: made(name, content))
    assert re.search(message, line), line


def test_values_of_all_rows_may_contradict_a_name(made) -> None:
    stars = "review,comment\n" + "".join(f"{i % 5},words {i}\n" for i in range(9))
    assert "column 'review', taken for the text, holds only numbers" in refusal(lambda: made("a.csv", stars))
    assert made("a.csv", stars, text="comment").texts[1] == "words 1"
    assert made("a.csv", stars, text="review").texts[1] == "1"
    corpus = [{"text": f"words {i}", "source": ("news", "web")[i % 2]} for i in range(60)]
    content = "".join(json.dumps(row) + "\n" for row in corpus)
    line = refusal(lambda: made("b.jsonl", content))
    assert "column 'source'" in line and "2 different values in 60 rows" in line and "--source_column none" in line
    assert made("b.jsonl", content, source="none").sources is None
    assert set(made("b.jsonl", content, source="source").sources or ()) == {"news", "web"}


def test_columns_are_those_of_all_rows(made) -> None:
    varied = made("a.jsonl", '{"text": "a", "label": 1, "x": 1}\n{"label": 2, "text": "b", "y": {"text": "no"}}\n')
    assert varied.texts == ["a", "b"] and varied.labels == ["1", "2"] and set(varied.names) >= {"text", "x", "y"}
    dotted = made("b.jsonl", '{"a": {"text": "x"}, "b": {"text": "y"}}\n', text="b.text")
    assert dotted.texts == ["y"]
    joined = made("c.jsonl", '{"q": "x", "c": "y", "a": "z"}\n', text="a", source="c+q")
    assert joined.sources == ["y x"]
    deep = made("deep.jsonl", '{"data": {"item": {"text": "x"}}}\n', text="data.item.text")
    assert deep.texts == ["x"]
    cased = made("cased.csv", "text,Text,label\na,b,x\n")
    assert cased.texts == ["a"] and made("cased.csv", "Text,TEXT\na,b\n").texts == ["a"]
    assert made("ends.csv", "text,label\na,x,\nb,y,,\n").labels == ["x", "y"]  # separators at the ends of lines
    several = made("refs.jsonl", '{"source": "s", "target": ["a", "b", ""]}\n{"source": "t", "target": "c"}\n')
    assert several.texts == ["a", "b", "c"] and several.sources == ["s", "s", "t"] and list(several.lines) == [1, 1, 2]
    assert "1 line of" in several.notes()[0] and "several texts of one source" in several.notes()[0]
    digits = made("d.csv", f"text,label\na,{'9' * 4301}\nb,1.0\nc,1\n")
    assert set(digits.labels or ()) == {"1", "9" * 4301}
    assert made("e.jsonl", '{"text": NaN}\n{"text": "b"}\n').num_blank == 1


# ------------------------------------------------------------------------------------------------ bytes and characters


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_mark_at_the_beginning_says_the_encoding(made, encoding: str) -> None:
    assert made("a.csv", "text,label\r\nÄpfel 日本,x\r\nb,y\r\n".encode(encoding)).texts == ["Äpfel 日本", "b"]
    assert made("a.txt", "Äpfel 日本\nb".encode(encoding)).texts == ["Äpfel 日本", "b"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Hugo took a drum.\n", "我今天去学校。\n", "Он купил книгу.\n"])
def test_wide_encodings_without_a_mark_are_named(made, encoding: str, text: str) -> None:
    line = refusal(lambda: made("a.txt", (text * 30).encode(encoding)))
    assert f"iconv -f {encoding[:6].upper()}{encoding[-2:].upper()} -t UTF-8" in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            b"good\nbad \xff\ngood\nbad \xe9\n",
            "line 2: not UTF-8 .*as are 2 of its 4 lines.*iconv -f",
        ),
        ("a.jsonl", b'{"text": "\xed\xa0\x80"}\n', "line 1: not UTF-8"),
        ("a.txt", b"good\nb\x00d\n", "line 2: .*NUL"),
        ("a.txt", b"x" * 5000 + b"\nb\x00d\n", "line 2: a NUL character.*tr -d"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\u0000b"}\n', "line 2: a NUL character"),
        ("a.txt", gzip.compress(b"a\n", mtime=0), "is not text but a gzip file: add .gz"),
        ("a.csv", b"PK\x03\x04rest", "a zip archive or an office document"),
        ("a.jsonl", b"PAR1rest", "a parquet file: name it .parquet"),
        ("a.txt.gz", gzip.compress(b"text\n" * 99, mtime=0)[:-9], "is not a complete .gz file"),
        ("a.txt.gz", b"text", "is not a complete .gz file"),
        ("a.txt.bz2", b"text", "is not a complete .bz2 file"),
        ("a.txt.bz2", bz2.compress(os.urandom(999))[:500] + b"x" * 600, "is not a complete .bz2 file"),
        ("a.txt.xz", lzma.compress(b"text\n" * 99)[:-9], "is not a complete .xz file"),
        ("a.parquet", b"", "is not a complete parquet file"),
        ("a.parquet", b"PAR1" + b"\x00" * 50 + b"PAR1", "is not a complete parquet file"),
        ("a.parquet.gz", gzip.compress(b"", mtime=0), "decompress it first"),
        ("a.txt.zst", b"", "unknown file name extension '.zst': decompress it with zstd -d"),
        ("a.xlsx", b"", "save the sheet as CSV"),
        ("a.txt", b"", "holds no texts"),
        ("a.txt", b" \n\t\r\n\xc2\xa0\n", "holds no texts"),
        ("a.csv", b"", "holds no texts"),
        ("a.json", b"\n", "holds no texts"),
    ],
)
def test_bytes_that_are_no_text_are_refused(made, name: str, content: bytes, message: str) -> None:
    import re

    line = refusal(lambda: made(name, content))
    assert re.search(message, line) and name in line, line


def test_characters_that_are_no_text_are_mended_and_counted(made) -> None:
    given = [
        "plain",
        "bell\x07",
        "form\x0cfeed",
        "\x1b[31mred\x1b[0m",
        "don\x92t",
        "mark\ufeffs",
        "lost \ufffd",
        "no\ufffe",
    ]
    kept = ["1\u00a0km", "می\u200cروم", "👩\u200d🚀", "right\u200fleft", "line\u2028line", "private \ue000", "tab\tbed"]
    want = ["plain", "bell", "form feed", "red", "don’t", "marks", "lost \ufffd", "no"]
    for name, content in (
        ("a.txt", "\n".join(given + kept)),
        ("a.jsonl", "\n".join(json.dumps({"text": text}) for text in given + kept)),
        ("a.csv", "text\n" + "\n".join(f'"{text}"' for text in given + kept)),
    ):
        split = made(name, content)
        assert split.texts == want + kept
        assert "2 of 15 texts (13.3%)" in next(note for note in split.notes() if "held control characters" in note)
        assert sum("texts" in note for note in split.notes()) == len([rule for rule in RULES if rule.note]), (
            split.notes()
        )


def test_files_that_are_no_files_are_refused_at_once(tmp_path, made) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is a pipe or a device" in refusal(lambda: read(tmp_path / "pipe.txt"))
    assert "is a folder" in refusal(lambda: read(tmp_path))
    assert "there is no file" in refusal(lambda: read(tmp_path / "none.txt"))
    assert "there is no file" in refusal(lambda: read(tmp_path / ("x" * 300 + ".txt")))
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "loop.txt cannot be read" in refusal(lambda: read(tmp_path / "loop.txt"))
    if os.getuid():
        (tmp_path / "secret.txt").write_text("a")
        (tmp_path / "secret.txt").chmod(0)
        assert "Permission denied" in refusal(lambda: read(tmp_path / "secret.txt"))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text\n" * 10)

    def rows():
        for i, row in enumerate(read_rows(path, Columns())):
            if i == 5:
                with path.open("a") as file:
                    file.write("more\n")
            yield row

    assert "changed while it was read" in refusal(lambda: collect_rows(rows(), Columns(guess=True), str(path)))


def test_parquet_of_every_kind_of_column(tmp_path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def made(**columns) -> RawSplit:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return read(tmp_path / "a.parquet")

    texts = pa.array(["a", "b", None]).dictionary_encode()
    split = made(text=texts, label=pa.array([True, False, True]))
    assert split.texts == ["a", "b"] and split.labels == ["true", "false"] and split.num_blank == 1
    assert made(text=["a", "b"], label=pa.array([1.0, 2.0], pa.float32())).labels == ["1", "2"]
    assert made(content=["a", "b"], meta=[{"text": "no"}, None]).texts == ["a", "b"]
    assert "should be text, found bytes" in refusal(lambda: made(text=[b"a", b"b"]))
    assert "should be text, found list" in refusal(lambda: made(text=[["a"], ["b"]]))
    assert "label 'None' is refused" in refusal(lambda: made(text=["a", "b"], label=["x", None]))
    bad = pa.array([b"good", b"bad \xff"]).view(pa.binary()).cast(pa.string(), safe=False)
    assert "a text is not UTF-8" in refusal(lambda: made(text=bad))
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "b.parquet")
    assert "two columns are named 'text'" in refusal(lambda: read(tmp_path / "b.parquet"))
