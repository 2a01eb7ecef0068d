"""Judging by several processes: the main one computes every figure, the others help its scorer.

Perplexity and features for MAUVE are what costs, and their batches are shared out; n-grams and clusters are counted
once. Batches are the same whatever the number of processes, and so are the figures, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from evaluation.scorers import Scorer
from utils.distributed import Ranks, broadcast_object, gather_objects
from utils.errors import UserError

T = TypeVar("T")
DONE, FAILED = "done", "failed"


def on_rank0(ranks: Ranks, scorer: Scorer | None, deed: Callable[[], T]) -> T:
    """What deed() returns on the main process, on every one. All must call it, with the same scorer.

    UserError on every process where deed raises one.
    """
    if ranks.world == 1:
        return deed()
    if not ranks.main:
        while (asked := broadcast_object(ranks, None))[0] not in (DONE, FAILED):
            assert scorer is not None, "the main process has a scorer, and this one has none"
            what, texts, max_length = asked
            gather_objects(ranks, [scorer.part(what, texts, max_length, ranks.rank, ranks.world)])
        if asked[0] == FAILED:
            raise UserError(asked[1])
        return asked[1]
    if scorer is not None:
        scorer.ranks = ranks
    try:
        result = deed()
    except Exception as error:
        broadcast_object(ranks, (FAILED, str(error)))
        raise
    finally:
        if scorer is not None:
            scorer.ranks = None
    return broadcast_object(ranks, (DONE, result))[1]
