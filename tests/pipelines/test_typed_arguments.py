"""Texts, classes and numbers that are typed or passed from Python get the checks of a file: one line for each."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import infill, rewrite, sample
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError, user_message

SPACE = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 16 --tx_dim 64 --tx_depth 1 "
    "--train_batch_size 8 --sampling_timesteps 2 --device cpu"
)
TEXT = "Ben ran to the garden one warm night."


@pytest.fixture(scope="module")
def runs(programs, chain, tmp_path_factory) -> dict[str, Path]:
    """latents: a run on an autoencoder. classes: one of token embeddings with classes. pairs: one with sources."""
    root = tmp_path_factory.mktemp("typed")
    texts = [
        f"the {fruit} is {color}" for color in ("red", "green", "blue") for fruit in ("plum", "kiwi", "bean", "fig")
    ]
    rows = {
        "classes": [{"text": text, "label": "warm" if "red" in text else "cold"} for text in texts],
        "pairs": [{"src": f"say {text}", "trg": text} for text in texts],
    }
    for name, lines in rows.items():
        file = root / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files = " ".join(f"--{split}_file {file}" for split in ("train", "valid", "test"))
        more = "--class_conditional" if name == "classes" else "--truncate_sources"
        assert programs.diffusion(f"{SPACE} {files} {more}", root / name) == 0
    return {"latents": chain / "diff", **{name: root / name for name in rows}}


@pytest.fixture(scope="module")
def pipelines(runs) -> dict[str, TextDiffusionPipeline]:
    return {
        name: TextDiffusionPipeline.from_pretrained(run, device="cpu", eval_batch_size=2) for name, run in runs.items()
    }


# ------------------------------------------------------------------------------------------------------------- Python

NO_TEXTS = {
    "a text alone": ("a text", "give a list of texts, as in ['a text']"),
    "bytes": (b"a text", "give a list of texts"),
    "nothing": (None, "give a list of texts"),
    "no texts": ([], "is empty"),
    "a set": ({"a"}, "give a list of texts"),
    "a table": ({"a": "b"}, "give a list of texts"),
    "a nested list": ([["a"]], "is ['a'], of type list: give a text"),
    "an array of two dimensions": (np.array([["a"]]), "give a list of texts"),
    "None among texts": ([TEXT, None], "2 of 2 is None, of type NoneType: give a text"),
    "bytes among texts": ([b"a"], "of type bytes: give a text"),
    "a number": ([1.5], "is 1.5, of type float: give a text"),
    "an empty text": ([TEXT, ""], "2 of 2 is blank"),
    "blanks": (["\u00a0 \t\n"], "is blank"),
    "control codes only": (["\x07\x1b"], "is blank"),
    "NUL": (["a\0b"], "contains a NUL character: remove it"),
    "not UTF-8": (["caf\udce9"], "'caf\\udce9', is not UTF-8"),
    "unknown words": (["\u4f60\u597d zzz"], "none of its words is in the vocabulary of this run"),
}


@pytest.mark.parametrize("case", NO_TEXTS)
def test_what_is_no_list_of_texts_is_refused(pipelines, case):
    texts, says = NO_TEXTS[case]
    calls = {
        "latents": (lambda p: p.variations(texts), lambda p: p.encode(texts)),
        "pairs": (lambda p: p.candidates(texts, 2), lambda p: p.generate_from_sources(texts, candidates=2)),
        "classes": (lambda p: p.encode(texts),),
    }
    for run, functions in calls.items():
        for function in functions:
            with pytest.raises(UserError) as caught:
                function(pipelines[run])
            line = user_message(caught.value)
            assert says in line and line.isprintable() and len(line) < 300


def test_infilling_refuses_the_same_but_unknown_words(pipelines):
    for case, (texts, says) in NO_TEXTS.items():
        if case == "unknown words":
            continue
        with pytest.raises(UserError, match=re.escape(says)):
            pipelines["classes"].infill(texts)


def test_texts_of_numpy_tuples_and_iterators_are_texts(pipelines):
    expected = pipelines["latents"].encode([TEXT]).x0
    for texts in ((TEXT,), np.array([TEXT]), iter([TEXT]), [np.str_(TEXT)]):
        assert torch.equal(pipelines["latents"].encode(texts).x0, expected)


@pytest.mark.parametrize(
    ("run", "texts", "says"),
    [
        ("latents", ["Ben ran " * 60], "has 122 tokens, of which 82 are cut: this run reads 40 tokens"),
        (
            "classes",
            ["the plum " * 30, "the", "is " * 40],
            r"has 62 tokens, of which 46 are cut \(and 1 more\): this run",
        ),
        ("classes", ["the zzz is red"], "1 of the 4 words of text, 'the zzz is red', are unknown"),
        ("latents", ["Ben \x1b[31m ran"], "text, .*, held escape sequences of a terminal, which were removed"),
    ],
)
def test_what_is_lost_of_a_text_is_said(pipelines, capsys, run, texts, says):
    pipelines[run].encode(texts)
    notes = capsys.readouterr().err.splitlines()
    assert re.search(f"^note: .*{says}", notes[0]), notes
    assert all(note.isprintable() for note in notes)


def test_a_source_that_is_cut_is_said(pipelines, capsys):
    pipelines["pairs"].candidates(["say the plum is red " * 10], 1)
    assert re.search(
        "^note: source, .*, has 52 tokens, of which 45 are cut: this run reads 14", capsys.readouterr().err
    )


@pytest.mark.parametrize("count", [0, -1, True, None, 1.0, "2", 10**30, float("nan")])
def test_counts(pipelines, count):
    latents, pairs = pipelines["latents"], pipelines["pairs"]
    for call in (
        lambda: latents.sample(count), lambda: latents.variations([TEXT], count), lambda: latents.trajectory(count),
        lambda: latents.trajectory(1, snapshots=count), lambda: pairs.candidates(["say the plum"], count),
        lambda: pairs.generate_from_sources(["say the plum"], candidates=count),
        lambda: latents.interpolate(TEXT, TEXT, count), lambda: pipelines["classes"].infill(["the ___"], count),
    ):  # fmt: skip
        with pytest.raises(UserError, match="is .*: give"):
            call()


def test_numbers_of_numpy_are_numbers(pipelines):
    latents = pipelines["latents"]
    same = latents.sample(2, seed=3, decoding="greedy")
    assert latents.sample(np.int64(2), seed=np.int32(3), decoding="greedy") == same
    assert len(latents.variations([TEXT], np.int8(2), strength=np.float32(0.7), decoding="greedy")[0]) == 2


@pytest.mark.parametrize(
    "options",
    [{"seed": None}, {"seed": 2.0}, {"seed": True}, {"seed": 2**64}, {"strength": float("nan")}, {"strength": "x"},
     {"strength": None}, {"strength": True}, {"strength": 0}, {"strength": 2}, {"guidance": float("inf")},
     {"decoding": 5}, {"decoding": ["greedy"]}, {"decoding": "GREEDY"}, {"class_id": "sports"}],
)  # fmt: skip
def test_options(pipelines, options):
    with pytest.raises(UserError, match=": (give|choose)|without classes"):
        pipelines["latents"].variations([TEXT], **options)


@pytest.mark.parametrize(
    "wanted",
    ["", " ", "hot", "wram", 2, -1, 1e9, float("nan"), b"warm", None, {"warm"}, {"warm": 1}, ["warm"], [],
     ["warm", None], [["warm"], ["cold"]], "1" * 5000, "\x1b[31m", "warm\0", "\udcff", np.array([[0, 1]])],
)  # fmt: skip
def test_what_is_no_class_is_refused(pipelines, wanted):
    if wanted is None:  # no class
        assert len(pipelines["classes"].sample(2, class_id=wanted)) == 2
        return
    with pytest.raises(UserError) as caught:
        pipelines["classes"].sample(2, class_id=wanted)
    assert re.search("give one of|give one class", str(caught.value)) and user_message(caught.value).isprintable()


def test_classes_of_numpy_and_torch(pipelines):
    classes = pipelines["classes"]
    warm = classes.sample(2, class_id="warm")
    for wanted in (
        1,
        np.int64(1),
        np.str_("warm"),
        torch.tensor(1),
        [1, "warm"],
        np.array([1, 1]),
        torch.tensor([1, 1]),
    ):
        assert classes.sample(2, class_id=wanted) == warm


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        (None, {}, "None is not a run folder: give the path"), ("", {}, "'' is not a run folder: give the path"),
        ("{run}/args.json", {}, "it is a file, so name the folder"), ("{run}", {"device": 0}, "--device must be one"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_named(runs, folder, options, message):
    with pytest.raises(UserError, match=message):
        TextDiffusionPipeline.from_pretrained(folder and folder.format(run=runs["classes"]), **options)


def test_an_unknown_utility_is_refused_before_sampling(pipelines):
    with pytest.raises(UserError, match="utility is 'rogue': give one of rouge1"):
        pipelines["pairs"].generate_from_sources(["say the plum"], candidates=10_000, utility="rogue")


# ----------------------------------------------------------------------------------------------------- command lines

COMMANDS = {
    "a text that is blank": (rewrite, "latents", ["--text", " "], "text is blank"),
    "the second of two": (rewrite, "latents", ["--text", TEXT, "--text", ""], "text 2 of 2 is blank"),
    "unknown words": (rewrite, "latents", ["--text", "zzz \u4f60\u597d"], "none of its words is in the vocabulary"),
    "not UTF-8": (rewrite, "latents", ["--text", "caf\udce9"], r"'caf\\udce9', is not UTF-8"),
    "a second text that is blank": (rewrite, "latents", ["--text", TEXT, "--to", " "], "--to is empty"),
    "one text is no interpolation": (
        rewrite, "latents", ["--text", TEXT, "--to", TEXT, "--num_samples", "1"], "--num_samples 1 is no inter"),
    "a strength that is no number": (rewrite, "latents", ["--text", TEXT, "--strength", "nan"], "--strength nan is no"),
    "a strength above 1": (rewrite, "latents", ["--text", TEXT, "--strength=1e400"], "--strength inf is no time"),
    "a text that begins with a hyphen": (
        rewrite, "latents", ["--text", "-x"], r"expected one argument \(a value that begins with a hyphen is written "),
    "blanks to fill": (infill, "classes", ["--text", "\0___"], "NUL"),
    "no samples": (sample, "latents", ["--num_samples", "0"], "--num_samples 0 is out of range: give 1 or more"),
    "samples below zero": (sample, "latents", ["--num_samples=-5"], "--num_samples -5 is out of range"),
    "more samples than memory": (sample, "latents", ["--num_samples", "1" * 30], "at most 10,000,000"),
    "a seed of 65 bits": (sample, "latents", ["--seed", "1" * 20], "--seed 1+ is out of range"),
    "a number of 5000 digits": (sample, "latents", ["--seed", "1" * 5000], "--seed: invalid int value"),
    "a class that is blank": (sample, "classes", ["--class_id", " "], "a blank is no label"),
    "a class that is unknown": (sample, "classes", ["--class_id", "wram"], "did you mean warm"),
    "a source that is blank": (sample, "pairs", ["--source", "\t"], "source is blank"),
    "a source of unknown words": (sample, "pairs", ["--source", "zzz"], "none of its words is in the vocabulary"),
    "a source without pairs": (sample, "latents", ["--source", TEXT], "trained without sources"),
    "another run": (sample, "latents", ["--resume_dir", "x"], "--run names the run here"),
    "a misspelt flag of the program": (sample, "latents", ["--sorce", "x"], "did you mean --source"),
    "a folder that is not named": (sample, "latents", ["--output_dir", ""], "--output_dir: it is empty"),
    "a file that is not named": (rewrite, "latents", ["--text_file", ""], "--text_file: it is empty"),
    "a device with a control code": (sample, "latents", ["--device", "c\x1b[31mpu"], "--device"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_a_mistake_on_the_command_line_is_one_line(runs, case, capsys):
    program, run, argv, says = COMMANDS[case]
    more = [] if "--device" in argv else ["--device", "cpu"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        program.main(["--run", str(runs[run]), *more, *argv])
    out = capsys.readouterr()
    lines = [line for line in out.err.splitlines() if not line.startswith("note: ")]
    assert (stopped.value.code, out.out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("error: ") and re.search(says, lines[0]) and lines[0].isprintable(), lines


def test_a_text_file_without_texts_is_named(runs, tmp_path, capsys):
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(SystemExit):
        rewrite.main(["--run", str(runs["latents"]), "--text_file", str(tmp_path / "blank.txt")])
    assert "blank.txt holds no text: write one per line" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- standard output


def test_a_closed_pipe_loses_no_text(runs, tmp_path, monkeypatch, capsys):
    """`sample ... | head -0`: the file is written before standard output."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = f"--run {runs['latents']} --device cpu --num_samples 3 --output_dir {tmp_path} --decoding greedy".split()
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", closed)
        with pytest.raises(SystemExit) as stopped:
            sample.main(argv)
    errors = capsys.readouterr().err
    assert stopped.value.code == 141 and "written to" in errors and "error" not in errors
    (file,) = tmp_path.glob("*.txt")
    assert len(file.read_text().splitlines()) == 3


def test_a_terminal_of_ascii_shows_other_letters_as_escapes(runs, monkeypatch):
    """The text comes before its variation, with letters that ASCII lacks."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    texts = ["--text", "Ben caf\u00e9 \u20ac", "--text", TEXT, "--num_samples", "1", "--decoding", "greedy"]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        assert rewrite.main(["--run", str(runs["latents"]), "--device", "cpu", *texts]) == 0
    assert terminal.buffer.getvalue().startswith(b"Ben caf\\xe9 \\u20ac\t")
