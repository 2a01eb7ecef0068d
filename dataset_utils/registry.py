"""Load a corpus: `load` takes a name of the catalog, a hub id, or the user's own files.

This module reads files and the hub; it needs no tokenizer and no model. The rows are in `catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dataset_utils import readers, user_files
from dataset_utils.catalog import DATASETS, PARAPHRASE_METRICS, DatasetSpec
from dataset_utils.class_indices import find_classes, lookup_label, parse_class_label, to_split
from dataset_utils.columns import NO_COLUMN, Columns
from dataset_utils.corpus import Corpus
from dataset_utils.grouped_split import cut_by_groups
from dataset_utils.hub import parse_id
from dataset_utils.options import DataOptions
from dataset_utils.raw_split import RawSplit, collect_rows
from dataset_utils.source_files import read_sources
from dataset_utils.splits import SPLITS, Split, concatenate, fill_missing_splits, permutation
from dataset_utils.user_files import find_file
from utils.errors import UserError, did_you_mean

NOT_IN_CATALOG = DatasetSpec(label_to_index=lookup_label, language=None, source_language=None)


def load(options: DataOptions, *, seed: int = 42) -> Corpus:
    """The corpus that the flags name: a row of the catalog, a hub id, several of these joined by "+", or own files.

    seed: of --max_train_texts and of splits that are taken from the training data. It is not the seed of a run, and
    should stay at its default: otherwise one run trains on texts that another run is tested on. Raises UserError, in
    one line.
    """
    if options.max_train_texts is not None and options.max_train_texts < 1:
        raise UserError(f"--max_train_texts {options.max_train_texts} leaves no training texts: pass 1 or more")
    names = _dataset_names(options)
    parts = [_load_part(name, options, seed) for name in names] if names else [_load_user_files(options, seed)]
    corpus = parts[0] if len(parts) == 1 else _join(parts)
    limit = options.max_train_texts
    if limit is not None and limit < len(corpus.train):
        corpus.notes.append(f"{limit} of {len(corpus.train)} training rows are drawn at random (--max_train_texts)")
        # a smaller number draws some of the same rows; files are often sorted, so the first ones are of one kind
        corpus.splits["train"] = corpus.train.select(sorted(permutation(len(corpus.train), seed)[:limit]))
    return corpus


def missing_files_message(options: DataOptions) -> str | None:
    """None if the corpus is on this disk; otherwise one line on where to get it. Nothing is read or downloaded."""
    names = _dataset_names(options)
    if not names:
        missing = [path for path in _user_files(options).values() if not path.is_file()]
        return f"there is no file {missing[0]}: check the path" if missing else None
    for name in names:
        if name not in DATASETS:
            return f"{name} will be downloaded from the hub, unless an earlier run has downloaded it"
        if "train" not in _find_files(DATASETS[name], options.data_dir):
            return _download_hint(name, options.data_dir)
    return None


def languages(options: DataOptions) -> tuple[str | None, str | None]:
    """Languages of texts and of sources (ISO 639-1); None where unknown. Nothing is read."""
    specs = [DATASETS.get(name, NOT_IN_CATALOG) for name in _dataset_names(options)]
    return _common([spec.language for spec in specs]), _common([spec.source_language for spec in specs])


def _common(values: Sequence[str | None]) -> str | None:
    """The value that all items share; None where they differ, or for an empty list."""
    return values[0] if len(set(values)) == 1 else None


def _dataset_names(options: DataOptions) -> list[str]:
    """Names in --dataset_name, checked; empty where the flags name the user's own files."""
    own = [flag for flag in ("train_file", "valid_file", "test_file") if getattr(options, flag)]
    if not options.dataset_name:
        if own and options.data_dir:
            raise UserError(f"--data_dir and --{own[0]} name two corpora: pass only one of them")
        if own and not options.train_file:
            raise UserError(f"--{own[0]} needs --train_file: name the training texts too")
        if not own and not options.data_dir:
            raise UserError(
                f"no corpus is named: pass --dataset_name (one of {', '.join(DATASETS)}), or --train_file FILE"
            )
        return []
    if own:
        raise UserError(f"--dataset_name {options.dataset_name} and --{own[0]} name two corpora: pass only one of them")
    names = []
    for part in options.dataset_name.split("+"):
        name = part.strip() if "/" in part else part.strip().lower()
        if name not in DATASETS and "/" not in name:
            raise UserError(
                f"unknown dataset {part.strip()!r}{did_you_mean(name, DATASETS)}: --dataset_name is one of "
                f"{', '.join(DATASETS)}, a hub id (org/name), or several joined by '+'; own files: --train_file"
            )
        names.append(name)
    return names


# ------------------------------------------------------------------------------------------------ files


def _data_roots(data_dir: str | None) -> list[Path]:
    if data_dir:
        return [Path(data_dir).expanduser()]
    return [Path("datasets"), Path(__file__).resolve().parent.parent / "datasets"]


def _find_files(spec: DatasetSpec, data_dir: str | None) -> dict[str, Path]:
    """split -> file, in the first folder with training texts: below the root, or the root itself if it is data_dir."""
    folders = [root / name for root in _data_roots(data_dir) for name in spec.folders]
    folders += _data_roots(data_dir) if data_dir else []
    for folder in folders:
        found = {split: path for split in SPLITS if (path := find_file(folder, split, spec.files.get(split, ())))}
        if "train" in found:
            return found
    return {}


def _download_hint(name: str, data_dir: str | None) -> str:
    spec = DATASETS[name]
    root = _data_roots(data_dir)[0]
    if data_dir and root.is_file():
        return f"{name} is not in --data_dir {data_dir}, which is a file: name it with --train_file"
    place = root / spec.folders[0]
    absent = f"there is no folder {root}: check --data_dir, or " if data_dir and not root.exists() else ""
    fetch = f"; with a network it is downloaded from the hub ({spec.hub.path})" if spec.hub else ""
    get = spec.how_to_get.replace("{place}", str(place))
    return f"{name} is not in {place}: {absent}{get}{fetch}; if it is elsewhere, name its folder with --data_dir"


def _user_files(options: DataOptions) -> dict[str, Path]:
    if options.train_file:
        typed = {split: getattr(options, f"{split}_file") for split in SPLITS}
        return {split: Path(name).expanduser() for split, name in typed.items() if name}
    assert options.data_dir is not None
    folder = Path(options.data_dir).expanduser()
    found = user_files.find_files(folder)
    if "train" not in found:
        near = next((name for name, spec in DATASETS.items() if "train" in _find_files(spec, options.data_dir)), None)
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
    files = _find_files(spec, options.data_dir)
    if files:
        tables = {split: (str(path), (spec.read or readers.by_suffix(path))(path)) for split, path in files.items()}
    elif spec.hub:
        tables = spec.hub.load(_download_hint(name, options.data_dir)).tables
    else:
        raise UserError(_download_hint(name, options.data_dir))
    raw = {split: collect_rows(rows, columns, where, spec.clean) for split, (where, rows) in tables.items()}
    if files and spec.label_file and options.label_column is None:
        _join_labels(raw, files["train"].with_name(spec.label_file), spec)
    if options.label_column not in (None, spec.label, NO_COLUMN):
        spec = replace(spec, class_names=(), label_to_index=lookup_label)  # another column has other classes
    return _corpus(name, raw, spec, seed)


def _load_hub(name: str, options: DataOptions, seed: int) -> Corpus:
    """A data repository of the hub; its columns are named by flags, or found by their usual names."""
    hint = f"{name} could not be loaded from the hub: check the name, or give files with --train_file"
    found = parse_id(name).load(hint)
    columns = Columns(options.text_column, options.source_column, options.label_column, guess=True)
    raw: dict[str, RawSplit] = {}
    for split, (where, rows) in found.tables.items():
        raw[split] = collect_rows(rows, columns, where)
        columns = raw[split].columns
    named = found.class_names.get(columns.label or "", ())
    spec = DatasetSpec(class_names=named, label_to_index=parse_class_label if named else lookup_label)
    return _uncatalogued_corpus(name, raw, columns, spec, seed)


def _load_user_files(options: DataOptions, seed: int) -> Corpus:
    files = _user_files(options)
    columns = asked = Columns(options.text_column, options.source_column, options.label_column, guess=True)
    raw: dict[str, RawSplit] = {}
    for split, path in files.items():  # train comes first: the other splits must have the same columns
        alone = None if split == "train" else read_sources(path, columns)
        raw[split] = alone or collect_rows(user_files.read_rows(path, asked), columns, str(path))
        columns = raw[split].columns
    name = user_files.corpus_name(files["train"]) if options.train_file else files["train"].parent.resolve().name
    return _uncatalogued_corpus(name, raw, columns, NOT_IN_CATALOG, seed)


def _uncatalogued_corpus(
    name: str, raw: Mapping[str, RawSplit], columns: Columns, spec: DatasetSpec, seed: int
) -> Corpus:
    """A corpus that is not in the catalog. A note names the columns, since they may have been guessed."""
    corpus = _corpus(name, raw, replace(spec, metrics=PARAPHRASE_METRICS if columns.source else ()), seed)
    by_role = {"source": columns.source, "text": columns.text, "label": columns.label}
    corpus.notes.insert(0, "columns: " + ", ".join(f"{role} = {column}" for role, column in by_role.items() if column))
    return corpus


def _join_labels(raw: Mapping[str, RawSplit], path: Path, spec: DatasetSpec) -> None:
    """Look up the label of every text in a file of `text <tab> label` lines. Without the file there are no labels."""
    if not path.is_file():
        return
    label_of = {row["text"].strip(): row["label"] for _, row in readers.labeled_lines(path)}
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
    splits = {split: to_split(rows, class_names, spec.label_to_index) for split, rows in raw.items()}
    label_values = _label_values(train.labels or (), splits["train"].labels or (), len(class_names))
    if spec.split_fn:
        splits = spec.split_fn(splits, seed, notes)
    found = train.columns
    by_role = {"source": found.source, "text": found.text, "label": found.label}
    columns = {role: column for role, column in by_role.items() if column}
    return Corpus(
        name, _fill_missing(splits, spec, seed, notes), spec, notes, class_names,
        files={split: rows.where for split, rows in raw.items()}, columns=columns,
        label_values=label_values, unused_columns=tuple(name for name in train.names if name not in found.names()),
    )  # fmt: skip


def _fill_missing(splits: dict[str, Split], spec: DatasetSpec, seed: int, notes: list[str]) -> dict[str, Split]:
    """Cut the missing splits. Texts of the catalog keep the rows that published runs held out; others go by groups."""
    if spec.folders and splits["train"].sources is None:
        return fill_missing_splits(splits, seed, notes)
    missing = [name for name in SPLITS if name not in splits]
    filled = cut_by_groups(splits, missing, seed, notes) if missing else splits
    return {name: filled[name] for name in SPLITS}


def _label_values(labels: Sequence[str], indices: Sequence[int], num_classes: int) -> tuple[str, ...]:
    """The label of each class in a file; its index where several labels are one class, as for scores."""
    found: list[set[str]] = [set() for _ in range(num_classes)]
    for label, index in set(zip(labels, indices, strict=True)):
        found[index].add(label)
    if all(len(of_class) == 1 for of_class in found):
        return tuple(min(of_class) for of_class in found)
    return tuple(map(str, range(num_classes)))


def _join(parts: Sequence[Corpus]) -> Corpus:
    splits = {split: concatenate([part.splits[split] for part in parts]) for split in SPLITS}
    notes = [f"{part.name}: {note}" for part in parts for note in part.notes]
    if any(part.num_classes for part in parts):
        notes.append("labels dropped: those of different corpora are not comparable")
    if splits["train"].sources is None and any(part.train.sources for part in parts):
        notes.append("sources dropped: not all of the joined corpora have sources")
    spec = DatasetSpec(
        max_tokens=max(part.spec.max_tokens for part in parts),
        max_source_tokens=max(part.spec.max_source_tokens for part in parts),
        language=_common([part.spec.language for part in parts]),
        source_language=_common([part.spec.source_language for part in parts]),
        metrics=parts[0].spec.metrics if splits["train"].sources else (),
    )
    return Corpus("+".join(part.name for part in parts), splits, spec, notes)
