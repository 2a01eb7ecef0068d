"""How many texts the evaluation samples: what this machine samples and judges in the time that it may take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dataset_utils.corpus import Corpus

WANTED = 1000  # texts: MAUVE of fewer is noise
FEWEST = 50
TIMED = 48  # texts that are sampled to tell the rate
PASSES = 5  # of the scorer for each sample: likelihood and features of samples and references, of two splits


def affordable(seconds_of_one: float, seconds: float, classes: int = 0, of_a_class: int = 0) -> int:
    """The number of texts for so many seconds: at most WANTED, in tens, and FEWEST however short the time is.

    classes: of a run with classes, whose evaluation samples as many texts of each class, too, but at most of_a_class.
    """
    texts, more = seconds / max(seconds_of_one, 1e-9), classes * of_a_class
    texts = texts - more if texts >= more + of_a_class else texts / (1 + classes)
    return max(FEWEST, min(WANTED, int(texts) // 10 * 10))


def texts_of_a_class(corpus: Corpus) -> int:
    """The texts that an evaluation samples of each class, at most: as many as the smallest class has."""
    counts = [Counter(corpus.splits[name].labels or ()) for name in ("valid", "train")]
    return min((number for found in counts for number in found.values()), default=0)


def seconds_of_a_text(run: Path, decoding: str, sources: Sequence[str] | None, scorer: str | None) -> float:
    """Seconds that a text of a trained run takes to be sampled, decoded and judged; of a run on pairs, all candidates
    for a source, of which one is judged.

    sources: of a run on pairs. scorer: the value of --scorer. Judging is not counted if it is None, or a small scorer
    that the evaluation will train.
    """
    from evaluation import scorers
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipe = TextDiffusionPipeline.from_pretrained(run)
    count, each = TIMED, 1
    given = None
    if sources is not None:
        count = each = pipe.run.settings.config.pairs.seq2seq_candidates
        given = list(sources[: max(1, TIMED // each)])
    class_id = pipe.class_names[0] if pipe.class_names else None  # a network may need one
    began = time.monotonic()
    texts = pipe(count, source=given, class_id=class_id, decoding=decoding).texts
    seconds = time.monotonic() - began
    source = scorers.source_of(scorer, or_default=False)
    if source is not None:
        judge = scorers.load(source, device=pipe.device)
        began = time.monotonic()
        judge.nll(texts[::each])
        seconds += PASSES * (time.monotonic() - began)
    return each * seconds / len(texts)
