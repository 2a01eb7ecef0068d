"""How many texts the evaluation samples: what this machine samples and judges in the time that it may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

WANTED = 1000  # texts: MAUVE of fewer is noise
FEWEST = 50
TIMED = 48  # texts that are sampled to tell the rate
PASSES = 5  # of the scorer for each sample: likelihood and features of samples and references, of two splits


def affordable(seconds_of_one: float, seconds: float) -> int:
    """The number of texts for so many seconds: at most WANTED, in tens, and FEWEST however short the time is."""
    return max(FEWEST, min(WANTED, int(seconds / max(seconds_of_one, 1e-9)) // 10 * 10))


def seconds_of_a_text(run: Path, decoding: str, sources: Sequence[str] | None, scorer: str | None) -> float:
    """Seconds that a text of a trained run takes to be sampled, decoded and judged.

    sources: of a run on pairs. scorer: folder or hub id; None: judging is not counted.
    """
    from evaluation import scorers
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipe = TextDiffusionPipeline.from_pretrained(run)
    began = time.monotonic()
    if sources is None:
        texts = pipe(TIMED, decoding=decoding).texts
    else:
        texts = pipe(source=list(sources[:TIMED]), decoding=decoding).texts
    seconds = time.monotonic() - began
    if scorer is not None:
        judge = scorers.load(scorer, device=pipe.device)
        began = time.monotonic()
        judge.nll(texts)
        seconds += PASSES * (time.monotonic() - began)
    return seconds / len(texts)
