"""What a user of token embeddings can get wrong, through the real main() of each program: one line, exit status 2,
nothing lost."""

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
def there(programs, tmp_path_factory) -> Path:
    """Runs of texts and of pairs, a classifier of the first, and files with a mistake each."""
    root = tmp_path_factory.mktemp("there")
    colours = ("red", "green", "blue", "white")
    texts = [f"the {fruit} is {colour}" for colour in colours for fruit in ("plum", "kiwi", "bean", "nut", "fig")]
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
        "train", NEW + " --train_file {there}/labelled.jsonl --denoiser_variant encoder --encoder_config {there}/short",
        "--max_seq_len 16 is longer than the 8 positions of the encoder"),
    "no room for a pair": (
        "train", NEW + " --train_file {there}/pairs.jsonl --max_seq_len 4", "--max_seq_len 4 has no room for a pair"),
    "blanks in a long text": (
        "infill", "--run {there}/run --device cpu --text '___" + " plum" * 20 + "'", "has 23 tokens.* run writes 16"),
    # a source alone longer than the budget
    "a long source": (
        "train", NEW + " --train_file {there}/long.jsonl",
        r"source of row 1 has \d+ tokens, and 13 is all that --max_seq_len 16 leaves.*--truncate_sources"),
    "a long source of a trained run": (
        "sample", "--run {there}/packed --device cpu --source '" + "plum " * 20 + "'",
        "source of row 1 has .* tokens.*--truncate_sources"),
    # a vocabulary that covers too little
    "a small vocabulary": (
        "train", NEW + " --train_file {there}/labelled.jsonl --vocab_size 7", r"does not know \d+\.\d % of the words"),
    "words that are too rare": (
        "train", NEW + " --train_file {there}/rare.txt --config vocab_min_frequency=2",
        r"vocabulary of \d+ tokens \(--vocab\) does not know 50\.0 % of the words .*--config max_unk_rate=0.1"),
    "a word list of another corpus": (
        "train", NEW + " --train_file {there}/labelled.jsonl --vocab {there}/words.txt",
        r"does not know \d+\.\d % of the words"),
    # labels that the classifier has not seen
    "a label that is none": (
        "train", "--eval --resume_dir {there}/run --latent_classifier {there}/classifier --target_label hot",
        r"--target_label hot is not a class.*cold.*warm"),
    "a label by number": (
        "sample", "--run {there}/run --device cpu --latent_classifier {there}/classifier --target_label 2",
        "--target_label 2 is not a class"),
    "a label without a classifier": (
        "train", "--eval --resume_dir {there}/run --target_label warm", "add --latent_classifier"),
    "a classifier of one class": (
        "classifier", "--diffusion_run {there}/run --train_file {there}/warm.jsonl --output_dir {out} --device cpu",
        r"two classes.*all of one \(warm\)"),
    "a classifier of texts without labels": (
        "classifier", "--diffusion_run {there}/run --train_file {there}/rare.txt --output_dir {out} --device cpu",
        "needs labels"),
    "a classifier of another run": (
        "train", "--eval --resume_dir {there}/packed --latent_classifier {there}/classifier --target_label warm",
        "was trained on the latents of another run"),
    # a checkpoint with another tokenizer
    "another tokenizer": (
        "train", "--eval --resume_dir {there}/exchanged", "exchanged was trained with another tokenizer"),
    "training on with another tokenizer": (
        "train", "--resume_training --resume_dir {there}/exchanged", "exchanged was trained with another tokenizer"),
    "samples of another tokenizer": (
        "sample", "--run {there}/exchanged --device cpu", "exchanged was trained with another tokenizer"),
    "no tokenizer": ("train", "--eval --resume_dir {there}/bare", "tokenizer is not there.*restore it"),
    "a judge that is not there": (
        "train", "--eval --resume_dir {there}/packed --output_dir {out} --bertscore_model nobody/nothing",
        "BERTScore's model nobody/nothing cannot be loaded"),
    "running text with classes": (
        "train", NEW + " --train_file {there}/labelled.jsonl --pretrain_blocks --class_conditional",
        "--pretrain_blocks trains on running text, which has no classes"),
    "embeddings of no size": (
        "train", NEW + " --train_file {there}/labelled.jsonl --config embedding_std=0", "--config embedding_std=0 "
        "leaves no"),
    "beginning from other tokens": (
        "train", NEW + " --train_file {there}/rare.txt --init_path {there}/run",
        "--init_path .*another tokenizer.*--vocab"),
}  # fmt: skip


@pytest.mark.parametrize("title", CASES)
def test_a_mistake_is_one_line(there, contents, monkeypatch, capsys, tmp_path, title):
    program, argv, said = CASES[title]
    words = shlex.split(argv.format(there=there, out=tmp_path / "out"))
    before = contents(there)
    monkeypatch.setattr("sys.argv", ["program", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        MODULES[program].main()
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(said, errors[0]), errors
    assert not list((tmp_path / "out").rglob("*samples*")), "told only after texts were sampled"
    assert contents(there) == before and not (tmp_path / "out" / "checkpoints").exists()
