"""Labels have one form in files, flags, Python and outputs: what is written can be read, and numbers are names."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_utils.labels import canonical_label
from dataset_utils.options import DataOptions
from dataset_utils.registry import load
from pipelines import sample, train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.sampling.classes import class_index
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.cli.parse import parse
from utils.errors import UserError

CASE = Path(__file__).parents[1] / "cases" / "labels_from_one.jsonl"
FLAGS = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 24 --tx_dim 64 --tx_depth 1 --device cpu "
    "--train_batch_size 16 --sampling_timesteps 2 --num_samples 3 --eval_batch_size 4 --no_wandb --num_train_steps 2 "
    "--config val_loss_examples=8 --class_conditional --class_id prior"
)


def run(flags: str) -> int:
    return train_diffusion.train(parse(DIFFUSION, flags.split()))


@pytest.fixture(scope="module")
def trained(programs, tmp_path_factory) -> dict[str, Path]:
    """numbers: a run on the labels 1, 2, 3. words: one on neg and pos, in columns of other names."""
    root = tmp_path_factory.mktemp("labels")
    rows = [json.loads(line) for line in CASE.read_text().splitlines()]
    named = [{"review": row["text"], "mood": "neg" if row["label"] == 1 else "pos"} for row in rows]
    (root / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    scorer = f"--scorer {programs.scorer}"
    assert run(f"{FLAGS} {scorer} --train_file {CASE} --output_dir {root / 'numbers'}") == 0
    assert (
        run(f"{FLAGS} {scorer} --train_file {root / 'words.jsonl'} --label_column mood --output_dir {root / 'words'}")
        == 0
    )
    return {name: root / name for name in ("numbers", "words")}


def test_where_names_are_numbers_numbers_are_names(trained, capsys):
    folder = trained["numbers"]
    pipeline = TextDiffusionPipeline.from_pretrained(folder, device="cpu")
    assert pipeline.class_names == ("1", "2", "3")
    first = pipeline.sample(3, class_id="1")
    assert all(pipeline.sample(3, class_id=one) == first for one in (1, 1.0, np.int64(1), "1.0", ["1", 1, 1.0]))
    for zero in (0, "0"):
        with pytest.raises(UserError, match="class 0 is not a class.*: give one of 1, 2, 3$"):
            pipeline.sample(1, class_id=zero)
    with pytest.raises(UserError, match="^--class_id 0 is not a class.*: give one of 1, 2, 3$"):
        run(f"--eval --resume_dir {folder} --class_id 0 --no_wandb")
    arguments = ["--run", str(folder), "--num_samples", "3", "--device", "cpu"]
    sample.main([*arguments, "--class_id", "1"])
    shown = capsys.readouterr().out
    sample.main([*arguments, "--class_id", "1.0"])
    assert capsys.readouterr().out == shown


def test_where_names_are_words_an_index_is_allowed(trained):
    pipeline = TextDiffusionPipeline.from_pretrained(trained["words"], device="cpu")
    assert pipeline.class_names == ("neg", "pos")
    assert pipeline.sample(3, class_id=1) == pipeline.sample(3, class_id="pos")
    with pytest.raises(UserError, match=r"class 2 is not a class.*: give one of 0 \(neg\), 1 \(pos\)$"):
        pipeline.sample(1, class_id=2)


@pytest.mark.parametrize(
    ("name", "labels", "header", "column"),
    [("numbers", ("1", "2", "3"), "text,label", ""), ("words", ("neg", "pos"), "review,mood", "--label_column mood")],
)
def test_a_generated_file_trains_beside_the_corpus(trained, programs, tmp_path, name, labels, header, column):
    folder, n = trained[name], 4 * len(labels)
    assert run(f"--gen_data --resume_dir {folder} --num_samples {n} --output_dir {tmp_path} --no_wandb") == 0
    file = tmp_path / f"synth_sample{n}_seed43.csv"
    lines = list(csv.reader(file.open(newline="")))
    assert lines[0] == header.split(",") and [line[1] for line in lines[1:]] == [x for x in labels for _ in range(4)]
    corpus = CASE if name == "numbers" else folder.with_name("words.jsonl")
    for train, valid in ((file, corpus), (corpus, file)):
        files = f"--train_file {train} --valid_file {valid} --test_file {corpus} {column} --scorer {programs.scorer}"
        assert run(f"{FLAGS} {files} --output_dir {tmp_path / train.stem}") == 0
        assert json.loads((tmp_path / train.stem / "args.json").read_text())["class_names"] == list(labels)


def test_the_catalog_has_the_published_format(tmp_path):
    (tmp_path / "ag_news").mkdir()
    for split in ("train", "valid", "test"):
        rows = [{"text": f"{split} {i}", "label": i % 4} for i in range(20)]
        (tmp_path / f"ag_news/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load(DataOptions(dataset_name="ag_news", data_dir=str(tmp_path)))
    assert corpus.class_names[0] == "world" and corpus.label_values == ("0", "1", "2", "3") and corpus.in_catalog


odd_values = [0.5, 1.0, -0.0, 2.5, True, False, "TRUE", "1.0", "01", "+1", "a b", "\u00e9", "e\u0301"]
letters = st.characters(codec="utf-8", exclude_categories=("C", "Z"))
values = st.one_of(st.integers(-10, 10), st.sampled_from(odd_values), st.text(letters, min_size=1, max_size=4))


@given(st.lists(values, min_size=2, max_size=5))
def test_every_label_that_is_written_is_read_as_itself(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("read", numbered=True)
    rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(found * 4)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        corpus = load(DataOptions(train_file=str(folder / "a.jsonl"), test_file=str(folder / "a.jsonl"),
                                  valid_file=str(folder / "a.jsonl")))  # fmt: skip
    except UserError as error:  # "nan" or "null" among numbers
        assert "is no label" in str(error)
        return
    assert set(corpus.class_names) == {canonical_label(value) for value in found}
    for i, name in enumerate(corpus.class_names):
        assert canonical_label(name) == name and class_index(name, corpus.class_names) == i
    for value in found:
        assert corpus.class_names[class_index(value, corpus.class_names)] == canonical_label(value)
    with (folder / "b.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"text {i}", label] for i, label in enumerate(corpus.label_values * 2))
    files = {f"{split}_file": str(folder / "b.csv") for split in ("train", "valid", "test")}
    assert load(DataOptions(**files)).class_names == corpus.class_names


@pytest.mark.parametrize("no_label", [None, math.nan, math.inf, [], {}, "", " "])
def test_what_is_no_label_is_one_line_that_lists_the_classes(no_label):
    for names, listed in ((("1", "2"), "give one of 1, 2"), ((), "without classes")):
        with pytest.raises(UserError, match=f"is not a class, since .*{listed}") as caught:
            class_index(no_label, names)
        assert "\n" not in str(caught.value)
