"""Convert the published files of a corpus into the form that the catalog reads: one function for each format.

Each function takes the files by name and returns split -> rows, as iterators where the format allows it, since some
corpora have millions of rows. A row is the JSON value of one output line (for E2E the line itself). Where the files are
downloaded from is in `downloads`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dataset_utils import readers
from dataset_utils.splits import permutation
from utils.errors import UserError, one_line_text

Files = Mapping[str, Path]
Rows = Iterable[Any]
Convert = Callable[[Files], dict[str, Rows]]
SEED = 42  # seed of splits for corpora that are published without one


# ------------------------------------------------------------------------------------------------ archives


_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, UnicodeDecodeError, NotImplementedError, OSError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


@contextmanager
def open_member(path: Path, end: str) -> Iterator[IO[str]]:
    """Open one file of a zip or tar archive as text, by the end of its name. UserError if the archive lacks it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(_find_member(archive.namelist(), end, path)) as file:
                yield io.TextIOWrapper(file, encoding="utf-8", newline="")
        else:
            with tarfile.open(path) as tar:
                member = tar.extractfile(_find_member(tar.getnames(), end, path))
                assert member is not None
                yield io.TextIOWrapper(member, encoding="utf-8", newline="")
    except UserError:
        raise
    except RuntimeError as error:  # an archive with a password
        raise UserError(f"{path} cannot be unpacked ({one_line_text(error)}): unpack it, and give its folder") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is not a complete archive ({one_line_text(error)}): remove it and download it again"
        ) from None


def _find_member(names: Iterable[str], end: str, path: Path) -> str:
    found = [n for n in names if n == end or n.endswith("/" + end)]
    found = [n for n in found if not Path(n).name.startswith("._") and "__MACOSX" not in n]
    if not found:
        raise UserError(f"{path} contains no {end}: is it the right archive?")
    return min(found, key=len)


def _table(text: IO[str], where: str, *columns: str, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Rows of a table whose header must have these columns."""
    rows = csv.DictReader(text, delimiter=delimiter)
    try:
        missing = [name for name in columns if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(
                f"{where} has no column {missing[0]}, only {', '.join(rows.fieldnames or ())}: is it the right file?"
            )
        for row in rows:
            if any(row[name] is None for name in columns):
                raise UserError(f"{where}, line {rows.line_num}: too few cells: correct or remove the line")
            yield row
    except csv.Error as error:
        raise UserError(f"{where}, line {rows.line_num}: {error}: correct or remove the line") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    with readers.opened(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason}): download it again") from None


# ------------------------------------------------------------------------------------------------ corpora


def passthrough(files: Files) -> dict[str, Rows]:
    """Files that need no conversion: train.* and so on, src1_*.txt, roc_*.json."""
    found: dict[str, Rows] = {}
    for name, path in files.items():
        split = next(s for s in ("train", "valid", "test") if s in name)
        found[split] = (line for _, line in readers.lines(path, newline="\n"))
    return found


def pairs(files: Files) -> dict[str, Rows]:
    """The files of DiffuSeq, train.jsonl, valid.jsonl and test.jsonl of {src, trg}; each row is checked."""

    def rows(path: Path) -> Iterator[dict[str, str]]:
        for line, row in readers.jsonl(path):
            if not (isinstance(row.get("src"), str) and isinstance(row.get("trg"), str)):
                raise UserError(f"{path}, line {line}: expected two texts, src and trg: correct or remove the line")
            yield {"src": row["src"], "trg": row["trg"]}

    return {Path(name).stem: rows(path) for name, path in files.items()}


def roc_tables(files: Files) -> dict[str, Rows]:
    """The tables in which ROCStories is distributed: storyid, storytitle, sentence1 to sentence5.

    Differs from the reference, whose split was not published: 5,000 stories, chosen by a seed, become the validation
    file (a twentieth of the stories if there are fewer than 100,000). The catalog splits it into validation and test.
    """
    sentences = [f"sentence{i}" for i in range(1, 6)]
    stories = []
    for path in files.values():
        with _open(path) as text:
            stories += [" ".join(row[s].strip() for s in sentences) for row in _table(text, str(path), *sentences)]
    order = permutation(len(stories), SEED)
    held_out = min(5000, max(2, len(stories) // 20))
    return {
        "train": ([stories[i]] for i in sorted(order[held_out:])),
        "valid": ([stories[i]] for i in order[:held_out]),
    }


_E2E_FIELDS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_E2E_FILES = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}


def e2e_line(meaning: str, text: str) -> str:
    """`name[A], eatType[pub]` and a text, as `name : A | Type : pub||text`, with the field names of the reference."""
    fields = re.findall(r"\s*([^\[,]+)\[([^\]]*)\]", meaning)
    meaning = " | ".join(f"{_E2E_FIELDS.get(name.strip(), name.strip())} : {value.strip()}" for name, value in fields)
    return f"{meaning}||{' '.join(text.split())}"


def e2e(files: Files) -> dict[str, Rows]:
    """The release of the E2E challenge: a zip, or its tables of mr and ref.

    Differs from the reference's src1_*.txt: the same meanings and texts, but the texts are not tokenized.
    """

    def rows(name: str) -> Iterator[str]:
        archive = next((path for path in files.values() if path.suffix == ".zip"), None)
        with open_member(archive, name) if archive else _open(files[name]) as text:
            for row in _table(text, name, "mr", "ref"):
                yield e2e_line(row["mr"], row["ref"])

    return {split: rows(name) for split, name in _E2E_FILES.items()}


def sst(files: Files) -> dict[str, Rows]:
    """Sentences of the Stanford Sentiment Treebank, each with the score of the phrase that equals it.

    Sentences and phrases encode brackets and accents differently; the spelling of the phrases is used.
    """
    (path,) = files.values()
    try:
        return _sst(path)
    except UserError:
        raise
    except (ValueError, KeyError) as error:  # a line without separator, a number that is none, an unknown number
        raise UserError(f"{path} is not in the format of the treebank ({error!r}): download it again") from None


def _sst(path: Path) -> dict[str, Rows]:
    def lines(name: str, separator: str, header: bool) -> Iterator[list[str]]:
        with open_member(path, name) as text:
            for line in itertools.islice(text, int(header), None):
                yield line.rstrip("\r\n").rsplit(separator, 1)

    scores = {number: float(score) for number, score in lines("sentiment_labels.txt", "|", True)}
    score_of = {phrase: scores[number] for phrase, number in lines("dictionary.txt", "|", False)}
    split_of = dict(lines("datasetSplit.txt", ",", True))
    found: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    names = {"1": "train", "2": "test", "3": "valid"}
    num_unscored = 0
    with open_member(path, "datasetSentences.txt") as text:
        for line in itertools.islice(text, 1, None):
            number, _, sentence = line.rstrip("\r\n").partition("\t")
            phrase = next((p for p in _spellings(sentence) if p in score_of), None)
            if phrase is None:
                num_unscored += 1
            else:
                found[names[split_of[number]]].append({"sentence": phrase, "label": round(score_of[phrase], 5)})
    if num_unscored > 0.01 * sum(map(len, found.values())):
        raise UserError(f"{path}: {num_unscored} sentences have no score: is it the right file?")
    return dict(found)


def _spellings(sentence: str) -> Iterator[str]:
    plain = sentence.replace("-LRB-", "(").replace("-RRB-", ")")
    for spelling in (sentence, plain):
        yield spelling
        try:
            yield spelling.encode("latin-1").decode("utf-8")  # accents are encoded twice
        except UnicodeError:
            continue


def _checked(rows: Iterable[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error}): download it again") from None


def ag_tables(files: Files) -> dict[str, Rows]:
    """AG News as its authors distribute it: class (from 1), title, description; without a header."""

    def rows(path: Path) -> Iterator[dict[str, Any]]:
        with _open(path) as text:
            for line, cells in enumerate(_checked(csv.reader(text), path), start=1):
                if len(cells) != 3 or cells[0] not in ("1", "2", "3", "4"):
                    raise UserError(f"{path}, line {line}: expected class, title, description: is it the right file?")
                yield {"text": f"{cells[1]} {cells[2]}", "label": int(cells[0]) - 1}

    return {Path(name).stem: rows(path) for name, path in files.items()}


def parquet_shards(*columns: str) -> Convert:
    """Parquet shards of the hub, train-0000.parquet and so on; only these columns are kept."""

    def rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
        for path in paths:
            for _, row in readers.parquet(path):
                if missing := [name for name in columns if name not in row]:
                    raise UserError(f"{path} has no column {missing[0]}, only {', '.join(row)}: is it the right file?")
                if all(row[name] not in (None, "") for name in columns):
                    yield {name: row[name] for name in columns}

    def convert(files: Files) -> dict[str, Rows]:
        names = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}
        of_split = {s: [files[n] for n in sorted(files) if n.startswith(begins)] for s, begins in names.items()}
        return {split: rows(paths) for split, paths in of_split.items() if paths}

    return convert


def quora(files: Files) -> dict[str, Rows]:
    """Quora's table of question pairs: the duplicates, in the order of the file.

    Differs from DiffuSeq, whose split of the same 149,263 pairs was not published as a rule: the sizes are the same
    (2,048 for validation, 2,500 for test, or a tenth each of a smaller table), but the pairs are chosen by a seed.
    """
    (path,) = files.values()
    with _open(path) as text:
        table = _table(text, str(path), "question1", "question2", "is_duplicate", delimiter="\t")
        found = [
            {"src": r["question1"].strip(), "trg": r["question2"].strip()} for r in table if r["is_duplicate"] == "1"
        ]
    found = [row for row in found if row["src"] and row["trg"]]
    order = permutation(len(found), SEED)
    valid = min(2048, max(1, len(found) // 10))
    test = min(2500, max(1, len(found) // 10))
    return {
        "train": (found[i] for i in sorted(order[valid + test :])),
        "valid": (found[i] for i in order[:valid]),
        "test": (found[i] for i in order[valid : valid + test]),
    }


def openqa(files: Files, max_passages: int = 3) -> dict[str, Rows]:
    """Quasar-T as prepared by OpenQA (Lin et al. 2018): source a passage that contains an answer, target the question.

    For each question the first max_passages such passages are used. Differs from DiffuSeq, whose choice of passages
    (117,000 in training) was not published as a rule.
    """
    (path,) = files.values()

    def rows(split: str) -> Iterator[dict[str, str]]:
        with (
            open_member(path, f"quasart/{split}.txt") as questions,
            open_member(path, f"quasart/{split}.json") as passages,
        ):
            for line, (question_line, passage_line) in enumerate(zip(questions, passages, strict=False), start=1):
                try:
                    question_row, documents = json.loads(question_line), json.loads(passage_line)
                    question, answers = question_row["question"], [a.lower() for a in question_row["answers"]]
                    texts = [d["document"] for d in documents]
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise UserError(
                        f"{path}, {split}, line {line}: not in the format of OpenQA ({error!r}): download it again"
                    ) from None
                texts = [" ".join(t) if isinstance(t, list) else t for t in texts]
                question = " ".join(question) if isinstance(question, list) else question
                for text in [t for t in texts if any(a in t.lower() for a in answers)][:max_passages]:
                    yield {"src": text, "trg": question}

    return {"train": rows("train"), "valid": rows("dev"), "test": rows("test")}


def parallel(files: Files) -> dict[str, Rows]:
    """train.src and train.dst, parallel sentences by line; the catalog takes validation and test from training."""
    (source,) = [path for name, path in files.items() if name.endswith(".src")]
    (target,) = [path for name, path in files.items() if name.endswith(".dst")]

    def rows() -> Iterator[dict[str, str]]:
        both = itertools.zip_longest(readers.lines(source, newline="\n"), readers.lines(target, newline="\n"))
        for left, right in both:
            if left is None or right is None:
                raise UserError(f"{source} and {target} have different numbers of lines: download both again")
            yield {"src": left[1], "trg": right[1]}

    return {"train": rows()}


_CONVERSATION = {"train": "trainset.txt", "valid": "validset.txt", "test": "testset.txt"}


def conversation(files: Files) -> dict[str, Rows]:
    """Commonsense Conversation: one object per line, whose post and response are lists of words."""

    def rows(name: str) -> Iterator[dict[str, str]]:
        archive = next((path for path in files.values() if path.suffix != ".txt"), None)
        with open_member(archive, name) if archive else _open(files[name]) as text:
            for line, raw in enumerate(text, start=1):
                try:
                    row = json.loads(raw)
                    yield {"src": " ".join(row["post"]), "trg": " ".join(row["response"])}
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise UserError(
                        f"{name}, line {line}: expected post and response ({error!r}): download it again"
                    ) from None

    return {split: rows(name) for split, name in _CONVERSATION.items()}
