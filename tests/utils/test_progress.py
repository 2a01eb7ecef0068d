"""Progress bars: lines in a log file, one moving line in a terminal. Stopwatches: seconds and texts by part."""

from __future__ import annotations

import io
import time

import pytest

from utils import progress
from utils.progress import ProgressBar, Stopwatch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_a_line_per_interval_and_one_at_the_end(monkeypatch):
    monkeypatch.setattr(progress, "FILE_SECONDS", 1e9)
    out = io.StringIO()
    with ProgressBar("encode", 1000, file=out, unit="text") as bar:
        for _ in range(1000):
            bar.advance(1, "loss 1")
        assert out.getvalue() == "", "no line per step"
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 and "\r" not in out.getvalue()
    assert lines[0].startswith("encode: 100% 1000/1000 [00:00<00:00, ") and lines[0].endswith(" texts/s, loss 1]")
    monkeypatch.setattr(progress, "FILE_SECONDS", 0.0)
    out = io.StringIO()
    with ProgressBar("encode", 4, file=out, unit="text") as bar:
        for _ in range(4):
            time.sleep(0.01)
            bar.advance()
    assert [line.split(" [")[0] for line in out.getvalue().splitlines()] == [
        "encode:  25% 1/4", "encode:  50% 2/4", "encode:  75% 3/4", "encode: 100% 4/4", "encode: 100% 4/4",
    ]  # fmt: skip


def test_the_rate_of_a_resumed_run_counts_only_its_own_steps():
    out = io.StringIO()
    bar = ProgressBar("train", 1000, start=900, file=out)
    time.sleep(0.05)
    bar.advance_to(901)
    assert bar.format_dict["initial"] == 900 and bar.format_dict["n"] == 901
    bar.close()
    rate = float(out.getvalue().split(", ")[1].split(" ")[0].removesuffix("s/"))
    assert rate < 25, "one step in at least 0.05 s"


def test_a_terminal_shows_one_moving_line_and_texts_above_it():
    out = Terminal()
    bar = ProgressBar("train", 10, start=5, file=out)
    bar.advance_to(6)
    bar.log("a sample")
    bar.close()
    bar.close()
    assert out.getvalue().count("\n") == 2 and "\r" in out.getvalue() and "a sample\n" in out.getvalue()


def test_a_log_file_gets_texts_as_they_are():
    out = io.StringIO()
    bar = ProgressBar("train", 10, file=out)
    bar.log("a sample")
    bar.close()
    bar.close()
    assert out.getvalue().splitlines()[0] == "a sample" and out.getvalue().count("\n") == 2


def test_a_disabled_bar_prints_nothing():
    for out in (io.StringIO(), Terminal()):
        with ProgressBar("train", 0, disable=True, file=out) as bar:
            bar.advance_to(3)
            bar.log("a sample")
        assert out.getvalue() == ""


# ------------------------------------------------------------------------------------------------ stopwatches


def of(**parts: tuple[float, int]) -> Stopwatch:
    watch = Stopwatch()
    for what, (seconds, texts) in parts.items():
        watch.seconds[what], watch.texts[what] = seconds, texts
    return watch


def test_seconds_and_texts_add_up_by_part():
    watch = Stopwatch()
    for texts in (2, 3):
        with watch.measure("decode", texts):
            time.sleep(0.01)
    assert watch.texts["decode"] == 5 and 0.02 <= watch.seconds["decode"] < 0.5
    assert watch.rates()["decode"] == watch.texts["decode"] / watch.seconds["decode"]


def test_parallel_processes_add_their_throughput():
    one, other = of(denoise=(4.0, 16), decode=(1.0, 16)), of(denoise=(5.0, 8), decode=(2.0, 8))
    one.count(20, 16)
    other.count(16, 8)
    both = Stopwatch.merge_parallel([one, other, of()])
    assert both.metadata() == {
        "speed/denoise_texts_per_second": 24 / 5,
        "speed/decode_texts_per_second": 12.0,
        "speed/verify_passes_per_text": 1.5,
    }
    assert one.seconds["denoise"] == 4.0 and Stopwatch.merge_parallel([one]).metadata() == one.metadata()


def test_sequential_jobs_add_their_time():
    metadata = Stopwatch.merge_sequential([of(denoise=(4.0, 16)), of(denoise=(1.0, 4), decode=(2.0, 4))]).metadata()
    assert metadata == {"speed/denoise_texts_per_second": 4.0, "speed/decode_texts_per_second": 2.0}


@pytest.mark.parametrize("processes, line", [(1, "denoise 4 texts/s"), (3, "denoise 12 texts/s")])
def test_the_progress_note_covers_all_processes(processes, line):
    assert of(denoise=(4.0, 16)).note(processes) == line
