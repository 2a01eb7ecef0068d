"""JSON: one object per line, or whole files of every layout that other programs write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_utils.rows import Row, Rows, Tally, flatten, reader, uniform_reader
from dataset_utils.text_files import MARK, MARKED, lines
from utils.errors import UserError

OBJECT = 'an object such as {"text": "..."}'
_STORY = 'a list with one string, ["..."]'
_OBJECTS = 'a list of objects such as [{"text": "..."}]'
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def parse_json(text: str) -> Any:
    """Parse JSON. ValueError also for half of a surrogate pair: Python accepts it, but no tokenizer does."""
    value = json.loads(text)
    if "\\u" in text and _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair, {error.object[error.start]!r}") from None


def parse_line(path: Path, number: int, line: str, expected: str, tally: Tally) -> Any:
    """The value of a line. UserError, with the line, for what is no JSON."""
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        if line.startswith(MARK):
            tally.add(MARKED, number)
            return parse_line(path, number, line.lstrip(MARK), expected, tally)
        reason = error.msg.removesuffix(" at")
        raise UserError(
            f"{path}, line {number}: expected {expected}, but it is not JSON ({reason} at column "
            f"{error.colno}): {_advice(path, number, line, error.msg)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {number}: cannot be parsed ({_reason(error)}): correct or remove the line"
        ) from None


def _reason(error: ValueError | RecursionError) -> str:
    """Why Python does not parse JSON, without its advice to programmers."""
    if "integer string conversion" in str(error):
        return "a number of more than 4,300 digits; as a string, in quotation marks, it may be as long"
    return "too many brackets inside each other" if isinstance(error, RecursionError) else str(error)


def _advice(path: Path, number: int, line: str, reason: str) -> str:
    if reason.startswith("Invalid control character"):
        return "write tabs and the like as escapes, such as \\t"
    if line.startswith("{'"):
        return "names and texts need double quotation marks"
    if line.rstrip().endswith("},"):
        return "remove the comma at the end of each line"
    if number == 1 and line.strip() in ("[", "{") and path.name.endswith(".jsonl"):
        return "write one object per line, or name the file .json"
    return "correct or remove the line"


def kind_of(value: Any) -> str:
    """The type of a JSON value, for messages."""
    return _KINDS.get(type(value), "a number")


@reader
def jsonl(path: Path, tally: Tally) -> Iterator[Row]:
    """One JSON object per line. Keys of an inner object (such as `translation`) also become columns of the row."""
    for number, line in lines(path):
        if line.isspace() or not line:
            continue
        value = parse_line(path, number, line, OBJECT, tally)
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, line {number}: expected {OBJECT}, found {type(value).__name__} {line[:40]!r}: "
                "correct or remove the line"
            )
        yield number, flatten(value)


@uniform_reader
def rocstories(path: Path, tally: Tally) -> Iterator[Row]:
    """One JSON list per line, with one string: the story.

    Differs from the reference, which removes two characters at both ends: escapes such as \\" and \\u2019 are decoded.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        value = parse_line(path, number, line, _STORY, tally)
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)):
            raise UserError(
                f"{path}, line {number}: expected {_STORY}, found {line[:40]!r}: correct or remove the line"
            )
        yield number, {"text": value[0]}


def json_file(path: Path) -> Rows:
    """A .json file: an object or a list of one string per line; or one value, or several, over any lines.

    One value is a list of objects, a list of texts, an object of lists or of objects (columns), or an object with one
    list of objects. Then the whole file is loaded, and the line number is the position of the object.
    """
    beginning = [line for _, line in zip(range(2), (line for _, line in lines(path) if line.strip()), strict=False)]
    if len(beginning) == 2:
        try:
            first = json.loads(beginning[0])
        except (ValueError, RecursionError):
            first = None
        if isinstance(first, dict):
            return jsonl(path)
        if isinstance(first, list) and len(first) == 1 and isinstance(first[0], str):
            return rocstories(path)
    return _whole(path)


@reader
def _whole(path: Path, tally: Tally) -> Iterator[Row]:
    values = _values(path, "\n".join(_unmarked(line, number, tally) for number, line in lines(path)))
    if len(values) == 1:
        values = _records(path, values[0])
    elif values and all(isinstance(v, list) and len(v) == 1 and isinstance(v[0], str) for v in values):
        values = [value[0] for value in values]
    for number, value in enumerate(values, start=1):
        if isinstance(value, str) and isinstance(values[0], str):
            yield number, {"text": value}
        elif isinstance(value, dict) and isinstance(values[0], dict):
            yield number, flatten(value)
        else:
            raise UserError(
                f"{path}, object {number}: expected {_OBJECTS}, found {kind_of(value)}: correct or remove it"
            )


def _unmarked(line: str, number: int, tally: Tally) -> str:
    if line.startswith(MARK):
        tally.add(MARKED, number)
        return line.lstrip(MARK)
    return line


def _values(path: Path, text: str) -> list[Any]:
    """The values of a file, one after another, with or without blanks between them."""
    decoder, values, place = json.JSONDecoder(), [], 0
    blank = re.compile(r"[ \t\n]*")
    try:
        while (place := blank.match(text, place).end()) < len(text):  # type: ignore[union-attr]
            value, place = decoder.raw_decode(text, place)
            values.append(value)
        if _SURROGATE.search(text):
            _check_surrogates(values)
    except json.JSONDecodeError as error:
        comma = values and text[error.pos : error.pos + 1] == ","
        advice = "remove the commas between the objects, or put [ ] around them" if comma else "correct the file"
        raise UserError(
            f"{path}, line {error.lineno}: expected {_OBJECTS}, but it is not JSON ({error.msg} at column "
            f"{error.colno}): {advice}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be parsed ({_reason(error)}): correct the file") from None
    return values


def _records(path: Path, value: Any) -> list[Any]:
    """The rows of a file that holds one value."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected {_OBJECTS}, found {kind_of(value)}: correct the file")
    columns = list(value.values())
    if set(value) >= {"columns", "data"}:
        raise UserError(
            f"{path}: columns and data apart, as pandas writes them with orient='split': write it with orient='records'"
        )
    if columns and all(isinstance(c, list) for c in columns):
        tables = [name for name, column in value.items() if column and all(isinstance(item, dict) for item in column)]
        if len(tables) > 1:
            raise UserError(
                f"{path} holds several lists of objects ({', '.join(tables)}): write each to a file of its own"
            )
        if tables and len(columns) == 1:
            return columns[0]
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise UserError(f"{path}: its columns differ in length ({shown}): correct the file")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if _by_columns(columns):
        return [{name: column[key] for name, column in value.items()} for key in columns[0]]
    lists = [name for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if len(lists) == 1 and all(isinstance(item, (str, int, float, list)) for item in columns):
        return value[lists[0]]
    return [value]


def _by_columns(columns: list[Any]) -> bool:
    """Whether the values of an object are columns with row numbers as keys, as pandas writes a table by default."""
    if not all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return False
    cells = [cell for column in columns for cell in column.values()]
    return bool(cells) and list(columns[0])[0].isdecimal() and not any(isinstance(c, dict | list) for c in cells)
