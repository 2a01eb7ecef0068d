"""Upstream's files -> the form in which a row of the catalog is read: one function per format that corpora come in.

Each takes the files by name and returns split -> rows, made one at a time where the format allows it, since some
corpora have millions. A row is what one line of the result holds as JSON (for E2E the line itself).
Knows formats of others; not where they are fetched from, and no tokenizer.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dataset_utils import readers
from dataset_utils.splits import permutation
from utils.errors import UserError

Files = Mapping[str, Path]
Rows = Iterable[Any]
Convert = Callable[[Files], dict[str, Rows]]
SEED = 42  # of the splits that upstream leaves to the reader


# ------------------------------------------------------------------------------------------------ archives


@contextmanager
def member(path: Path, end: str) -> Iterator[IO[str]]:
    """One file of a zip or tar archive as text, by the end of its name. UserError where it is not in there."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed, packed.open(_named(packed.namelist(), end, path)) as file:
                yield io.TextIOWrapper(file, encoding="utf-8", newline="")
        else:
            with tarfile.open(path) as tar:
                inside = tar.extractfile(_named(tar.getnames(), end, path))
                assert inside is not None
                yield io.TextIOWrapper(inside, encoding="utf-8", newline="")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole archive ({error}): remove it and fetch it again") from None


def _named(names: Iterable[str], end: str, path: Path) -> str:
    found = [n for n in names if n == end or n.endswith("/" + end)]
    found = [n for n in found if not Path(n).name.startswith("._") and "__MACOSX" not in n]
    if not found:
        raise UserError(f"{path} holds no {end}: it is not the archive that was expected")
    return min(found, key=len)


def _table(text: IO[str], where: str, *columns: str, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Rows of a table with a header that must have these columns."""
    csv.field_size_limit(1 << 24)
    rows = csv.DictReader(text, delimiter=delimiter)
    missing = [name for name in columns if name not in (rows.fieldnames or ())]
    if missing:
        raise UserError(
            f"{where} has no column {missing[0]}, only {', '.join(rows.fieldnames or ())}: is it the right file?"
        )
    for row in rows:
        if any(row[name] is None for name in columns):
            raise UserError(f"{where}, line {rows.line_num}: too few cells: mend or remove the line")
        yield row


def _open(path: Path) -> IO[str]:
    return path.open(encoding="utf-8-sig", newline="")


# ------------------------------------------------------------------------------------------------ corpora


def as_is(files: Files) -> dict[str, Rows]:
    """Files that are in the right form already: train.* and so on, src1_*.txt, roc_*.json."""
    found: dict[str, Rows] = {}
    for name, path in files.items():
        split = next(s for s in ("train", "valid", "test") if s in name)
        found[split] = (line for _, line in readers.lines(path))
    return found


def pairs(files: Files) -> dict[str, Rows]:
    """DiffuSeq's train.jsonl, valid.jsonl and test.jsonl of {src, trg}, checked."""

    def rows(path: Path) -> Iterator[dict[str, str]]:
        for line, row in readers.jsonl(path):
            if not (isinstance(row.get("src"), str) and isinstance(row.get("trg"), str)):
                raise UserError(f"{path}, line {line}: expected src and trg, two texts: mend or remove the line")
            yield {"src": row["src"], "trg": row["trg"]}

    return {Path(name).stem: rows(path) for name, path in files.items()}


def roc_tables(files: Files) -> dict[str, Rows]:
    """The tables that ROCStories are handed out as: storyid, storytitle, sentence1 to sentence5.

    Differs from the reference, whose division nobody published: 5,000 stories drawn with a seed become the validation
    file (a twentieth of them, where there are fewer than 100,000), of which the catalog makes validation and test.
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
    """`name[A], eatType[pub]` and a text, as `name : A | Type : pub||text`, the fields called as in the reference."""
    fields = re.findall(r"\s*([^\[,]+)\[([^\]]*)\]", meaning)
    said = " | ".join(f"{_E2E_FIELDS.get(name.strip(), name.strip())} : {value.strip()}" for name, value in fields)
    return f"{said}||{' '.join(text.split())}"


def e2e(files: Files) -> dict[str, Rows]:
    """The release of the E2E challenge, a zip or its tables of mr and ref.

    Differs from the reference's src1_*.txt: the same meanings and texts, but the texts are not split into tokens.
    """

    def rows(name: str) -> Iterator[str]:
        archive = next((path for path in files.values() if path.suffix == ".zip"), None)
        with member(archive, name) if archive else _open(files[name]) as text:
            for row in _table(text, name, "mr", "ref"):
                yield e2e_line(row["mr"], row["ref"])

    return {split: rows(name) for split, name in _E2E_FILES.items()}


def sst(files: Files) -> dict[str, Rows]:
    """The Stanford Sentiment Treebank's sentences with the score of the phrase that each of them is.

    Sentences have brackets and accents written otherwise than the phrases that carry the scores; those are undone.
    """
    (path,) = files.values()

    def lines(name: str, separator: str, header: bool) -> Iterator[list[str]]:
        with member(path, name) as text:
            for line in itertools.islice(text, int(header), None):
                yield line.rstrip("\r\n").rsplit(separator, 1)

    scores = {number: float(score) for number, score in lines("sentiment_labels.txt", "|", True)}
    score_of = {phrase: scores[number] for phrase, number in lines("dictionary.txt", "|", False)}
    split_of = dict(lines("datasetSplit.txt", ",", True))
    found: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    names = {"1": "train", "2": "test", "3": "valid"}
    lost = 0
    with member(path, "datasetSentences.txt") as text:
        for line in itertools.islice(text, 1, None):
            number, _, sentence = line.rstrip("\r\n").partition("\t")
            phrase = next((p for p in _spellings(sentence) if p in score_of), None)
            if phrase is None:
                lost += 1
            else:
                found[names[split_of[number]]].append({"sentence": phrase, "label": round(score_of[phrase], 5)})
    if lost > 0.01 * sum(map(len, found.values())):
        raise UserError(f"{path}: {lost} sentences have no score: it is not the treebank that was expected")
    return dict(found)


def _spellings(sentence: str) -> Iterator[str]:
    plain = sentence.replace("-LRB-", "(").replace("-RRB-", ")")
    for spelling in (sentence, plain):
        yield spelling
        try:
            yield spelling.encode("latin-1").decode("utf-8")  # accents were encoded twice
        except UnicodeError:
            continue


def ag_tables(files: Files) -> dict[str, Rows]:
    """AG News as its authors hand it out: class (from 1), title, description, without header."""

    def rows(path: Path) -> Iterator[dict[str, Any]]:
        with _open(path) as text:
            for line, cells in enumerate(csv.reader(text), start=1):
                if len(cells) != 3 or cells[0] not in ("1", "2", "3", "4"):
                    raise UserError(f"{path}, line {line}: expected class, title, description: is it the right file?")
                yield {"text": f"{cells[1]} {cells[2]}", "label": int(cells[0]) - 1}

    return {Path(name).stem: rows(path) for name, path in files.items()}


def parquet_shards(*columns: str) -> Convert:
    """Shards of the hub, train-0000.parquet and so on, of which these columns are kept."""

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
    """Quora's table of question pairs: those that are duplicates, in the order in which they stand.

    Differs from DiffuSeq, whose division of the same 149,263 pairs was not published as a rule: sizes as there (2,048
    for validation, 2,500 for test, or a tenth each of a smaller table), which pairs by a seed.
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


def openqa(files: Files, most: int = 3) -> dict[str, Rows]:
    """Quasar-T as OpenQA (Lin et al. 2018) prepared it: from a passage that holds an answer, the question.

    Per question the first `most` such passages. Differs from DiffuSeq, whose choice of passages (117,000 in training)
    was not published as a rule.
    """
    (path,) = files.values()

    def rows(split: str) -> Iterator[dict[str, str]]:
        with member(path, f"quasart/{split}.txt") as questions, member(path, f"quasart/{split}.json") as passages:
            for line, (asked, found) in enumerate(zip(questions, passages, strict=False), start=1):
                try:
                    asked_row, documents = json.loads(asked), json.loads(found)
                    question, answers = asked_row["question"], [a.lower() for a in asked_row["answers"]]
                    texts = [d["document"] for d in documents]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}, {split}, line {line}: not OpenQA's form ({error!r}): fetch it again"
                    ) from None
                texts = [" ".join(t) if isinstance(t, list) else t for t in texts]
                question = " ".join(question) if isinstance(question, list) else question
                for text in [t for t in texts if any(a in t.lower() for a in answers)][:most]:
                    yield {"src": text, "trg": question}

    return {"train": rows("train"), "valid": rows("dev"), "test": rows("test")}


def parallel(files: Files) -> dict[str, Rows]:
    """train.src and train.dst, a sentence a line, that say the same; validation and test are cut when they are read."""
    (source,) = [path for name, path in files.items() if name.endswith(".src")]
    (target,) = [path for name, path in files.items() if name.endswith(".dst")]

    def rows() -> Iterator[dict[str, str]]:
        both = itertools.zip_longest(readers.lines(source), readers.lines(target))
        for left, right in both:
            if left is None or right is None:
                raise UserError(f"{source} and {target} have different numbers of lines: fetch both again")
            yield {"src": left[1], "trg": right[1]}

    return {"train": rows()}


_CONVERSATION = {"train": "trainset.txt", "valid": "validset.txt", "test": "testset.txt"}


def conversation(files: Files) -> dict[str, Rows]:
    """Commonsense Conversation: an object a line, post and response being lists of words."""

    def rows(name: str) -> Iterator[dict[str, str]]:
        archive = next((path for path in files.values() if path.suffix != ".txt"), None)
        with member(archive, name) if archive else _open(files[name]) as text:
            for line, raw in enumerate(text, start=1):
                try:
                    row = json.loads(raw)
                    yield {"src": " ".join(row["post"]), "trg": " ".join(row["response"])}
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{name}, line {line}: expected post and response ({error!r}): fetch it again"
                    ) from None

    return {split: rows(name) for split, name in _CONVERSATION.items()}
