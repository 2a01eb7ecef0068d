"""Texts with one source are one example with several references, and generated files of pairs train again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_utils.options import DataOptions
from dataset_utils.registry import load
from dataset_utils.splits import Split
from evaluation.overlap import bleu, rouge
from pipelines import train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.evaluators.pairs import format_records
from utils.cli.parse import parse

FLAGS = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 24 --tx_dim 64 --tx_depth 1 --device cpu "
    "--train_batch_size 16 --sampling_timesteps 2 --num_samples 6 --eval_batch_size 6 --no_wandb --num_train_steps 2 "
    "--config val_loss_examples=8 --truncate_sources --class_conditional"
)
WORDS = ("red", "green", "blue", "small", "old", "warm", "new", "round")
words = st.sampled_from("abcd")


@given(st.lists(st.tuples(words, words, st.integers(0, 1)), min_size=1, max_size=20), st.data())
def test_examples_are_the_different_sources_with_all_their_texts(rows, data):
    sources, texts, labels = (list(column) for column in zip(*rows, strict=True))
    split, order = Split(texts, labels, sources), data.draw(st.permutations(range(len(rows))))
    by_label = data.draw(st.booleans())
    keys = [(s, label) if by_label else s for s, label in zip(sources, labels, strict=True)]
    found = split.examples(order, 3, by_label=by_label)
    expected = list(dict.fromkeys(keys[i] for i in order))[:3]
    assert found.sources == [key[0] if by_label else key for key in expected] and len(found) == len(expected)
    for key, references in zip(expected, found.references, strict=True):
        assert references == list(dict.fromkeys(text for text, k in zip(texts, keys, strict=True) if k == key))
    assert not by_label or found.labels == [key[1] for key in expected]


def test_one_reference_of_each_source_changes_nothing():
    split = Split([f"text {i}" for i in range(9)], None, [f"source {i}" for i in range(9)])
    order = [4, 2, 8, 0, 1, 3, 5, 6, 7]
    found = split.examples(order, 4)
    assert found.sources == split.select(order[:4]).sources and found.texts == split.select(order[:4]).texts


def rows_of_pairs() -> Iterator[dict[str, str]]:
    for word in WORDS:
        for kind in ("a", "b", "c"):
            yield {
                "source": f"{word} boat",
                "target": f"{kind} {word} boat is there",
                "label": kind if kind < "b" else "b",
            }


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trained(programs, tmp_path_factory) -> Path:
    """A class-conditional run of pairs on token embeddings."""
    root = tmp_path_factory.mktemp("references")
    file = write(root / "pairs.jsonl", rows_of_pairs())
    files = " ".join(f"--{split}_file {file}" for split in ("train", "valid", "test"))
    flags = f"{FLAGS} {files} --scorer {programs.scorer} --output_dir {root / 'run'}"
    assert train_diffusion.train(parse(DIFFUSION, flags.split())) == 0
    return root


def evaluate(root: Path, out: Path, valid: Path) -> tuple[dict, list[dict]]:
    flags = (
        f"--eval --resume_dir {root / 'run'} --valid_file {valid} --output_dir {out} --seq2seq_candidates 2 --no_wandb"
    )
    assert train_diffusion.train(parse(DIFFUSION, flags.split())) == 0
    folder = out / "evaluation"
    return (json.loads((folder / "eval-valid.json").read_text()),
            json.loads((folder / "eval-valid-seed42-greedy-pairs.json").read_text()))  # fmt: skip


def test_repeated_sources_and_lists_are_examples_with_several_references(trained, tmp_path, capfd):
    rows = list(rows_of_pairs())
    lists = [
        {"source": f"{word} boat", "label": label, "target": [row["target"] for row in rows
         if row["source"] == f"{word} boat" and row["label"] == label]}
        for word in WORDS for label in ("a", "b")
    ]  # fmt: skip
    result, records = evaluate(trained, tmp_path / "repeated", write(tmp_path / "repeated.jsonl", rows))
    assert result["protocol"]["n"] == len(records) == 6
    assert result["protocol"]["num_references"] == sum(len(r["references"]) for r in records) > 6
    assert all(r["reference"] == r["references"][0] for r in records)
    for name, part in (("", "sample"), ("mbr_", "chosen")):
        texts, references = [r[part] for r in records], [r["references"] for r in records]
        assert result[f"model/seq2seq/{name}sacrebleu"] == pytest.approx(bleu(texts, references))
        assert result[f"model/seq2seq/{name}rougeL"] == pytest.approx(rouge(texts, references)["rougeL"])
    shown = capfd.readouterr().err
    assert "\n  or        " in shown
    # a list in the cell of the target is the same
    file = str(write(tmp_path / "lists.jsonl", lists))
    corpus = load(DataOptions(train_file=file, valid_file=file, test_file=file))
    assert corpus.train.sources == [row["source"] for row in rows] and corpus.train.texts == [
        row["target"] for row in rows
    ]
    other, same = evaluate(trained, tmp_path / "lists", tmp_path / "lists.jsonl")
    assert same == records
    assert {k: v for k, v in other.items() if k.startswith("model")} == {
        k: v for k, v in result.items() if k.startswith("model")
    }


def test_references_are_shown_below_each_other():
    record = {"source": "s", "reference": "a", "references": ["a", "b"], "sample": "x", "chosen": "y"}
    lines = ["  source    s", "  reference a", "  or        b", "  sample    x", "  chosen    y"]
    assert format_records([record]) == "\n".join(lines)


def test_a_generated_file_of_pairs_trains_beside_the_corpus(trained, programs, tmp_path):
    flags = f"--gen_data --resume_dir {trained / 'run'} --num_samples 8 --output_dir {tmp_path} --no_wandb"
    assert train_diffusion.train(parse(DIFFUSION, flags.split())) == 0
    file = tmp_path / "synth_sample8_seed42.csv"
    lines = file.read_text().splitlines()
    assert lines[0] == "source,target,label" and len(lines) == 9
    corpus = load(DataOptions(train_file=str(file), valid_file=str(trained / "pairs.jsonl"), test_file=str(file)))
    assert corpus.class_names == ("a", "b") and set(corpus.train.sources) <= {f"{word} boat" for word in WORDS}
    files = f"--train_file {file} --valid_file {trained / 'pairs.jsonl'} --test_file {file}"
    again = f"{FLAGS} {files} --scorer {programs.scorer} --output_dir {tmp_path / 'again'}"
    assert train_diffusion.train(parse(DIFFUSION, again.split())) == 0
    shutil.rmtree(tmp_path / "again")
