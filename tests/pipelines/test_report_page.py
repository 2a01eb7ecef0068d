"""The report of runs as a page: rendered from a real tiny run, and its files refused in one line when damaged."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.report.__main__ import main
from evaluation.report.charts import bin_counts, even_edges, line
from evaluation.report.curves import steps_per_second
from evaluation.report.run_files import read_run
from evaluation.report.scores import cell, half_width
from evaluation.report.texts import mark_kept, mark_run, players

SECTIONS = ("scores", "denoising", "samples", "distributions", "curves", "training", "protocol")
CLASSES = {
    "class_names": ["sports", "world"],
    "greedy": {
        "classes": [0, 1],
        "mauve": {"val": [[0.9, 0.1], [0.2, None]]},
        "predicted_shares": [[1, 0, 0], [0.5, 0.25, 0.25]],
    },
    "held-out texts": {"classes": [0, 1], "mauve": {"train": [[0.9, 0.1], [0.2, 0.8]]}, "predicted_shares": []},
    "protocol": {},
    "seeds": 1,
}  # fmt: skip
PAIRS = [
    {"source": "ein Haus", "reference": "a house", "references": ["a house", "a home"], "sample": "a horse",
     "chosen": "a house", "candidates": ["a horse", "a house"]},
]  # fmt: skip


class Page(HTMLParser):
    """The text of a page outside scripts, and everything that it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        given = dict(attrs)
        self.ids |= {given["id"] or ""} if "id" in given else set()
        found = [given[name] or "" for name in ("src", "href", "action", "data", "poster") if name in given]
        self.loaded += [value for value in found if not value.startswith(("#", "data:"))]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)


def put(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="module")
def evaluated(programs, chain, tmp_path_factory) -> Path:
    """A trained run with an evaluation."""
    folder = tmp_path_factory.mktemp("report") / "diff"
    shutil.copytree(chain / "diff", folder)
    assert programs.again("diffusion", folder, "--eval --num_samples 7") == 0
    return folder


@pytest.fixture
def run(evaluated, tmp_path) -> Path:
    """A copy of the evaluated run without its tensors, which a test may change."""
    folder = tmp_path / "runs" / "diff"
    unread = shutil.ignore_patterns(
        "*.safetensors", "checkpoints", "latent_cache", "scorer", "references", "autoencoder"
    )
    shutil.copytree(evaluated, folder, ignore=unread)
    return folder


def refusal(arguments: list[object], capsys) -> str:
    """The one line with which the program refuses its arguments."""
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    assert stopped.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    return message


def test_a_real_run_becomes_one_page_with_every_section(run, capsys):
    assert main([str(run)]) == 0
    written = capsys.readouterr()
    assert f"report: {run / 'report.html'}" in written.out and not written.err
    page = Page(run / "report.html")
    assert set(SECTIONS) <= page.ids
    assert not page.loaded, "the page loads something"
    for sample in json.loads((run / "evaluation/eval-valid-seed42-greedy-samples.json").read_text()):
        assert " ".join(sample.split()) in page.text.replace(" .", ".")
    digest = json.loads((run / "args.json").read_text())["corpus"]["splits"]["train"]["texts"]
    assert digest[:16] in page.text
    assert "MAUVE against validation texts" in page.text and "nearest training text" in page.text
    figures = list((run / "report-figures").iterdir())
    assert len(figures) > 5 and all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert {"loss.png", "learning_rate.png", "gradient_norm.png", "lengths.png"} <= {path.name for path in figures}


def test_several_runs_share_a_table_and_say_where_protocols_differ(run, tmp_path, capsys):
    other = tmp_path / "runs" / "other"
    shutil.copytree(run, other)
    metrics = json.loads((other / "evaluation/eval-valid.json").read_text())
    metrics["model/greedy/perplexity"] = 4321.0
    metrics["protocol"]["step"] += 90  # a longer training, under the same protocol
    put(other / "evaluation/eval-valid.json", metrics)
    assert main([str(run), str(other), "--output", str(tmp_path / "same.html")]) == 0
    same = Page(tmp_path / "same.html")
    assert "warning" not in same.ids and "4,321" in same.text
    assert "runs/diff" in same.text and "runs/other" in same.text

    metrics["protocol"] |= {"n": 6, "sampling_timesteps": 99}
    put(other / "evaluation/eval-valid.json", metrics)
    assert main([str(run), str(other), "--output", str(tmp_path / "page.html")]) == 0
    page = Page(tmp_path / "page.html")
    assert "warning" in page.ids and "Protocols differ" in page.text
    warning = (tmp_path / "page.html").read_text().split('id="warning"')[1].split("</section>")[0]
    assert "sampling_timesteps" not in warning  # another sampler is what one compares, not another protocol
    assert "sampling_timesteps" in page.text


def test_intervals_over_seeds_are_shown(run):
    metrics = json.loads((run / "evaluation/eval-valid.json").read_text())
    values = [0.90, 0.92, 0.91, 0.93, 0.89]
    protocol = metrics.pop("protocol")
    summary = {"mean": 0.91, "std": 0.0158, "values": values}
    seeds = {f"model/greedy/diversity_seed{s}": v for s, v in zip(range(42, 47), values, strict=True)}
    runs = {"runs": [protocol | {"seed": seed} for seed in range(42, 47)]}
    put(run / "evaluation/eval-test.json", {**seeds, "model/greedy/diversity": summary, "protocol": runs})
    assert main([str(run)]) == 0
    text = Page(run / "report.html").text
    assert "0.91 ± 0.02" in text and "mean of 5 seeds" in text and "_seed42" not in text
    assert "seeds 42, 43, 44, 45, 46" in text


def test_classes_and_pairs_have_sections(run):
    put(run / "evaluation/eval-valid-classes.json", CLASSES)
    put(run / "evaluation/eval-valid-seed42-greedy-pairs.json", PAIRS)
    assert main([str(run)]) == 0
    page = Page(run / "report.html")
    assert {"classes", "pairs"} <= page.ids
    for text in ("ein Haus", "a home", "a horse", "2 candidates", "Predicted class: greedy samples"):
        assert text in page.text
    assert len(list((run / "report-figures").glob("mauve_*.png"))) == 2


def test_what_a_run_lacks_is_left_out_with_a_sentence(run, capsys):
    for path in run.iterdir():
        if path.name not in ("args.json", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main([str(run)]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: ") and "has no evaluation" in note and "--eval --resume_dir" in note
    page = Page(run / "report.html")
    assert set(SECTIONS) <= page.ids
    for sentence in (
        "No evaluation yet",
        "No samples are recorded",
        "No trajectory is recorded",
        "No texts are recorded",
    ):
        assert sentence in page.text
    (run / "metrics.jsonl").unlink()
    assert main([str(run)]) == 0
    assert "No curves are recorded" in Page(run / "report.html").text


def test_stages_before_diffusion_have_reports_too(chain, tmp_path):
    for stage in ("lm", "ae"):
        assert main([str(chain / stage), "--output", str(tmp_path / f"{stage}.html")]) == 0
        assert "Reconstructed exactly" in Page(tmp_path / f"{stage}.html").text


DAMAGES = {
    "args.json": ('{"seed": 42', "args.json"),
    "survey.json": ("[1, 2]", "survey.json"),
    "metrics.jsonl": ('nonsense\n{"step": 1, "loss": 1}\n', "line 1"),
    "evaluation/eval-valid.json": ('{"model/greedy/perplexity": 1,\n', "line 2"),
    "metrics.json": ('{"model/greedy/perplexity": {"mean": 1, "values": 3}}', "metrics.json"),
    "evaluation/eval-valid-seed42-greedy-samples.json": ('["a", 2]', "entry 2"),
    "evaluation/eval-valid-seed42-greedy-nearest.json": ('[null, {"text": "a", "similarity": NaN}]', "entry 2"),
    "evaluation/eval-valid-seed42-greedy-pairs.json": ('[{"source": "a"}]', "entry 1"),
    "evaluation/eval-valid-classes.json": ('{"class_names": ["a"], "greedy": {"classes": [7]}}', "classes.json"),
    "evaluation/trajectory.json": ('{"steps": 2, "views": [{"step": 1, "t": 0.5, "texts": "no"}]}', "trajectory.json"),
    "evaluation/latent_norms.json": ('{"histograms": {"a": {"edges": [1], "counts": [1]}}}', "latent_norms.json"),
    "parameters.json": ('{"parts": {"denoiser": {"total": "many"}}}', "parameters.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_one_line(name, run, capsys):
    content, named = DAMAGES[name]
    (run / name).write_text(content)
    message = refusal([run], capsys)
    assert named in message and Path(name).name in message and ("restore" in message or "remove" in message)
    assert not (run / "report.html").exists()


def test_a_file_of_other_bytes_is_one_line(run, capsys):
    (run / "evaluation/eval-valid.json").write_bytes(b"\xff\xfe\x00{")
    assert "eval-valid.json" in refusal([run], capsys)


def test_entries_of_another_kind_are_passed_over(run):
    """What only describes a run is shown as far as it is understood."""
    args = json.loads((run / "args.json").read_text())
    put(
        run / "args.json",
        args | {"corpus": [1], "num_train_steps": "many", "package_versions": 3, "trainable_params": None},
    )
    put(run / "survey.json", {"splits": {"train": 5}})
    assert main([str(run)]) == 0
    assert "many" in Page(run / "report.html").text


def test_what_is_no_run_is_one_line(run, tmp_path, capsys):
    assert "no folder" in refusal([tmp_path / "nothing"], capsys)
    assert f"name one of {run}" in refusal([tmp_path / "runs"], capsys)  # the folder above
    assert "named twice" in refusal([run, f"{run}/"], capsys)
    assert "is a folder" in refusal([run, "--output", tmp_path], capsys)
    assert ".html" in refusal([run, "--output", tmp_path / "page.pdf"], capsys)
    assert "--help" in refusal([], capsys)


@pytest.mark.parametrize("package", ["bokeh", "jinja2", "matplotlib"])
def test_a_missing_package_is_one_line(package, run, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {package}" in refusal([run], capsys)


# -------------------------------------------------------------------------------------------------------- its pieces


def test_shared_runs_are_marked_whatever_stands_between_the_words():
    assert mark_run("Then, he (quickly) left.", "he quickly left") == [
        ("Then, ", False), ("he (quickly) left", True), (".", False),
    ]  # fmt: skip
    assert mark_run("nothing of it", "a+b") == [("nothing of it", False)] == mark_run("nothing of it", "")


def test_words_that_the_last_step_keeps_are_marked():
    pieces = mark_kept("the red dog sat", "the big dog sat down")
    assert pieces == [("the ", True), ("red ", False), ("dog sat ", True)]


def test_the_player_ends_with_the_samples(run):
    (player,) = players([read_run(run, "diff")])
    assert player.of == 2 and [step.step for step in player.steps] == [1, 2]
    assert all(on for text in player.steps[-1].texts for _, on in text)


def test_the_interval_is_that_of_student():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.4841, abs=1e-4)  # 4.3027 * 1 / sqrt(3)
    assert half_width([1.0]) is None
    assert cell({"mean": None, "std": None, "values": [None]}).text == "not defined"


def test_speed_is_read_from_seconds_that_begin_anew_after_a_resume():
    seconds = [(10, 5.0), (20, 6.0), (30, 3.0), (40, 5.0)]
    assert steps_per_second({"seconds": seconds}) == [(20, 10.0), (40, 5.0)]
    assert steps_per_second({"steps_per_second": [(1, 2.0)], "seconds": seconds}) == [(1, 2.0)]


def test_long_curves_are_thinned_by_means_and_histograms_count_everything():
    series = line("loss", [(step, float(step % 2)) for step in range(4000)], "red")
    assert len(series.x) == 400 and all(y == 0.5 for y in series.y)
    values = [0.0, 0.1, 0.1, 1.0]
    assert sum(bin_counts(values, even_edges({"a": values}))) == 4
    lengths = [3.0, 5.0, 5.0]
    assert bin_counts(lengths, even_edges({"a": lengths}, whole=True)) == [1, 0, 2]
    assert even_edges({"a": [0.3, 0.3]}) == [pytest.approx(0.25), pytest.approx(0.35)]


def test_keys_of_charts_differ(run, tmp_path):
    from evaluation.report.page import chart_groups

    put(run / "evaluation/eval-valid-classes.json", CLASSES)
    other = tmp_path / "runs" / "other"
    shutil.copytree(run, other)
    runs = [read_run(folder, folder.name) for folder in (run, other)]
    keys = [chart.key for group in chart_groups(runs).values() for chart in group]
    assert len(keys) == len(set(keys)) and all(re.search(r"\w", key) for key in keys)
