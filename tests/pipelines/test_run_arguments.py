"""Arguments of sample, infill and rewrite: a run folder or a checkpoint; mistakes give one line and exit status 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latent_models.tokenizers.__main__ import main as tokenizers
from pipelines.cli.run_arguments import check_no_decoding, parse_known, run_folder, run_parser
from pipelines.infill import main as infill
from pipelines.rewrite import main as rewrite
from pipelines.sample import main as sample
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError


def test_a_checkpoint_folder_gives_its_run_folder(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000005"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "args.json").write_text("{}")
    assert run_folder(checkpoint) == run_folder(tmp_path / "run") == tmp_path / "run"


def test_a_checkpoint_folder_is_the_best_or_the_newest(tmp_path):
    run = tmp_path / "run"
    for name in ("checkpoints/step_00000005", "checkpoints/step_00000010", "checkpoints/step_00000010.partial", "best"):
        (run / name).mkdir(parents=True)
    (run / "args.json").write_text("{}")
    for name, typed, expected in (
        ("checkpoints/step_00000010", [], ["--checkpoint", "newest"]),
        ("best", [], ["--checkpoint", "best"]),
        ("best", ["--checkpoint=newest"], ["--checkpoint=newest"]),
        (".", [], []),
    ):
        given, others = parse_known(run_parser("x", "", samples=1, of=""), ["--run", str(run / name), *typed])
        assert given.run == run and others == expected
    with pytest.raises(UserError, match="no longer the newest checkpoint, which is step_00000010"):
        parse_known(run_parser("x", "", samples=1, of=""), ["--run", str(run / "checkpoints/step_00000005")])


@pytest.mark.parametrize("flags", ["--top_p 0.9", "--decoding=nucleus", "--cls_free_guidance 2"])
def test_what_infilling_does_not_read_is_refused(flags, tmp_path, capsys):
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(SystemExit):
        infill(["--run", str(tmp_path), "--text", "A ___.", *flags.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert flags.split("=")[0].split()[0] in line and "leave it out" in line


@pytest.mark.parametrize("main", [sample, infill, rewrite])
@pytest.mark.parametrize(
    "argv, message",
    [
        ("", "--run"),
        ("--run {here}", "{here} is not a run folder"),
        ("--run {here} --num_samples x", "--num_samples: invalid int value: 'x'; see --help"),
    ],
)
def test_a_mistake_is_reported_in_one_line(main, argv, message, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv.format(here=tmp_path).split())
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message.format(here=tmp_path) in line


@pytest.mark.parametrize("main", [infill, rewrite])
def test_texts_come_from_flags_or_a_file(main, tmp_path: Path, capsys):
    (tmp_path / "args.json").write_text("{}")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for flags, message in (
        ("", "give --text or --text_file"),
        (f"--text_file {tmp_path / 'none.txt'}", "no such file"),
        (f"--text_file {tmp_path / 'latin.txt'}", "latin.txt, line 1: not UTF-8"),
    ):
        with pytest.raises(SystemExit):
            main(["--run", str(tmp_path), *flags.split()])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_rewrite_writes_variations_an_interpolation_or_an_edit(chain, capsys):
    few = ["--run", str(chain / "diff"), "--device", "cpu", "--sampling_timesteps", "6"]
    text, other = "Ben ran to the garden one warm night.", "Later she gave it to her mother."
    assert rewrite([*few, "--text", text, "--text", other, "--num_samples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [text, text, other, other]
    assert rewrite([*few, "--text", text, "--to", other, "--num_samples", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    edit = ["--add", "She ran.", "--add", "She slept.", "--remove", "Ben ran.", "--edit_weight", "0.5"]
    assert rewrite([*few, "--text", text, *edit, "-n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for wrong in (["--add", "a"], ["--remove", "a"], ["--edit_weight", "1"], ["--to", other, *edit]):
        with pytest.raises(SystemExit):
            rewrite([*few, "--text", text, *wrong])
        assert re.search("an edit needs a text|--add edits", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        rewrite([*few, "--text", text, "--text", other, "--to", other])
    assert "give one --text" in capsys.readouterr().err
    for wrong in (["--invert"], ["--invert", "--to", other, "--strength", "0.5"]):
        with pytest.raises(SystemExit):
            rewrite([*few, "--text", text, *wrong])
        assert "--invert interpolates without added noise" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--decoding", "nucleus"], ["--add", "She ran.", "--remove", "Ben ran."]])
def test_a_file_of_many_texts_is_rewritten_a_part_at_a_time(chain, tmp_path, capsys, flags):
    """Four texts are a part: two lines of each fill a block. How many are computed together changes none."""
    texts = [f"Ben ran to the {place}." for place in ("garden", "sea", "town", "forest")] * 2 + ["She ran."]
    few = ["--run", str(chain / "diff"), "--device", "cpu", "--sampling_timesteps", "6", "-n", "2", *flags]

    def lines(number: int, *more: str) -> list[str]:
        (tmp_path / "texts.txt").write_text("".join(text + "\n" for text in texts[:number]))
        assert rewrite([*few, "--text_file", str(tmp_path / "texts.txt"), *more]) == 0
        return capsys.readouterr().out.splitlines()

    every = lines(len(texts))
    assert [line.split("\t")[0] for line in every] == [text for text in texts for _ in range(2)]
    assert every[:8] == lines(4), "the first part is as alone"
    assert every == lines(len(texts), "--eval_batch_size", "3")


def test_the_rows_of_many_texts_are_passed_on_as_soon_as_they_are_done(chain, encodings):
    pipeline = TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", sampling_timesteps=2)
    seen: list[list[list[str]]] = []
    rows = pipeline.variations(["Ben ran.", "She slept."] * 3, 3, decoding="greedy", on_rows=seen.append)
    assert [len(part) for part in seen] == [2, 2, 2] and sum(seen, []) == rows
    assert all(len(row) == 3 for row in rows) and encodings == [2, 2, 2]
    encodings.clear()
    assert len(pipeline.encode(["Ben ran."] * 10)) == 10 and encodings == [8, 2]


@pytest.mark.parametrize(
    "argv, message",
    [
        ("", "arguments are required: kind"),
        ("train-word-level x --vocab_size many", "--vocab_size: invalid int value: 'many'"),
        ("train-word-level x --max_length 0", "--max_length 0 is too small"),
    ],
)
def test_tokenizer_program_reports_mistakes_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as left:
        tokenizers(argv.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in line


def test_runs_of_embeddings_reject_decoding_strategies():
    check_no_decoding("beam", of_embeddings=False)
    check_no_decoding("greedy", of_embeddings=True)
    with pytest.raises(UserError, match="--decoding nucleus is for language models"):
        check_no_decoding("nucleus", of_embeddings=True)
