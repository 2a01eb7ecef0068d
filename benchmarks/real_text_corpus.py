"""The corpora of benchmarks/real_text.py, and how each is divided: no system sees what judges it.

    train   texts of all systems
    valid   validation while they train
    test    references: samples are compared with these
    human   other human texts: the row that a perfect system would equal
    judge   texts of the judge that is trained from scratch; no system trains on them

Parts are drawn at random, always the same ones: a file may be sorted, and then the texts at its end have other
subjects. Neighbors in a file belong together (five captions of an image, texts of one source) and stay together.
References and human texts hold at most one text of a block, since what is compared should be drawn independently: with
five captions of each image on both sides, a judge tells the images of one side from those of the other. Training texts
that stand in another part are dropped.
"""

from __future__ import annotations

import filecmp
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dataset_utils import registry
from dataset_utils.options import DataOptions
from dataset_utils.splits import Split
from utils.errors import UserError
from utils.run_folder import write_json, write_text

VALID = 500  # texts for validation while training, at most
JUDGE_SHARE, MOST_JUDGE = 0.15, 30_000  # of the training texts; texts
RUN = 20  # blocks that are drawn together
PARTS = ("train", "valid", "test", "human", "judge")
PLAIN, CLASS, SOURCE = "plain", "class", "source"


@dataclass(frozen=True)
class CorpusRow:
    """A corpus of the study: its files below --data_dir, and what its systems are conditioned on."""

    train: str
    held_out: str
    condition: str = PLAIN
    block: int = 1  # neighboring rows that belong together; of sources, the rows of one source do
    mixed: bool = False  # whether every part is drawn from both files, since these have different subjects


CORPORA = {
    "flickr30k": CorpusRow("flickr30k/train.txt", "flickr30k/valid.txt", block=5),
    "roc": CorpusRow("ROCstory/roc_train.json", "ROCstory/roc_valid.json"),
    "coco": CorpusRow("coco/train.txt", "coco/valid.txt", mixed=True),
    "yelp": CorpusRow("yelp/train.jsonl", "yelp/valid.jsonl", CLASS),
    "commongen": CorpusRow("commongen/train.jsonl", "commongen/valid.jsonl", SOURCE),
    "e2e": CorpusRow("e2e_full/train.jsonl", "e2e_full/valid.jsonl", SOURCE),
}


@dataclass(frozen=True)
class Parts:
    """The parts of a corpus by name."""

    condition: str
    splits: dict[str, Split]
    class_names: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Split:
        return self.splits[name]

    def flags(self, folder: Path) -> list[str]:
        """The corpus, for every training program."""
        files = {f"--{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "valid", "test")}
        return [word for pair in files.items() for word in pair]


def make_parts(row: CorpusRow, data_dir: Path, num_samples: int, most_train: int | None = None) -> Parts:
    """Read a corpus and divide it. UserError if it is too small for so many samples."""
    files = {"train": data_dir / row.train, "valid": data_dir / row.held_out}
    for path in files.values():
        if not path.is_file():
            raise UserError(f"there is no file {path}: --data_dir names the folder that holds {row.train}")
    # the test split is not used: with the file of validation in its place nothing is cut from the training texts
    options = DataOptions(train_file=str(files["train"]), valid_file=str(files["valid"]), test_file=str(files["valid"]))
    corpus = registry.load(options)
    if row.condition == CLASS:
        corpus.require_classes("this corpus")
    return divide(corpus.train, corpus.valid, row, num_samples, tuple(corpus.class_names), most_train)


def divide(
    train: Split,
    held_out: Split,
    row: CorpusRow,
    num_samples: int,
    class_names: tuple[str, ...] = (),
    most_train: int | None = None,
) -> Parts:
    """Draw the parts: references and human texts from held-out texts, as far as they go, all others from the training
    texts.
    """
    if row.mixed:
        train, held_out = _join(train, held_out), held_out.select([])
    train = _in_random_order(_without_unused(train, row), row)
    held_out = _without_unused(held_out, row)
    if row.condition != SOURCE and row.block == 1:
        held_out = _in_random_order(held_out, row)
    cut = _Cutter(train, row)
    if row.condition == SOURCE:
        if len(set(held_out.sources or ())) < num_samples:
            num = len(set(held_out.sources or ()))
            raise UserError(f"{row.held_out} holds {num} sources, fewer than --num_samples {num_samples}: lower it")
        test = human = held_out  # the human text of a source is one of its references, compared with the others
    elif row.block > 1:
        test = _join(_spread(held_out, row.block), cut.take_spread(2 * num_samples - len(held_out) // row.block))
        human = cut.take_spread(2 * num_samples)
    elif len(held_out) >= 2 * num_samples:
        half = len(held_out) // 2
        test, human = held_out.select(range(half)), held_out.select(range(half, len(held_out)))
    elif len(held_out) >= num_samples:
        test, human = held_out, cut.take(num_samples)
    else:
        test, human = cut.take(num_samples), cut.take(num_samples)
    valid = cut.take(min(VALID, len(train) // 10))
    judge = cut.take(min(MOST_JUDGE, int(JUDGE_SHARE * len(train))))
    rest = cut.rest()
    other = {text for split in (test, human, valid, judge) for text in split.texts}
    sources = set() if rest.sources is None else {s for split in (test, human) for s in split.sources or ()}
    kept = [i for i, text in enumerate(rest.texts) if text not in other and _source(rest, i) not in sources]
    rest = rest.select(kept[:most_train])
    if len(test) < num_samples and row.condition != SOURCE:
        raise UserError(f"{len(test)} references are fewer than --num_samples {num_samples}: lower it")
    if len(rest) < 2:
        raise UserError(f"{len(train)} training texts are too few for {num_samples} samples: give fewer --num_samples")
    return Parts(
        row.condition, {"train": rest, "valid": valid, "test": test, "human": human, "judge": judge}, class_names
    )


def _source(split: Split, i: int) -> str | None:
    return None if split.sources is None else split.sources[i]


def _without_unused(split: Split, row: CorpusRow) -> Split:
    """Labels and sources only where the corpus is conditioned on them."""
    return Split(
        split.texts,
        split.labels if row.condition == CLASS else None,
        split.sources if row.condition == SOURCE else None,
    )


def _in_random_order(split: Split, row: CorpusRow) -> Split:
    """The split with its groups of neighbors in a random order."""
    groups = [list(group) for group in _groups(split, row)]
    random.Random("parts").shuffle(groups)
    return split.select([i for group in groups for i in group])


def _groups(split: Split, row: CorpusRow) -> Iterator[Sequence[int]]:
    """Rows that stay together: those of a source; a run of blocks; else one row.

    Some blocks lack a row, so that one may begin anywhere. Of each run the last rows are left out, in which a block may
    lie that goes on in the next run.
    """
    if split.sources is not None:
        for _, group in groupby(range(len(split)), key=split.sources.__getitem__):
            yield list(group)
    elif row.block > 1:
        for start in range(0, len(split), RUN * row.block):
            end = min(start + RUN * row.block, len(split))
            yield range(start, end if end == len(split) else end - row.block + 1)
    else:
        yield from ([i] for i in range(len(split)))


def _spread(split: Split, block: int) -> Split:
    """Every sixth text of blocks of five: of each block at most one, and as many of each place in a block.

    Flickr30k's captions of an image stand in the order of their lengths, so that one place alone would have its own
    distribution. Rows of a block may begin anywhere, where a caption is missing.
    """
    return split.select(range(0, len(split), block + 1))


def _join(first: Split, second: Split) -> Split:
    """The texts of both; corpora with blocks have neither labels nor sources."""
    return Split([*first.texts, *second.texts])


class _Cutter:
    """Takes whole blocks from the end of a split."""

    def __init__(self, split: Split, row: CorpusRow) -> None:
        self.split, self.row, self.end = split, row, len(split)

    def take(self, n: int) -> Split:
        start = max(0, self.end - n)
        start -= start % self.row.block
        while self.split.sources and start > 0 and self.split.sources[start] == self.split.sources[start - 1]:
            start -= 1
        taken = self.split.select(range(start, self.end))
        self.end = start
        return taken

    def take_spread(self, n: int) -> Split:
        """From n blocks at most one text each; the others of these blocks are in no part."""
        return _spread(self.take(max(0, n) * self.row.block), self.row.block)

    def rest(self) -> Split:
        return self.split.select(range(self.end))


def write_parts(parts: Parts, folder: Path) -> None:
    """Each part as a JSON-lines file that every program of the project reads, and parts.json, written last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        write_text(folder / f"{name}.jsonl", "".join(_lines(parts[name], parts.class_names)))
    sizes = {name: len(parts[name]) for name in PARTS}
    write_json(
        folder / "parts.json",
        {"condition": parts.condition, "class_names": list(parts.class_names), "sizes": sizes},
    )


def read_parts(folder: Path) -> Parts:
    """What write_parts wrote. UserError if the folder holds no such corpus."""
    try:
        record = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
        names = tuple(record["class_names"])
        splits = {part: _read_split(folder / f"{part}.jsonl", names) for part in PARTS}
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder} holds no divided corpus: run the row corpus first") from None
    return Parts(record["condition"], splits, names)


def is_training_part(trained_on: str | None, folder: Path) -> bool:
    """Whether the file that a run was trained on is the training part of this folder, or a copy of it."""
    if trained_on is None:
        return False
    file, part = Path(trained_on), folder / "train.jsonl"
    return file.resolve() == part.resolve() or (file.is_file() and filecmp.cmp(file, part, shallow=False))


def _lines(split: Split, class_names: Sequence[str]) -> list[str]:
    rows: list[dict[str, Any]] = [{"text": text} for text in split.texts]
    for i, row in enumerate(rows):
        if split.labels is not None:
            row["label"] = class_names[split.labels[i]]
        if split.sources is not None:
            row["source"], row["target"] = split.sources[i], row.pop("text")
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]


def _read_split(path: Path, class_names: Sequence[str]) -> Split:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    texts = [row.get("text", row.get("target")) for row in rows]
    labels = [class_names.index(row["label"]) for row in rows] if rows and "label" in rows[0] else None
    sources = [row["source"] for row in rows] if rows and "source" in rows[0] else None
    return Split(texts, labels, sources)
