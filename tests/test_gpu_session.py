"""scripts/gpu_session.sh: its phases are processes with limits, within a budget; a record is made of what they found.

The session as a whole runs in .ci/run. Here phases run that fail, take too long or leave processes behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_session_record
from benchmarks.gpu_session import __main__ as program
from benchmarks.gpu_session import attention
from benchmarks.gpu_session.no_waiting import no_waiting
from benchmarks.gpu_session.phases import PHASES, Phase
from benchmarks.gpu_session.report import Report, read
from benchmarks.gpu_session.scales import SCALES, Setting
from benchmarks.gpu_session.session import RESERVE, Session
from benchmarks.gpu_session.waiting import CASES
from benchmarks.throughput_sizes import SIZES
from utils import kernels, loop
from utils.options import KernelOptions

ROOT = Path(__file__).resolve().parents[1]
# modules of phases: what each does in run(setting, report)
MODULES = {
    "good_phase": "report.measure('rate', 12.345678, '/s')\n    report.check('equal', True, 'to the last bit')",
    "wrong_phase": "report.check('equal', False, 'differs by 3')",
    "broken_phase": "report.measure('before', 1)\n    raise RuntimeError('no kernel for this')",
    "slow_phase": "report.measure('before', 2)\n    import subprocess, time\n"
    "    child = subprocess.Popen(['sleep', '60'])\n    report.measure('child', child.pid)\n    time.sleep(60)",
    "absent_phase": "from benchmarks.gpu_session.report import LeftOut\n    raise LeftOut('it needs a printer')",
}


@pytest.fixture
def phases(tmp_path, monkeypatch) -> dict[str, Phase]:
    """A phase for each of MODULES."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, body in MODULES.items():
        (folder / f"{name}.py").write_text(f"def run(setting, report):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return {name: Phase(name.removesuffix("_phase"), name, 60, 1, name) for name in MODULES}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_phase_that_fails_is_recorded_and_the_others_go_on(phases, tmp_path, capsys):
    out = tmp_path / "out"
    order = ("wrong_phase", "broken_phase", "absent_phase", "good_phase")
    assert Session(out, "tiny", 10, None).run([phases[name] for name in order]) == 1
    wrong, broken, absent, good = lines(out)
    assert [r["status"] for r in (wrong, broken, absent, good)] == ["failed", "failed", "left out", "passed"]
    assert wrong["checks"][0]["detail"] == "differs by 3"
    assert broken["measures"]["before"]["value"] == 1 and broken["last lines"][-1] == "RuntimeError: no kernel for this"
    assert absent["notes"] == ["left out: it needs a printer"]
    assert good["measures"]["rate"] == {"value": 12.346, "unit": "/s"}
    record = json.loads((out / "record.json").read_text())
    assert record["failed"] == ["wrong", "broken"] and record["left out"] == ["absent"] and record["gpu"] is None
    shown = capsys.readouterr().out
    assert "FAILED: equal: differs by 3" in shown and "| RuntimeError: no kernel for this" in shown
    assert "No GPU was found" in shown and (out / "table.txt").read_text().strip() in shown


def test_a_phase_that_takes_too_long_ends_with_its_processes(phases, tmp_path):
    slow = phases["slow_phase"]
    shortened = Phase(slow.name, slow.title, 8, 1, slow.module)
    assert Session(tmp_path, "tiny", 10, None).run([shortened]) == 1
    (result,) = lines(tmp_path)
    assert result["status"] == "timed out" and 8 <= result["seconds"] < 30
    assert result["measures"]["before"]["value"] == 2, "what it had measured is kept"
    child = result["measures"]["child"]["value"]
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_measures_as_long_as_there_is_time_may_be_cut_short(phases, tmp_path):
    slow = phases["slow_phase"]
    assert Session(tmp_path, "tiny", 10, None).run([Phase(slow.name, slow.title, 1, 1, slow.module, True)]) == 0
    assert lines(tmp_path)[0]["status"] == "cut short"


def test_phases_that_do_not_fit_the_budget_are_left_out_and_named(phases, tmp_path):
    session = Session(tmp_path, "tiny", 0.2, None)
    assert session.run([Phase("long", "a long one", 60, 30, "good_phase")]) == 0
    (result,) = lines(tmp_path)
    assert result["status"] == "left out" and "of --minutes 0.2 are left, and it needs 30" in result["notes"][0]
    assert session.record()["left out"] == ["long"]


def test_a_gpu_session_without_time_for_what_is_required_fails(phases, tmp_path):
    for gpu, may_be_cut, code in ((None, False, 0), ("NVIDIA H200", True, 0), ("NVIDIA H200", False, 1)):
        session = Session(tmp_path, "tiny", 0.4, gpu)
        assert session.run([Phase("long", "a long one", 60, 30, "good_phase", may_be_cut)]) == code
        assert session.record()["no time"] == ["long"]


def test_a_phase_leaves_to_later_ones_what_they_need(phases, tmp_path):
    session = Session(tmp_path, "tiny", (RESERVE + 300) / 60, None)
    long = [Phase("later", "required", 400, 250, "good_phase"), Phase("last", "optional", 400, 310, "good_phase", True)]
    assert session.run([phases["good_phase"], *long]) == 0
    first, later, last = lines(tmp_path)
    assert 45 <= first["limit"] <= 50 and 250 <= later["limit"] < 300 and last["status"] == "left out"


def test_the_time_begins_with_the_shell_script(monkeypatch):
    """Two imports of torch come before the session."""
    monkeypatch.setenv("SESSION_BEGAN", str(int(time.time()) - 100))
    assert 99 <= time.monotonic() - program.began() <= 110
    monkeypatch.delenv("SESSION_BEGAN")
    assert time.monotonic() - program.began() < 1
    script = (ROOT / "scripts/gpu_session.sh").read_text()
    assert script.index("export SESSION_BEGAN=") < script.index("import sys, torch")


def test_the_session_is_the_one_that_was_asked_for():
    """Its order, and the sizes on a GPU."""
    assert [phase.name for phase in PHASES if phase.is_required] == [
        "versions", "attention", "denoiser", "autoencoder", "sampling", "programs", "accumulation", "waiting",
    ]  # fmt: skip
    assert [phase.name for phase in PHASES if not phase.is_required] == ["throughput", "tests"]
    assert attention.LENGTHS == (40, 64, 65, 128, 192)
    paper, published = SCALES["paper"], SIZES["paper"]
    assert (paper.denoiser_steps, paper.autoencoder_steps, paper.compared_steps) == (300, 100, 5)
    assert replace(paper.size, texts=published.texts, sampled=published.sampled) == published
    assert paper.size.sampled == 128 and paper.size.steps == (25, 250)
    assert (paper.fast_texts, paper.validated) == (1000, 1000) and 250 <= paper.fast_batch <= 500


@pytest.mark.parametrize("folder", sorted((ROOT / "benchmarks/records").glob("*gpu_session*")), ids=lambda f: f.name)
def test_the_readme_of_a_record_is_made_of_it(folder):
    record = json.loads((folder / "record.json").read_text())
    has_throughput = (folder / "throughput.txt").is_file()
    assert (folder / "README.md").read_text() == gpu_session_record.readme(record, has_throughput)


def test_a_line_that_was_cut_off_does_not_lose_the_ones_before(tmp_path):
    report = Report(tmp_path / "a.jsonl")
    report.measure("rate", 1.0)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"check": "eq')
    assert read(tmp_path / "a.jsonl") == {"measures": {"rate": {"value": 1.0, "unit": ""}}, "checks": [], "notes": []}


@pytest.mark.parametrize(("flags", "message"), [
    ("--phases denoiser,cooking", "--phases 'cooking' is no phase: choose from versions, "),
    ("--minutes 0", "--minutes 0: give a positive number"),
    ("--output_dir {file}", "is a file: name a folder"),
])  # fmt: skip
def test_a_mistake_is_one_line(tmp_path, capsys, flags, message):
    (tmp_path / "file").write_text("")
    words = ["--output_dir", str(tmp_path / "out"), *flags.format(file=tmp_path / "file").split()]
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and message in line


def test_every_phase_is_a_module_with_its_function():
    for phase in PHASES:
        source = (ROOT / f"{phase.module.replace('.', '/')}.py").read_text()
        assert "\ndef run(setting: Setting, report: Report) -> None:" in source


@pytest.fixture
def kernels_as_before():
    yield
    kernels.set_kernels(KernelOptions(), torch.device("cpu"))
    kernels._chosen = None


def test_attention_in_half_precision_is_checked_and_a_wrong_one_is_found(tmp_path, monkeypatch, kernels_as_before):
    setting = Setting(SCALES["tiny"], torch.device("cpu"), tmp_path, tmp_path, 60)
    monkeypatch.setattr(attention, "LENGTHS", (40, 65))
    report = Report(tmp_path / "right.jsonl")
    attention.run(setting, report)
    checks = read(report.path)["checks"]
    assert report.failed == 0 and {check["check"].split(" attention")[0] for check in checks} >= {"plain", "fused"}
    right = attention.attend

    def nan_at_padding(q, k, v, bias):
        out = right(q, k, v, bias)
        return (
            out if q.dtype == torch.float32 else torch.where(bias.amin((1, 3))[..., None] < 0, out * float("nan"), out)
        )

    monkeypatch.setattr(attention, "attend", nan_at_padding)
    wrong = Report(tmp_path / "wrong.jsonl")
    attention.run(setting, wrong)
    assert wrong.failed == len(checks)


@pytest.mark.parametrize("gpu", [True, False])
def test_steps_are_strict_from_the_first_one_that_must_be_and_only_inside(monkeypatch, gpu):
    """Whether a step waits is seen on a GPU only: here, which mode each step gets."""
    modes, gradients = [], loop._gradients
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(loop, "_update", lambda state: modes.append(f"step {state.step}"))
    outside = loop._update
    with no_waiting(first_step=1):
        for step in range(2):
            loop._update(SimpleNamespace(step=step))
    strict = ["default", "step 0", "default", "error", "step 1", "default"]
    assert modes == (strict if gpu else ["step 0", "step 1"])
    assert loop._update is outside and loop._gradients is gradients


def test_the_cases_are_those_of_the_tests_on_a_gpu():
    assert set(SCALES["tiny"].cases) <= set(CASES) and SCALES["paper"].cases is None


def a_record(gpu: str | None, rate: float) -> dict:
    measures = {"steps per second": {"value": rate, "unit": "/s"}}
    phases = [
        {"phase": "denoiser", "title": "the denoiser", "status": "passed", "seconds": 60.0, "limit": 100.0,
         "measures": measures, "checks": [{"check": "a", "holds": True, "detail": ""}], "notes": []},
        {"phase": "sampling", "title": "texts", "status": "timed out", "seconds": 130.0, "limit": 130.0,
         "measures": {}, "checks": [], "notes": ["a note"], "last lines": ["", "compiling"]},
    ]  # fmt: skip
    return {
        "started": "2026-11-28 20:00:00", "seconds": 190.0, "minutes": 8, "gpu": gpu, "commit": "abc",
        "versions": {"torch": "2.11.0", "transformers": "5.17.0"}, "failed": ["sampling"], "phases": phases,
    }  # fmt: skip


@pytest.mark.parametrize("gpu", ["NVIDIA H100", None])
def test_a_record_says_what_was_reached_and_what_failed(tmp_path, gpu):
    results, record = tmp_path / "results", tmp_path / "record"
    results.mkdir()
    (results / "record.json").write_text(json.dumps(a_record(gpu, 72.5)))
    for name in ("results.jsonl", "table.txt"):
        (results / name).write_text("")
    assert gpu_session_record.main([str(results), "--output_dir", str(record)]) == 0
    text = (record / "README.md").read_text()
    assert "| sampling: texts | timed out | 130 |" in text and "ended by its limit of 130 s: compiling" in text
    assert "- sampling: a note" in text and (record / "results.jsonl").is_file()
    if gpu:
        assert "# GPU session on NVIDIA H100, 2026-11-28" in text and "| 72.5 | 60 | yes |" in text
        assert "| not measured | 5 | |" in text
    else:
        assert "# GPU session on a CPU" in text and "No GPU was found" in text and "aim on" not in text


def test_a_folder_that_is_no_session_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_session_record.main([str(tmp_path), "--output_dir", str(tmp_path / "a")])
    assert ended.value.code == 2 and "has no record.json" in capsys.readouterr().err


def test_sigterm_ends_the_session_and_its_phase_and_keeps_the_record(phases, tmp_path):
    """As when a scheduler ends the script."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_session import __main__ as program\n"
        "from benchmarks.gpu_session.phases import Phase\n"
        "program.PHASES = tuple(Phase(n, n, 60, 1, n + '_phase') for n in ('good', 'slow'))\n"
        "sys.exit(program.main(['--output_dir', sys.argv[1]]))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], env=environment, cwd=ROOT) as process:
        measured = tmp_path / "out/phases/slow_phase.jsonl"
        deadline = time.monotonic() + 60
        while not (measured.is_file() and "child" in measured.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 143
    assert [line["status"] for line in lines(tmp_path / "out")] == ["passed"]
    child = read(measured)["measures"]["child"]["value"]
    time.sleep(0.2)
    assert not _runs(child)
