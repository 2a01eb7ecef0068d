"""Corpora by name and from files: every row of the catalog, missing splits, and errors of one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dataset_utils import __main__ as listing
from dataset_utils import readers, synthetic_stories, user_files
from dataset_utils.catalog import DATASETS, DatasetSpec, detokenize
from dataset_utils.corpus import Corpus
from dataset_utils.options import DataOptions
from dataset_utils.registry import load, missing_files_message
from dataset_utils.splits import SPLITS, Split, fill_missing_splits, permutation, split_validation
from utils.errors import UserError
from utils.hub import is_online

ROOT = Path(__file__).resolve().parents[2]


def write_lines(path: Path, lines) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_json(path: Path, rows) -> Path:
    return write_lines(path, map(json.dumps, rows))


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a few lines of every corpus that is read from files."""
    for split, n in (("train", 20), ("valid", 10), ("test", 5)):
        rows = range(n)
        if split != "test":
            write_json(tmp_path / f"ROCstory/roc_{split}.json", ([f"{split} story {i}."] for i in rows))
            write_json(
                tmp_path / f"sst/{split}.jsonl", ({"sentence": f"{split} {i} .", "label": i % 4 / 3} for i in rows)
            )
        if split != "valid":
            write_lines(tmp_path / f"simple/simple-{split}.txt", (f"{split} {i}." for i in rows))
            write_lines(tmp_path / f"greetings/greetings-{split}.txt", (f"hello {split} {i}!" for i in rows))
        write_lines(tmp_path / f"e2e_data/src1_{split}.txt", (f"name : {i}||{split} {i} , it is ." for i in rows))
        for folder in ("qqp", "quasar-t", "wiki-auto", "CommonsenseConversation"):
            pairs = ({"src": f"q {split} {i}", "trg": f"p {split} {i}"} for i in rows)
            write_json(tmp_path / folder / f"{split}.jsonl", pairs)
        write_json(tmp_path / f"ag_news/{split}.jsonl", ({"text": f"{split} {i}", "label": i % 4} for i in rows))
        write_json(
            tmp_path / f"xsum/{split}.jsonl",
            ({"document": f"d {split} {i}", "summary": f"s {split} {i}"} for i in rows),
        )
        write_json(
            tmp_path / f"wmt14/{split}.jsonl",
            ({"translation": {"de": f"de {split} {i}", "en": f"en {split} {i}"}} for i in rows),
        )
    labels = [f"{split} {i}.\t{i % 2}" for split in ("train", "test") for i in range(20)]
    write_lines(tmp_path / "simple/simple_labeled.tsv", labels)
    synthetic_stories.write(tmp_path / "tales", train=30, valid=10, test=10)
    return tmp_path


def corpus_of(name: str, root: Path, **flags) -> Corpus:
    return load(DataOptions(dataset_name=name, data_dir=str(root), **flags))


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_loads_from_files(root: Path, name: str) -> None:
    assert missing_files_message(DataOptions(dataset_name=name, data_dir=str(root))) is None
    corpus = corpus_of(name, root)
    assert corpus.name == name and tuple(corpus.splits) == SPLITS and all(len(s) for s in corpus.splits.values())
    spec = DATASETS[name]
    for split in corpus.splits.values():
        assert (split.sources is not None) == (spec.source is not None)
        assert (split.labels is not None) == bool(spec.class_names)
        assert split.labels is None or set(split.labels) <= set(range(corpus.num_classes))
    assert not set(corpus.train.texts) & set(corpus.test.texts)


def test_columns_of_known_corpora_have_the_right_roles(root: Path) -> None:
    pair = corpus_of("wmt14-de-en", root).train
    assert pair.sources is not None and pair.sources[0] == "de train 0" and pair.texts[0] == "en train 0"
    same = corpus_of("wmt14-de-de", root).train
    assert same.sources == same.texts
    assert corpus_of("e2e", root).train.texts[0] == "train 0, it is."  # detokenized
    meaning = corpus_of("e2e-mr", root)
    assert meaning.train.sources == [f"name: {i}" for i in range(20)] or meaning.train.sources[0] == "name : 0"
    assert meaning.train.texts == corpus_of("e2e", root).train.texts
    assert corpus_of("sst", root).valid.labels == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    assert corpus_of("simple", root).test.labels == [0, 1, 0, 1, 0]
    assert corpus_of("tales", root).class_names == synthetic_stories.CLASS_NAMES
    pairs = corpus_of("tales-pairs", root).test
    story = synthetic_stories.parse(pairs.texts[0])
    assert (
        story is not None
        and pairs.sources is not None
        and synthetic_stories.paraphrase(story).text() == pairs.sources[0]
    )


def test_data_dir_is_the_root_or_the_folder(root: Path) -> None:
    assert corpus_of("roc", root).splits == corpus_of("roc", root / "ROCstory").splits


def test_the_roc_validation_file_is_shuffled_and_split(root: Path) -> None:
    corpus = corpus_of("roc", root)
    order = permutation(10, 42)
    assert corpus.valid.texts == [f"valid story {i}." for i in order[:2]]
    assert corpus.test.texts == [f"valid story {i}." for i in order[2:]]
    assert any("2 validation and 8 test" in note for note in corpus.notes)
    assert len(split_validation({"train": Split(["a"]), "valid": Split(["b"] * 5000)}, 42, [])["valid"]) == 1000


def test_the_shuffle_is_that_of_the_datasets_library() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"i": list(range(57))})
    assert list(rows.shuffle(seed=42)["i"]) == permutation(57, 42)
    assert list(rows.train_test_split(test_size=10, seed=42)["test"]["i"]) == permutation(57, 42)[:10]


def test_missing_splits_are_taken_from_training_without_copies() -> None:
    notes: list[str] = []
    texts = [f"text {i // 2}" for i in range(100)]  # every text twice
    made = fill_missing_splits({"train": Split(texts, list(range(100)))}, 42, notes)
    assert [len(made[s]) for s in ("valid", "test")] == [10, 10]
    assert not set(made["train"].texts) & set(made["valid"].texts + made["test"].texts)
    assert made["train"].labels is not None
    assert all(texts[label] == text for label, text in zip(made["train"].labels, made["train"].texts, strict=True))
    assert "no file for valid and test: 10 rows each" in notes[0] and "copies" in notes[0]
    assert fill_missing_splits({"train": Split(texts)}, 42, [])["test"].texts == made["test"].texts
    with pytest.raises(UserError, match="too few"):
        fill_missing_splits({"train": Split(["a", "b"])}, 42, [])
    with pytest.raises(UserError, match="copies"):
        fill_missing_splits({"train": Split(["a"] * 20)}, 42, [])


def test_joined_corpora_drop_what_they_do_not_share(root: Path) -> None:
    corpus = corpus_of("roc+ag_news", root)
    assert corpus.name == "roc+ag_news" and len(corpus.train) == 40 and corpus.num_classes == 0
    assert corpus.train.labels is None and any("labels dropped" in note for note in corpus.notes)
    both = corpus_of("qqp+xsum", root)
    assert both.train.sources is not None and len(both.train.sources) == len(both.train) == 40
    assert len(both.train.all_texts()) == 80 and both.spec.max_source_tokens == 256
    assert corpus_of("roc+qqp", root).train.sources is None


def test_max_train_texts_draws_the_same_rows_each_time(root: Path) -> None:
    corpus = corpus_of("ag_news", root, max_train_texts=8)
    assert corpus == corpus_of("ag_news", root, max_train_texts=8), "every stage trains on the same texts"
    rows = [int(text.split()[1]) for text in corpus.train.texts]
    assert len(set(rows)) == 8 and rows == sorted(rows) and rows != list(range(8))
    whole = corpus_of("ag_news", root)
    assert whole.train.labels is not None and corpus.train.labels == [whole.train.labels[row] for row in rows]
    assert set(corpus_of("ag_news", root, max_train_texts=3).train.texts) < set(corpus.train.texts)
    assert len(corpus.valid) == 10 and any("--max_train_texts" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("path", "name"),
    [("x/train.jsonl", "x"), ("x/Train.csv.gz", "x"), ("x/stories.jsonl.gz", "stories"), ("train.txt", "here"),
     ("/train.txt", "train"), ("x/roc_train.json", "roc_train")],
)  # fmt: skip
def test_a_corpus_is_named_by_its_file_or_its_folder(tmp_path, monkeypatch, path: str, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert user_files.corpus_name(Path(path)) == name


def test_user_files_of_every_kind_are_read(tmp_path) -> None:
    write_lines(tmp_path / "a.txt", [*(f"text {i}" for i in range(20)), ""])
    plain = load(DataOptions(train_file=str(tmp_path / "a.txt")))
    assert plain.name == "a" and sum(len(plain.splits[s]) for s in SPLITS) == 20 and all(plain.splits.values())
    assert any("1 blank rows" in note for note in plain.notes)

    write_lines(tmp_path / "b.csv", ["mood,words", *(f"{'sad' if i % 2 else 'glad'},text {i}" for i in range(20))])
    labeled = load(DataOptions(train_file=str(tmp_path / "b.csv"), text_column="words", label_column="mood"))
    assert labeled.class_names == ("glad", "sad") and labeled.num_classes == 2

    write_json(tmp_path / "c/train.jsonl", ({"src": f"s {i}", "trg": f"t {i}"} for i in range(20)))
    write_json(tmp_path / "c/dev.jsonl", [{"src": "s", "trg": "t"}])
    folder = load(DataOptions(data_dir=str(tmp_path / "c")))
    assert folder.name == "c" and folder.valid.sources == ["s"] and folder.spec.metrics and 1 <= len(folder.test) < 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "no corpus is named.*roc"),
        ({"dataset_name": "rocc"}, r"unknown dataset 'rocc' \(did you mean roc\?\)"),
        ({"dataset_name": "tales+nosuch"}, "unknown dataset 'nosuch'"),
        ({"dataset_name": "roc", "train_file": "x.txt"}, "two corpora"),
        ({"train_file": "x.txt", "data_dir": "d"}, "two corpora"),
        ({"valid_file": "x.txt"}, "--valid_file needs --train_file"),
        ({"train_file": "no_such.txt"}, "there is no file no_such.txt"),
        ({"data_dir": "no_such_folder"}, "there is no file no_such_folder"),
        (
            {"dataset_name": "roc", "data_dir": "no_such"},
            "roc is not in no_such/ROCstory: there is no folder no_such: check --data_dir, or run scripts/data/roc.sh",
        ),
        ({"dataset_name": "tales", "data_dir": "no_such"}, "dataset_utils.tales --output_dir no_such/tales"),
        ({"dataset_name": "roc", "data_dir": "no_such", "max_train_texts": 0}, "--max_train_texts 0"),
    ],
)
def test_wrong_flags_raise_an_error_of_one_line(flags, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(DataOptions(**flags))
    assert "\n" not in str(caught.value)


SEQ, LABELED = ("src", "trg"), ("text", "label")


def write_table(path: Path, names: tuple[str, ...], rows: list[tuple], header: bool = True) -> Path:
    """Writes rows in any of the formats, compressed according to the suffix."""
    kind = readers.suffix(path)
    if kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    between = {".csv": ",", ".tsv": "\t"}.get(kind)
    if between:
        lines = [between.join(map(str, row)) for row in ([names, *rows] if header else rows)]
    elif kind == ".txt":
        lines = [row[0] for row in rows]
    else:
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("end", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz"])
@pytest.mark.parametrize("names", [LABELED, SEQ, ("Document", "Summary"), ("text",), ("Sentence", "Class"), ("a", "b")])
def test_user_files_of_every_format_and_columns_are_read(tmp_path, end: str, names: tuple[str, ...]) -> None:
    """Files given by flag or by folder, in any format: columns are found by their usual names, or named by flags."""
    labeled = names[-1].lower() in ("label", "class")
    rows = [(f"one {i}", i % 2 if labeled else f"two {i}")[: len(names)] for i in range(40)]
    for split in SPLITS:
        write_table(tmp_path / f"{split}{end}", names, rows)
    typed = {"source_column": "a", "text_column": "b"} if names == ("a", "b") else {}
    flags = {f"{split}_file": str(tmp_path / f"{split}{end}") for split in SPLITS}
    corpus = load(DataOptions(**flags, **typed))
    assert corpus.splits == load(DataOptions(data_dir=str(tmp_path), **typed)).splits
    assert corpus.name == tmp_path.name, "files called train.* are named by their folder"
    texts = [row[0] if labeled or len(names) == 1 else row[1] for row in rows]
    assert corpus.train.texts == corpus.test.texts == texts
    assert corpus.train.labels == ([i % 2 for i in range(40)] if labeled else None)
    assert corpus.train.sources == (None if labeled or len(names) == 1 else [row[0] for row in rows])
    assert corpus.notes[0].startswith("columns: ") and names[0] in corpus.notes[0]


def test_tables_without_header_have_default_columns_or_are_refused(tmp_path) -> None:
    rows = [(f'The {c} apple, "ripe" {i}.', i % 2) for i, c in enumerate(["red", "green"] * 20)]
    bare = write_table(tmp_path / "bare.tsv", LABELED, rows, header=False)
    corpus = load(DataOptions(train_file=str(bare)))
    assert corpus.class_names == ("0", "1") and len(corpus.train) + len(corpus.valid) + len(corpus.test) <= 40
    assert set(corpus.train.texts) <= {text for text, _ in rows}
    for end, columns, message in (
        (".csv", 2, "line 1: 'The red apple.' is not a column name"),
        (".csv", 1, "is not a column name"),
        (".tsv", 3, "is not a column name: add a header with names such as text, label"),
    ):
        table = write_table(
            tmp_path / f"t{end}", ("x",) * columns, [("The red apple.", 1, 2)[:columns]] * 30, header=False
        )
        with pytest.raises(UserError, match=message):
            load(DataOptions(train_file=str(table)))
    pairs = write_table(tmp_path / "pairs.tsv", SEQ, [(f"a {i}", f"b {i}") for i in range(300)], header=False)
    with pytest.raises(UserError, match="300 different values in 300 rows, too many for classes: .*`source<tab>text`"):
        load(DataOptions(train_file=str(pairs)))


def test_any_hub_dataset_loads_by_its_id(tmp_path, monkeypatch) -> None:
    """The library reads a local folder of the same name as a repository: no network is needed."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "org/poems/data").mkdir(parents=True)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sad", "glad"])}
    )
    rows = {"text": [f"verse {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "org/poems/data/train-00000-of-00001.parquet"))
    table.to_parquet(str(tmp_path / "org/poems/data/validation-00000-of-00001.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = load(DataOptions(dataset_name="org/poems"))
    assert corpus.name == "org/poems" and corpus.class_names == ("sad", "glad")  # in the order of their numbers
    assert corpus.valid.texts[1] == "verse 1" and corpus.valid.labels is not None and corpus.valid.labels[:2] == [0, 1]
    assert load(DataOptions(dataset_name="org/poems", label_column="none")).num_classes == 0
    with pytest.raises(UserError, match=r"there is no column 'txt' \(did you mean text\?\)"):
        load(DataOptions(dataset_name="org/poems", text_column="txt"))
    with pytest.raises(UserError, match="org/none could not be loaded from the hub: check the name"):
        load(DataOptions(dataset_name="org/none"))
    assert "downloaded from the hub" in (missing_files_message(DataOptions(dataset_name="org/poems")) or "")


def test_classes_and_sources_are_required_by_conditional_runs(root: Path) -> None:
    corpus_of("sst", root).require_classes()
    with pytest.raises(UserError, match="--class_conditional needs labels, but roc has none"):
        corpus_of("roc", root).require_classes()
    one = corpus_of("ag_news", root, max_train_texts=1)
    with pytest.raises(UserError, match=r"all training texts of ag_news have the same one \(sci_tech\)"):
        one.require_classes()


def test_columns_of_a_named_corpus_may_be_overridden(root: Path) -> None:
    assert corpus_of("ag_news", root, label_column="none").num_classes == 0
    write_json(root / "ag_news/train.jsonl", ({"text": f"{i}", "label": 0, "mood": "ab"[i % 2]} for i in range(40)))
    for split in ("valid", "test"):
        write_json(root / f"ag_news/{split}.jsonl", [{"text": "x", "label": 0, "mood": "b"}])
    moods = corpus_of("ag_news", root, label_column="mood")
    assert moods.class_names == ("a", "b") and moods.valid.labels == [1]


def test_the_list_of_corpora_names_each_one(root: Path, capsys) -> None:
    listing.main(["--data_dir", str(root)])
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATASETS) and "(here)" in shown and "CC BY-SA 4.0" in shown
    listing.main(["--markdown"])
    assert capsys.readouterr().out.strip() in (ROOT / "docs/usage.md").read_text()


def test_wrong_user_files_raise_an_error_of_one_line(tmp_path) -> None:
    empty = write_lines(tmp_path / "empty.txt", [])
    with pytest.raises(UserError, match="holds no texts"):
        load(DataOptions(train_file=str(empty)))
    with pytest.raises(UserError, match="is a folder, not a file"):
        (tmp_path / "f.txt").mkdir()
        load(DataOptions(train_file=str(tmp_path / "f.txt")))
    train = write_json(tmp_path / "train.jsonl", ({"text": f"{i}", "label": "ab"[i % 2]} for i in range(20)))
    valid = write_json(tmp_path / "valid.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "c"}])
    with pytest.raises(UserError, match=r"valid\.jsonl, line 2: label 'c' is not one of the classes a, b"):
        load(DataOptions(train_file=str(train), valid_file=str(valid)))
    bare = write_json(tmp_path / "bare.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=r"bare\.jsonl: there is no column 'label'"):
        load(DataOptions(train_file=str(train), valid_file=str(bare)))
    with pytest.raises(UserError, match="pass --dataset_name roc too"):
        write_json(tmp_path / "r/roc_train.json", [["a"]])
        load(DataOptions(data_dir=str(tmp_path / "r")))


def test_the_message_of_missing_files_names_the_source(tmp_path) -> None:
    line = missing_files_message(DataOptions(dataset_name="xsum", data_dir=str(tmp_path)))
    assert line is not None and "EdinburghNLP/xsum" in line and "\n" not in line
    assert "there is no file" in (missing_files_message(DataOptions(train_file=str(tmp_path / "x.txt"))) or "")


def test_a_hub_corpus_without_a_network_raises_an_error_of_one_line(tmp_path, monkeypatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens on this port
    with pytest.raises(UserError, match="xsum is not in .*(error of the hub|unreachable)"):
        corpus_of("xsum", tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("HF_DATASETS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    is_online.cache_clear()
    with pytest.raises(UserError, match="the hub is unreachable"):
        corpus_of("xsum", tmp_path)
    is_online.cache_clear()


def test_every_row_has_a_license_a_folder_and_instructions() -> None:
    for name, spec in DATASETS.items():
        assert (
            isinstance(spec, DatasetSpec) and spec.how_to_get and spec.folders and spec.license and spec.description
        ), name
        assert name in (ROOT / "datasets" / "README.md").read_text() or name.startswith("wmt14-"), name


def test_detokenize_joins_punctuation() -> None:
    assert detokenize("It is n't far , is it ? No .") == "It isn't far, is it? No."


def test_a_data_dir_that_is_a_file_is_said(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"a\.txt, which is a file: name it with --train_file"):
        load(DataOptions(dataset_name="roc", data_dir=str(tmp_path / "a.txt")))
