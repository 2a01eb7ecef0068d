"""What is said of speed: texts of all processes over the seconds of the slowest, by part."""

from __future__ import annotations

import time

import pytest

from utils.stopwatch import Stopwatch


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


def test_processes_side_by_side_are_as_fast_as_all_of_them_together():
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


def test_jobs_in_turn_take_the_time_of_all_of_them():
    metadata = Stopwatch.merge_sequential([of(denoise=(4.0, 16)), of(denoise=(1.0, 4), decode=(2.0, 4))]).metadata()
    assert metadata == {"speed/denoise_texts_per_second": 4.0, "speed/decode_texts_per_second": 2.0}


@pytest.mark.parametrize("processes, said", [(1, "denoise 4 texts/s"), (3, "denoise 12 texts/s")])
def test_the_line_of_progress_speaks_for_all(processes, said):
    assert of(denoise=(4.0, 16)).note(processes) == said
