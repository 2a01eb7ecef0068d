"""Corpora by name: `load` turns a row of the catalog, a hub id or the user's own files into a corpus.

Knows files and the hub; not tokenizers, not models. The rows themselves stand in `catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dataset_utils import readers, user_files
from dataset_utils.catalog import DATASETS, PARAPHRASE, DatasetSpec
from dataset_utils.columns import (
    NO_COLUMN,
    Columns,
    RawSplit,
    assemble,
    class_name,
    class_number,
    find_classes,
    finish,
    nearest,
)
from dataset_utils.corpus import Corpus
from dataset_utils.hub import parse_id
from dataset_utils.options import DataOptions
from dataset_utils.splits import SPLITS, complete, concatenate
from dataset_utils.user_files import find_file
from utils.errors import UserError

UNKNOWN = DatasetSpec(class_of=class_name, language=None, source_language=None)  # of a corpus without a row


def load(options: DataOptions, *, seed: int = 42) -> Corpus:
    """The corpus that the flags name: a row of the registry, several joined by "+", or the user's own files.

    seed: of the splits that have to be cut. Leave it alone (it is not the seed of a run): else one run trains on what
    another one is tested on. Errors: UserError in one line.
    """
    if options.max_train_texts is not None and options.max_train_texts < 1:
        raise UserError(f"--max_train_texts {options.max_train_texts} leaves nothing to train on: pass 1 or more")
    names = _names(options)
    parts = [_load_part(name, options, seed) for name in names] if names else [_load_own(options, seed)]
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
    for name in names:
        if name not in DATASETS:
            return f"{name} is fetched from the hub, or from what an earlier run fetched, when it is needed"
        if "train" not in _locate(DATASETS[name], options.data_dir):
            return _absent(name, options.data_dir)
    return None


def languages(options: DataOptions) -> tuple[str | None, str | None]:
    """Languages of the texts and of their sources, ISO 639-1; None where they are not known. Nothing is read."""
    specs = [DATASETS.get(name, UNKNOWN) for name in _names(options)]
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
        name = part.strip() if "/" in part else part.strip().lower()
        if name not in DATASETS and "/" not in name:
            raise UserError(
                f"unknown dataset {part.strip()!r}{nearest(name, DATASETS)}: --dataset_name is one of "
                f"{', '.join(DATASETS)}, a hub id (org/name), or several joined by '+'; --train_file takes your own"
            )
        names.append(name)
    return names


# ------------------------------------------------------------------------------------------------ files


def _roots(data_dir: str | None) -> list[Path]:
    if data_dir:
        return [Path(data_dir).expanduser()]
    return [Path("datasets"), Path(__file__).resolve().parent.parent / "datasets"]


def _locate(spec: DatasetSpec, data_dir: str | None) -> dict[str, Path]:
    """split -> file, of the first folder that holds training texts: below the root, or, if typed, the root itself."""
    folders = [root / name for root in _roots(data_dir) for name in spec.folders]
    folders += _roots(data_dir) if data_dir else []
    for folder in folders:
        found = {split: path for split in SPLITS if (path := find_file(folder, split, spec.files.get(split, ())))}
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
    found = user_files.in_folder(folder)
    if "train" not in found:
        near = next((name for name, spec in DATASETS.items() if "train" in _locate(spec, options.data_dir)), None)
        raise UserError(
            f"{folder} holds no train{'|'.join(readers.BY_SUFFIX)}: name the files with --train_file"
            + (f", or pass --dataset_name {near} too" if near else "")
        )
    return found


# ------------------------------------------------------------------------------------------------ loading


def _load_part(name: str, options: DataOptions, seed: int) -> Corpus:
    return _load_named(name, options, seed) if name in DATASETS else _load_hub(name, options, seed)


def _load_named(name: str, options: DataOptions, seed: int) -> Corpus:
    spec = DATASETS[name]
    columns = Columns(
        options.text_column or spec.text, options.source_column or spec.source, options.label_column or spec.label
    )
    files = _locate(spec, options.data_dir)
    if files:
        tables = {split: (str(path), (spec.read or readers.by_suffix(path))(path)) for split, path in files.items()}
    elif spec.hub:
        tables = spec.hub.rows(_absent(name, options.data_dir)).tables
    else:
        raise UserError(_absent(name, options.data_dir))
    raw = {split: assemble(rows, columns, where, spec.clean) for split, (where, rows) in tables.items()}
    if files and spec.label_file and options.label_column is None:
        _join_labels(raw, files["train"].with_name(spec.label_file), spec)
    if options.label_column not in (None, spec.label, NO_COLUMN):
        spec = replace(spec, class_names=(), class_of=class_name)  # another column: its classes are its own
    return _corpus(name, raw, spec, seed)


def _load_hub(name: str, options: DataOptions, seed: int) -> Corpus:
    """Any repository of the hub whose files are data: columns by flag or by their usual names."""
    found = parse_id(name).rows(f"{name} cannot be had from the hub: check the name, or give files with --train_file")
    columns = Columns(options.text_column, options.source_column, options.label_column, guess=True)
    raw: dict[str, RawSplit] = {}
    for split, (where, rows) in found.tables.items():
        raw[split] = assemble(rows, columns, where)
        columns = raw[split].columns
    named = found.class_names.get(columns.label or "", ())
    return _own_corpus(
        name, raw, columns, DatasetSpec(class_names=named, class_of=class_number if named else class_name), seed
    )


def _load_own(options: DataOptions, seed: int) -> Corpus:
    files = _own_files(options)
    columns = asked = Columns(options.text_column, options.source_column, options.label_column, guess=True)
    raw: dict[str, RawSplit] = {}
    for split, path in files.items():  # train first: the others must have the columns that were found there
        raw[split] = assemble(user_files.rows(path, asked), columns, str(path))
        columns = raw[split].columns
    name = user_files.stem(files["train"]) if options.train_file else files["train"].parent.resolve().name
    return _own_corpus(name, raw, columns, UNKNOWN, seed)


def _own_corpus(name: str, raw: Mapping[str, RawSplit], columns: Columns, spec: DatasetSpec, seed: int) -> Corpus:
    """A corpus without a row: what was taken for what is said, since it may have been guessed."""
    corpus = _corpus(name, raw, replace(spec, metrics=PARAPHRASE if columns.source else ()), seed)
    taken = {"source": columns.source, "text": columns.text, "label": columns.label}
    corpus.notes.insert(0, "columns: " + ", ".join(f"{role} = {column}" for role, column in taken.items() if column))
    return corpus


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
    notes = [note for split in raw.values() for note in split.notes()]
    train = raw["train"]
    class_names: tuple[str, ...] = ()
    if train.labels is not None:
        class_names = spec.class_names or find_classes(train.labels, train.where, train.columns.label)
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
