"""Mistakes of a user of token embeddings through the real main() of each program: one line with the remedy, exit
status 2, no file changed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import BertConfig

import train_text_diffusion
from pipelines import infill, sample, train_classifier

SPACE = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 16 --tx_dim 64 --tx_depth 1 "
    "--train_batch_size 8 --sampling_timesteps 2 --device cpu"
)
MODULES = {"train": train_text_diffusion, "classifier": train_classifier, "infill": infill, "sample": sample}


@pytest.fixture(scope="module")
def folder(programs, tmp_path_factory) -> Path:
    """A run of texts, a run of pairs, a classifier for the first, and files with one mistake each."""
    root = tmp_path_factory.mktemp("there")
    colors = ("red", "green", "blue", "white")
    texts = [f"the {fruit} is {color}" for color in colors for fruit in ("plum", "kiwi", "bean", "nut", "fig")]
    rows = {
        "labelled": [{"text": text, "label": "warm" if "red" in text else "cold"} for text in texts],
        "pairs": [{"src": f"say {text}", "trg": text} for text in texts],
        "long": [{"src": " ".join([text] * 4), "trg": text} for text in texts],
    }
    for name, lines in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "rare.txt").write_text("".join(f"word{'abcdefghij'[i % 10]}{chr(97 + i // 10)} only\n" for i in range(60)))
    (root / "words.txt").write_text("the\nplum\nis\n")
    BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=8).save_pretrained(
        root / "short"
    )

    def files(name: str) -> str:
        return " ".join(f"--{split}_file {root / name}.jsonl" for split in ("train", "valid", "test"))

    assert programs.diffusion(f"{SPACE} {files('labelled')}", root / "run") == 0
    assert programs.diffusion(f"{SPACE} {files('pairs')}", root / "packed") == 0
    shutil.copytree(root / "run", root / "exchanged")
    tokenizer = root / "exchanged" / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"plum"', '"pear"'))
    shutil.copytree(root / "run", root / "bare")
    shutil.rmtree(root / "bare" / "tokenizer")
    (root / "warm.jsonl").write_text("".join(json.dumps({**row, "label": "warm"}) + "\n" for row in rows["labelled"]))
    with pytest.MonkeyPatch.context() as patch:
        argv = f"--diffusion_run {root / 'run'} {files('labelled')} --output_dir {root / 'classifier'} --device cpu"
        small = "--classifier_dim 64 --classifier_depth 1 --num_train_steps 2"
        patch.setattr("sys.argv", ["program", *argv.split(), *small.split()])
        assert train_classifier.main() == 0
    return root


NEW = SPACE + " --output_dir {out}"
CASES = {
    # longer than the model
    "longer than the encoder": (
        "train",
        NEW + " --train_file {folder}/labelled.jsonl --denoiser_variant encoder --encoder_config {folder}/short",
        "--max_seq_len 16 is longer than the 8 positions of the encoder"),
    "no room for a pair": (
        "train", NEW + " --train_file {folder}/pairs.jsonl --max_seq_len 4",
        "--max_seq_len 4 is too short for a pair: give 5"),
    "blanks in a long text": (
        "infill", "--run {folder}/run --device cpu --text '___" + " plum" * 20 + "'",
        "has 23 tokens, and this run allows 16"),
    # a source alone longer than the budget
    "a long source": (
        "train", NEW + " --train_file {folder}/long.jsonl",
        r"source of row 1 has 17 tokens, but --max_seq_len 16 leaves only 13 .*--truncate_sources"),
    "a long source of a trained run": (
        "sample", "--run {folder}/packed --device cpu --source '" + "plum " * 20 + "'",
        "source of row 1 has .* tokens.*--truncate_sources"),
    # a vocabulary that covers too little
    "a small vocabulary": (
        "train", NEW + " --train_file {folder}/labelled.jsonl --vocab_size 7", r"lacks \d+\.\d % of the words"),
    "words that are too rare": (
        "train", NEW + " --train_file {folder}/rare.txt --config vocab_min_frequency=2",
        r"vocabulary of \d+ tokens \(--vocab\) lacks 50\.0 % of the words .*--config max_unk_rate=0.1"),
    "a word list of another corpus": (
        "train", NEW + " --train_file {folder}/labelled.jsonl --vocab {folder}/words.txt",
        r"lacks \d+\.\d % of the words"),
    # labels that the classifier was not trained on
    "a label that is no class": (
        "train", "--eval --resume_dir {folder}/run --latent_classifier {folder}/classifier --target_label hot",
        r"--target_label hot is not a class.*cold.*warm"),
    "a label by number": (
        "sample", "--run {folder}/run --device cpu --latent_classifier {folder}/classifier --target_label 2",
        "--target_label 2 is not a class"),
    "a label without a classifier": (
        "train", "--eval --resume_dir {folder}/run --target_label warm", "add --latent_classifier"),
    "a classifier of one class": (
        "classifier", "--diffusion_run {folder}/run --train_file {folder}/warm.jsonl --output_dir {out} --device cpu",
        r"two classes or more, but all training texts of warm have the same one \(warm\)"),
    "a classifier of texts without labels": (
        "classifier", "--diffusion_run {folder}/run --train_file {folder}/rare.txt --output_dir {out} --device cpu",
        "needs labels"),
    "a classifier of another run": (
        "train", "--eval --resume_dir {folder}/packed --latent_classifier {folder}/classifier --target_label warm",
        "was trained on the latents of another run"),
    # a checkpoint with another tokenizer
    "another tokenizer": (
        "train", "--eval --resume_dir {folder}/exchanged", "exchanged was trained with another tokenizer"),
    "training on with another tokenizer": (
        "train", "--resume_training --resume_dir {folder}/exchanged", "exchanged was trained with another tokenizer"),
    "samples of another tokenizer": (
        "sample", "--run {folder}/exchanged --device cpu", "exchanged was trained with another tokenizer"),
    "no tokenizer": ("train", "--eval --resume_dir {folder}/bare", "tokenizer does not exist.*restore the folder"),
    "a BERTScore model that is missing": (
        "train", "--eval --resume_dir {folder}/packed --output_dir {out} --bertscore_model nobody/nothing",
        "BERTScore's model nobody/nothing cannot be loaded"),
    "running text with classes": (
        "train", NEW + " --train_file {folder}/labelled.jsonl --pretrain_blocks --class_conditional",
        "--pretrain_blocks trains on running text, which has no classes"),
    "embeddings of no size": (
        "train", NEW + " --train_file {folder}/labelled.jsonl --config embedding_std=0",
        "embedding_std must be above 0, not 0"),
    "initial weights of another tokenizer": (
        "train", NEW + " --train_file {folder}/rare.txt --init_path {folder}/run",
        "--init_path .*another tokenizer.*--vocab"),
}  # fmt: skip


@pytest.mark.parametrize("title", CASES)
def test_a_mistake_gives_one_error_line(folder, contents, monkeypatch, capsys, tmp_path, title):
    program, argv, message = CASES[title]
    words = shlex.split(argv.format(folder=folder, out=tmp_path / "out"))
    before = contents(folder)
    monkeypatch.setattr("sys.argv", ["program", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        MODULES[program].main()
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert not list((tmp_path / "out").rglob("*samples*")), "the error came only after texts were sampled"
    assert contents(folder) == before and not (tmp_path / "out" / "checkpoints").exists()
