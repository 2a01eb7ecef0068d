"""python -m pipelines.sample through its own command line: run, classes, sources, formats, closed pipes,
signals; and every command of the page about it."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.recipe.sample_count import seconds_of_a_text
from pipelines.rewrite import main as rewrite
from pipelines.sample import main as sample
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.requests import read_requests
from utils.run_folder import write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def class_run(programs, chain, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("classes") / "run"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", run, "--class_conditional") == 0
    return run


@pytest.fixture(scope="module")
def pair_run(programs, chain, tales_folder, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("pairs") / "run"
    data = " ".join(f"--{split}_file {tales_folder}/pairs_{split}.jsonl" for split in ("train", "valid", "test"))
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", run, f"{data} --seq2seq_candidates 2") == 0
    return run


def test_the_run_is_the_first_word_and_n_the_number(chain, tmp_path, capsys):
    outputs = []
    flags = ["--device", "cpu", "--sampling_timesteps", "3", "--output_dir", str(tmp_path)]
    for argv in (["--run", str(chain / "diff"), "--num_samples", "3"], ["-n", "3", str(chain / "diff")]):
        assert sample([*argv, *flags]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 3
    for words in ("-n 1 --eval_batch_size 5", "-n 3 --eval_batch_size 1", "-n 3 --eval_batch_size 2", "-n 1"):
        assert sample(["--no_tf32", str(chain / "diff"), *words.split(), *flags]) == 0
        n = int(words.split()[1])
        assert capsys.readouterr().out.splitlines() == outputs[0].splitlines()[:n], words


def test_json_lines_of_every_class(class_run, tmp_path, capsys):
    flags = ["--device", "cpu", "--class_id", "all", "-n", "2", "--format", "jsonl", "--guidance", "2", "--seed", "7"]
    assert sample([str(class_run), *flags, "--output_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["index"] for row in rows] == list(range(8)) and len({row["class"] for row in rows}) == 4
    assert rows[0].keys() == {"text", "seed", "index", "class", "source", "candidates", "decoding"}
    assert {(row["seed"], row["source"], row["candidates"], row["decoding"]) for row in rows} == {
        (7, None, None, "greedy")
    }
    (written,) = tmp_path.glob("*.jsonl")
    assert written.read_text() == out and not list(tmp_path.glob(".*"))


def test_classes_by_frequency_and_as_columns(class_run, tmp_path, capsys):
    flags = ["--device", "cpu", "--class_id", "prior", "-n", "9", "--format", "tsv", "--output_dir", str(tmp_path)]
    assert sample([str(class_run), *flags]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["index", "class", "source", "text"] and len(rows) == 9 and len({row[1] for row in rows}) > 1


@pytest.fixture
def named_classes(class_run, tmp_path) -> Path:
    """The run with classes of other names: numbers without 0, and of unequal frequencies."""
    run, counts = shutil.copytree(class_run, tmp_path / "named"), {"1": 0, "2": 3, "3": 0, "5": 1}
    args, survey = (json.loads((run / name).read_text()) for name in ("args.json", "survey.json"))
    survey["splits"]["train"]["labels"] = counts
    write_json(run / "args.json", args | {"class_names": [*counts]})
    write_json(run / "survey.json", survey)
    return run


def test_classes_are_drawn_by_the_frequency_of_their_names(named_classes, tmp_path, capsys):
    flags = ["--device", "cpu", "--class_id", "prior", "-n", "40", "--format", "tsv", "--output_dir", str(tmp_path)]
    assert sample([str(named_classes), *flags, "--sampling_timesteps", "2"]) == 0
    drawn = Counter(line.split("\t")[1] for line in capsys.readouterr().out.splitlines()[1:])
    assert drawn.keys() == {"2", "5"} and drawn["2"] > drawn["5"]
    path = named_classes / "survey.json"
    path.write_text(path.read_text().replace('"5": 1', '"6": 1'))
    with pytest.raises(SystemExit):
        sample([str(named_classes), *flags])
    assert "(survey.json) have no class 5: give a class, or all" in capsys.readouterr().err


def test_the_speed_of_a_run_whose_classes_are_numbers_is_measured(named_classes):
    assert seconds_of_a_text(named_classes, "greedy", None, None) > 0


def test_a_weight_of_guidance_by_either_name_needs_a_class(class_run, tmp_path, capsys):
    for flag in ("--guidance=2", "--cls_free_guidance=2"):
        with pytest.raises(SystemExit):
            sample([str(class_run), "--device", "cpu", "-n", "1", flag, "--output_dir", str(tmp_path)])
        assert "--guidance 2 needs a class" in capsys.readouterr().err


def test_sources_of_standard_input_with_candidates(pair_run, tmp_path, capsys, monkeypatch):
    lines = '{"source": "Ben ran to the garden."}\n{"source": "Later she sent it."}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    flags = ["--device", "cpu", "--candidates", "3", "--format", "jsonl", "--output_dir", str(tmp_path)]
    assert sample([str(pair_run), "--source_file", "-", *flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == ["Ben ran to the garden.", "Later she sent it."]
    assert all(len(row["candidates"]) == 3 and row["text"] in row["candidates"] for row in rows)


def test_a_likeness_by_bertscore_needs_a_model_before_anything_is_sampled(pair_run, tmp_path, capsys):
    flags = ["--device", "cpu", "--candidates", "2", "--mbr_utility", "bertscore", "--output_dir", str(tmp_path)]
    for more, message in (
        ([], "--mbr_utility bertscore needs a model: name one with --bertscore_model"),
        (["--bertscore_model", str(tmp_path / "none")], str(tmp_path / "none")),
    ):
        with pytest.raises(SystemExit):
            sample([str(pair_run), "--source", "Ben ran to the garden.", *flags, *more])
        assert message in capsys.readouterr().err


def test_lines_of_requests_are_those_of_a_file(tmp_path, monkeypatch):
    """A separator of Unicode ends no line, however the requests come; compressed files are read by their format."""
    rows = [{"source": "one\u2028two"}, {"source": "three", "class": "a"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = [read_requests("-")]
    (tmp_path / "A.JSONL").write_bytes(text.encode())
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(text.encode())
    found += [read_requests(str(tmp_path / name)) for name in ("A.JSONL", "a.jsonl.gz")]
    for requests in found:
        assert [(r.source, r.class_name) for r in requests] == [("one\u2028two", None), ("three", "a")]


def closed_pipe() -> None:
    raise BrokenPipeError


@pytest.mark.parametrize(
    "end, code",
    [
        (closed_pipe, 141),
        (lambda: os.kill(os.getpid(), signal.SIGINT), 130),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143),
    ],
    ids=["pipe", "SIGINT", "SIGTERM"],
)
def test_what_is_sampled_is_kept_when_the_reader_or_a_signal_ends_it(chain, tmp_path, capsys, monkeypatch, end, code):
    original, before = TextGenerator.stream, signal.getsignal(signal.SIGINT)

    def ended(self, *args):
        yield next(original(self, *args))
        end()
        yield next(original(self, *args))

    monkeypatch.setattr(TextGenerator, "stream", ended)
    flags = ["--device", "cpu", "-n", "20", "--output_dir", str(tmp_path)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here, in a job of the background
    try:
        with pytest.raises(SystemExit) as left:
            sample([str(chain / "diff"), *flags])
    finally:
        signal.signal(signal.SIGINT, before)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if str(tmp_path) in line]
    assert left.value.code == code and said.startswith("written to" if code == 141 else "interrupted: 8 texts are in")
    (written,) = tmp_path.iterdir()
    assert ".samples-8." in written.name and len(written.read_text().splitlines()) == 8


@pytest.mark.parametrize("name, code", [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)])
def test_a_signal_ends_a_real_process_and_its_texts_stay(chain, tmp_path, name, code):
    flags = f"--device cpu -n 1000000 --sampling_timesteps 2 --output_dir {tmp_path}".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.sample", str(chain / "diff"), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # readline takes no more than the line
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a job of the background
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(getattr(signal, name))
    rest, errors = process.communicate(timeout=60)
    (written,) = tmp_path.iterdir()
    count = len(written.read_text().splitlines())
    assert process.returncode == code and b"Traceback" not in errors
    assert errors.decode().splitlines()[-1] == f"interrupted: {count} texts are in {written}"
    assert written.read_bytes().startswith(first + rest) and f".samples-{count}." in written.name


def test_an_interrupted_call_without_a_text_leaves_no_file(chain, tmp_path, monkeypatch):
    def stream(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        yield []

    monkeypatch.setattr(TextGenerator, "stream", stream)
    with pytest.raises(SystemExit) as left:
        sample([str(chain / "diff"), "--device", "cpu", "--output_dir", str(tmp_path)])
    assert left.value.code == 143 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_show_denoising_is_the_trajectory(chain, tmp_path, capsys):
    flags = ["-n", "1", "--device", "cpu", "--sampling_timesteps", "3", "--output_dir", str(tmp_path)]
    shown = []
    for name in ("--trajectory", "--show_denoising"):
        assert sample([str(chain / "diff"), name, *flags]) == 0
        shown.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("[")])
    assert shown[0] == shown[1] and len(shown[0]) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"source": "a"}\nno json\n', "line 2: not JSON"),
        ('{"text": "a"}\n', 'line 1: no object with "source" or "class"'),
        ("\n", "holds no source"),
    ],
)
def test_a_bad_line_is_named(pair_run, tmp_path, capsys, content, message):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(SystemExit) as left:
        sample([str(pair_run), "--device", "cpu", "--source_file", str(tmp_path / "r.jsonl")])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in line


def test_a_class_per_line(class_run, tmp_path, capsys):
    lines = [f'{{"class": "{c}"}}\n' for c in (2, 0, 2)]
    (tmp_path / "r.jsonl").write_text("".join(lines))
    flags = ["--device", "cpu", "--source_file", str(tmp_path / "r.jsonl"), "-n", "2", "--format", "jsonl"]
    assert sample([str(class_run), *flags, "--output_dir", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [row["class"] for row in rows]
    assert names[0] == names[1] == names[4] == names[5] != names[2] == names[3] and len(rows) == 6


@pytest.mark.parametrize(
    ("main", "run", "argv", "message"),
    [
        (sample, "classes", "--source_file r.jsonl --class_id 1", "line 1 names a class, and so does --class_id 1"),
        (sample, "classes", "--source_file r.jsonl --source x", "--source names no class"),
        (sample, "classes", "--source x", "this run was trained without sources"),
        (sample, "classes", "--guidance 2", "--guidance 2 needs a class: add --class_id"),
        (sample, "chain", "--guidance 2", "--guidance 2 needs a condition"),
        (sample, "chain", "--class_id all", "--class_id all: this run was trained without classes"),
        (sample, "chain", "--format xml", "--format xml is unknown: give one of text, jsonl, tsv"),
        (sample, "chain", "--candidates 3", "--candidates 3 are drawn for a source: give --source or --source_file"),
        (sample, "chain", "second_run", "'second_run' is neither a flag nor a flag's value"),
        (sample, "chain", "--top_p 0.5", "--top_p 0.5 and --decoding greedy contradict each other"),
        (sample, "pairs", "", "this run generates from sources: give --source or --source_file"),
        (sample, "pairs", "--source x --candidates 3 -n 2", "--candidates gives one text for each source"),
        (sample, "pairs", "--source_file none.txt", "--source_file none.txt: no such file"),
        (sample, "pairs", "--source_file r.jsonl", "this run"),
        (rewrite, "classes", "--text x --guidance 2", "--guidance 2 needs a class: add --class_id"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_line(
    chain, class_run, pair_run, tmp_path, monkeypatch, capsys, main, run, argv, message
):
    monkeypatch.chdir(tmp_path)
    Path("r.jsonl").write_text('{"class": "1"}\n')
    folder = {"chain": chain / "diff", "classes": class_run, "pairs": pair_run}[run]
    with pytest.raises(SystemExit) as left:
        main([str(folder), "--device", "cpu", *argv.split()])
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if not line.startswith(("note:", "warning:"))]
    assert left.value.code == 2 and line.startswith("error: ") and message in line and not captured.out


def commands_of_the_page() -> list[str]:
    page = (ROOT / "docs/usage.md").read_text(encoding="utf-8")
    section = page.split("## Sample in the terminal\n")[1].split("\n## ")[0]
    return [line for block in re.findall(r"```bash\n(.*?)```", section, re.S) for line in block.splitlines()]


@pytest.mark.parametrize("command", commands_of_the_page())
def test_every_command_of_the_page_runs(command, chain, class_run, pair_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sources.txt").write_text("Ben ran to the garden.\nLater she sent it.\n")
    Path("requests.jsonl").write_text('{"source": "Ben ran to the garden."}\n{"source": "Later she sent it."}\n')
    runs = {"RUN": chain / "diff", "CLASSES": class_run, "PAIRS": pair_run}
    words = [str(runs.get(word, word)) for word in shlex.split(command)]
    if "<" in words:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(words.pop()).read_bytes())))
        words.remove("<")
    python, _, module, *argv = words
    assert python == "python" and importlib.import_module(module).main([*argv, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip()
