"""Corpora by name: a row of data each, and `load`, which turns a name or the user's own files into a corpus.

To add a corpus, add a row. Where its files have a format of their own, add a function to `readers`.
Knows files and the hub; not tokenizers, not models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_utils import readers
from dataset_utils.columns import (
    Columns,
    RawSplit,
    assemble,
    class_name,
    class_number,
    find_classes,
    finish,
    half,
    nearest,
)
from dataset_utils.corpus import SPLITS, Corpus, Split
from dataset_utils.hub import HubSource
from dataset_utils.options import DataOptions
from dataset_utils.splits import complete, concatenate, divide_valid
from dataset_utils.tales_grammar import TOPICS
from utils.errors import UserError

Divide = Callable[[dict[str, Split], int, list[str]], dict[str, Split]]

# What the three splits are called in file names, the first being ours.
FILE_STEMS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def tidy(text: str) -> str:
    """Undo tokenization: join punctuation and contractions to the word before (Hugging Face's clean-up)."""
    for apart, joined in _TIDY:
        text = text.replace(apart, joined)
    return text


_TIDY = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


@dataclass(frozen=True)
class DatasetSpec:
    """What is to be known of a corpus. Lengths in tokens."""

    origin: str = ""  # where to get it, as an order; {place} is its folder
    folders: tuple[str, ...] = ()  # below the data root
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> names; none: train.jsonl and the like
    read: readers.Reader | None = None  # None: by the end of the file's name
    hub: HubSource | None = None  # where it is fetched from when no file is there
    text: str | None = "text"
    source: str | None = None
    label: str | None = None
    label_file: str | None = None  # `text <tab> label` lines, beside files that hold the text alone
    class_names: tuple[str, ...] = ()
    class_of: Callable[[Any, Sequence[str]], int] = class_number
    clean: Callable[[str], str] | None = None
    divide: Divide | None = None
    max_tokens: int = 64
    max_source_tokens: int = 64
    language: str | None = "en"  # of the text, ISO 639-1; None: not known
    source_language: str | None = "en"
    metrics: tuple[str, ...] = ()  # of seq2seq


_MINIMAL = "get it from https://github.com/madaan/minimal-text-diffusion (its folder data)"
_TALES = "make it with `python -m dataset_utils.tales --output_dir {place}`"


def _wmt14(source: str, target: str) -> DatasetSpec:
    return DatasetSpec(
        origin="get it from https://www.statmt.org/wmt14, as train.jsonl, valid.jsonl and test.jsonl with de and en",
        folders=("wmt14",), hub=HubSource("wmt/wmt14", "de-en"), text=target, source=source, clean=tidy,
        language=target, source_language=source, metrics=("sacrebleu", "bertscore"),
    )  # fmt: skip


DATASETS: dict[str, DatasetSpec] = {
    "tales": DatasetSpec(
        origin=_TALES, folders=("tales",), label="label", class_names=tuple(TOPICS)),
    "tales-pairs": DatasetSpec(
        origin=_TALES, folders=("tales",), files={s: (f"pairs_{s}.jsonl",) for s in SPLITS},
        text="trg", source="src", metrics=("bleu", "rouge", "bertscore")),
    "roc": DatasetSpec(
        origin="ask for it at https://cs.rochester.edu/nlp/rocstories, and write roc_train.json and roc_valid.json, "
               'a list ["story"] per line',
        folders=("ROCstory", "roc"), read=readers.rocstories, divide=divide_valid,
        files={"train": ("roc_train.json", "train.json"), "valid": ("roc_valid.json", "valid.json", "val.json"),
               "test": ("roc_test.json", "test.json")}),
    "e2e": DatasetSpec(
        origin="get src1_train.txt, src1_valid.txt and src1_test.txt from https://github.com/XiangLisaLi2/Diffusion-LM",
        folders=("e2e_data", "e2e"), read=readers.e2e, clean=tidy,
        files={s: (f"src1_{s}.txt", *(f"{stem}.txt" for stem in FILE_STEMS[s])) for s in SPLITS}),
    "sst": DatasetSpec(
        origin="get it from https://nlp.stanford.edu/sentiment, as train.jsonl and valid.jsonl with sentence and label",
        folders=("sst",), hub=HubSource("stanfordnlp/sst", revision="refs/convert/parquet"),
        text="sentence", label="label", class_names=("negative", "positive"), class_of=half, clean=tidy),
    # Differs from the reference's second release, which keeps the description alone: title and description.
    "ag_news": DatasetSpec(
        origin="get https://huggingface.co/datasets/fancyzhx/ag_news, as train.jsonl and test.jsonl, text and label",
        folders=("ag_news",), hub=HubSource("fancyzhx/ag_news"),
        label="label", class_names=("world", "sports", "business", "sci_tech"), clean=tidy),
    "xsum": DatasetSpec(
        origin="get it from https://github.com/EdinburghNLP/XSum, as train.jsonl, valid.jsonl and test.jsonl "
               "with document and summary",
        folders=("xsum",), hub=HubSource("EdinburghNLP/xsum", revision="refs/convert/parquet"),
        text="summary", source="document", clean=tidy, max_source_tokens=256, metrics=("rouge", "bertscore")),
    "qqp": DatasetSpec(
        origin="get it from https://github.com/Shark-NLP/DiffuSeq (its QQP), as train.jsonl, valid.jsonl and "
               "test.jsonl with src and trg",
        folders=("qqp", "QQP"), text="trg", source="src", metrics=("bleu", "rouge", "bertscore")),
    "wmt14-de-en": _wmt14("de", "en"),
    "wmt14-en-de": _wmt14("en", "de"),
    "wmt14-de-de": _wmt14("de", "de"),  # for autoencoders of one language
    "wmt14-en-en": _wmt14("en", "en"),
    "simple": DatasetSpec(
        origin=_MINIMAL, folders=("simple",), read=readers.plain,
        label_file="simple_labeled.tsv", class_names=("0", "1"),
        files={"train": ("simple-train.txt",), "valid": ("simple-valid.txt",), "test": ("simple-test.txt",)}),
    "greetings": DatasetSpec(  # its labels leave out some lines: not used
        origin=_MINIMAL, folders=("greetings",), read=readers.plain,
        files={"train": ("greetings-train.txt",), "valid": ("greetings-valid.txt",), "test": ("greetings-test.txt",)}),
}  # fmt: skip


def load(options: DataOptions, *, seed: int = 42) -> Corpus:
    """The corpus that the flags name: a row of the registry, several joined by "+", or the user's own files.

    seed: of the splits that have to be cut. Leave it alone (it is not the seed of a run): else one run trains on what
    another one is tested on. Errors: UserError in one line.
    """
    if options.max_train_texts is not None and options.max_train_texts < 1:
        raise UserError(f"--max_train_texts {options.max_train_texts} leaves nothing to train on: pass 1 or more")
    names = _names(options)
    parts = [_load_named(name, options, seed) for name in names] if names else [_load_own(options, seed)]
    corpus = parts[0] if len(parts) == 1 else _join(parts)
    limit = options.max_train_texts
    if limit is not None and limit < len(corpus.train):
        corpus.notes.append(f"only the first {limit} of {len(corpus.train)} training rows are used (--max_train_texts)")
        corpus.splits["train"] = corpus.train.take(range(limit))
    return corpus


def find(options: DataOptions) -> str | None:
    """None where the corpus is on this disk; else one line that says where to get it. Nothing is read or fetched."""
    names = _names(options)
    if not names:
        missing = [path for path in _own_files(options).values() if not path.is_file()]
        return f"there is no file {missing[0]}: check the path" if missing else None
    absent = [name for name in names if "train" not in _locate(DATASETS[name], options.data_dir)]
    return _absent(absent[0], options.data_dir) if absent else None


def languages(options: DataOptions) -> tuple[str | None, str | None]:
    """Languages of the texts and of their sources, ISO 639-1; None where they are not known. Nothing is read."""
    specs = [DATASETS[name] for name in _names(options)]
    return _common([spec.language for spec in specs]), _common([spec.source_language for spec in specs])


def _common(values: Sequence[str | None]) -> str | None:
    """What all of them are; None where they differ, or where there are none."""
    return values[0] if len(set(values)) == 1 else None


def _names(options: DataOptions) -> list[str]:
    """Names of registry rows, checked; empty where the user's own files are meant."""
    own = [flag for flag in ("train_file", "valid_file", "test_file") if getattr(options, flag)]
    if not options.dataset_name:
        if own and options.data_dir:
            raise UserError(f"--data_dir and --{own[0]} name two corpora: pass one of them")
        if own and not options.train_file:
            raise UserError(f"--{own[0]} needs --train_file beside it: name the training texts too")
        if not own and not options.data_dir:
            raise UserError(
                f"no corpus is named: pass --dataset_name (one of {', '.join(DATASETS)}), or --train_file FILE"
            )
        return []
    if own:
        raise UserError(f"--dataset_name {options.dataset_name} and --{own[0]} name two corpora: pass one of them")
    names = []
    for part in options.dataset_name.split("+"):
        name = part.strip().lower()
        if name not in DATASETS:
            raise UserError(
                f"unknown dataset {part.strip()!r}{nearest(name, DATASETS)}: --dataset_name is one of "
                f"{', '.join(DATASETS)}, or several joined by '+'; --train_file takes your own"
            )
        names.append(name)
    return names


# ------------------------------------------------------------------------------------------------ files


def _roots(data_dir: str | None) -> list[Path]:
    if data_dir:
        return [Path(data_dir).expanduser()]
    return [Path("datasets"), Path(__file__).resolve().parent.parent / "datasets"]


def _file(folder: Path, split: str, names: Sequence[str] = ()) -> Path | None:
    """The file of a split in a folder: by the given names, or train.jsonl and the like."""
    usual = (stem + suffix for stem in FILE_STEMS[split] for suffix in readers.BY_SUFFIX)
    return next((folder / name for name in (names or usual) if (folder / name).is_file()), None)


def _locate(spec: DatasetSpec, data_dir: str | None) -> dict[str, Path]:
    """split -> file, of the first folder that holds training texts: below the root, or, if typed, the root itself."""
    folders = [root / name for root in _roots(data_dir) for name in spec.folders]
    folders += _roots(data_dir) if data_dir else []
    for folder in folders:
        found = {split: path for split in SPLITS if (path := _file(folder, split, spec.files.get(split, ())))}
        if "train" in found:
            return found
    return {}


def _absent(name: str, data_dir: str | None) -> str:
    spec = DATASETS[name]
    place = _roots(data_dir)[0] / spec.folders[0]
    fetch = f"; with a network it is fetched from the hub ({spec.hub.path})" if spec.hub else ""
    return f"{name} is not in {place}: {spec.origin.replace('{place}', str(place))}{fetch}"


def _own_files(options: DataOptions) -> dict[str, Path]:
    if options.train_file:
        typed = {split: getattr(options, f"{split}_file") for split in SPLITS}
        return {split: Path(name).expanduser() for split, name in typed.items() if name}
    assert options.data_dir is not None
    folder = Path(options.data_dir).expanduser()
    if not folder.is_dir():
        return {"train": folder}
    found = {split: path for split in SPLITS if (path := _file(folder, split))}
    if "train" not in found:
        near = next((name for name, spec in DATASETS.items() if "train" in _locate(spec, options.data_dir)), None)
        raise UserError(
            f"{folder} holds no train{'|'.join(readers.BY_SUFFIX)}: name the files with --train_file"
            + (f", or pass --dataset_name {near} too" if near else "")
        )
    return found


# ------------------------------------------------------------------------------------------------ loading


def _load_named(name: str, options: DataOptions, seed: int) -> Corpus:
    spec = DATASETS[name]
    columns = Columns(
        options.text_column or spec.text, options.source_column or spec.source, options.label_column or spec.label
    )
    files = _locate(spec, options.data_dir)
    tables: dict[str, tuple[str, Iterator[readers.Row]]]
    if files:
        tables = {split: (str(path), (spec.read or readers.by_suffix(path))(path)) for split, path in files.items()}
    elif spec.hub:
        tables = spec.hub.rows(_absent(name, options.data_dir))
    else:
        raise UserError(_absent(name, options.data_dir))
    raw = {split: assemble(rows, columns, where, spec.clean) for split, (where, rows) in tables.items()}
    if files and spec.label_file:
        _join_labels(raw, files["train"].with_name(spec.label_file), spec)
    return _corpus(name, raw, spec, seed)


def _load_own(options: DataOptions, seed: int) -> Corpus:
    files = _own_files(options)
    for path in files.values():
        if not path.exists():
            raise UserError(f"there is no file {path}: check the path")
    columns = Columns(options.text_column, options.source_column, options.label_column, guess=True)
    raw: dict[str, RawSplit] = {}
    for split, path in files.items():  # train first: the others must have the columns that were found there
        raw[split] = assemble(readers.by_suffix(path)(path), columns, str(path))
        columns = raw[split].columns
    name = files["train"].stem if options.train_file else files["train"].parent.resolve().name
    metrics = ("bleu", "rouge", "bertscore") if columns.source else ()
    spec = DatasetSpec(class_of=class_name, language=None, source_language=None, metrics=metrics)
    return _corpus(name, raw, spec, seed)


def _join_labels(raw: Mapping[str, RawSplit], path: Path, spec: DatasetSpec) -> None:
    """Look every text up in a file of `text <tab> label`. Without the file the corpus simply has no labels."""
    if not path.is_file():
        return
    label_of = {row["text"].strip(): row["label"] for _, row in readers.labelled_lines(path)}
    for split in raw.values():
        for line, text in zip(split.lines, split.texts, strict=True):
            if text not in label_of:
                raise UserError(
                    f"{split.where}, line {line}: no label for {text[:40]!r} in {path}: add it, or remove that file"
                )
        split.labels = [label_of[text] for text in split.texts]


def _corpus(name: str, raw: Mapping[str, RawSplit], spec: DatasetSpec, seed: int) -> Corpus:
    notes = [f"{split.empty} blank rows of {split.where} left out" for split in raw.values() if split.empty]
    labels = raw["train"].labels
    class_names: tuple[str, ...] = ()
    if labels is not None:
        class_names = spec.class_names or find_classes(labels)
    splits = {split: finish(rows, class_names, spec.class_of) for split, rows in raw.items()}
    if spec.divide:
        splits = spec.divide(splits, seed, notes)
    return Corpus(name, complete(splits, seed, notes), spec, notes, class_names)


def _join(parts: Sequence[Corpus]) -> Corpus:
    splits = {split: concatenate([part.splits[split] for part in parts]) for split in SPLITS}
    notes = [f"{part.name}: {note}" for part in parts for note in part.notes]
    if any(part.num_classes for part in parts):
        notes.append("labels dropped: those of different corpora mean different things")
    if splits["train"].sources is None and any(part.train.sources for part in parts):
        notes.append("sources dropped: not all of the joined corpora have them")
    spec = DatasetSpec(
        max_tokens=max(part.spec.max_tokens for part in parts),
        max_source_tokens=max(part.spec.max_source_tokens for part in parts),
        language=_common([part.spec.language for part in parts]),
        source_language=_common([part.spec.source_language for part in parts]),
        metrics=parts[0].spec.metrics if splits["train"].sources else (),
    )
    return Corpus("+".join(part.name for part in parts), splits, spec, notes)
