"""Evaluation with several processes: rank 0 computes the metrics; all ranks share the scorer's forward passes.

Perplexities and MAUVE features take the time, so their batches are distributed; n-grams and clusters are computed on
rank 0 alone. The batches do not depend on the number of processes, so the results are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from evaluation.scorers import Scorer
from utils.distributed import DistContext, broadcast_object, gather_objects
from utils.errors import UserError
from utils.heartbeat import beating

T = TypeVar("T")
DONE, FAILED = "done", "failed"


def on_rank0(dist: DistContext, scorer: Scorer | None, fn: Callable[[], T]) -> T:
    """Call fn() on rank 0 and return its result on every rank. Every rank must call this, with the same scorer.

    Meanwhile the other ranks compute their shards of the scorer's batches. An exception of fn is raised on rank 0, and
    as a UserError on the others.
    """
    if dist.world_size == 1:
        return fn()
    if not dist.is_main:
        while (message := broadcast_object(dist, None))[0] not in (DONE, FAILED):
            assert scorer is not None, "rank 0 has a scorer, but this rank has none"
            what, texts, max_length = message
            gather_objects(dist, [scorer.shard(what, texts, max_length, dist.rank, dist.world_size)])
        if message[0] == FAILED:
            raise UserError(message[1])
        return message[1]
    if scorer is not None:
        scorer.dist = dist
    try:
        with beating():  # its scorers beat by the batch, n-grams and clusters have no loop of ours
            result = fn()
    except Exception as error:
        broadcast_object(dist, (FAILED, str(error)))
        raise
    finally:
        if scorer is not None:
            scorer.dist = None
    return broadcast_object(dist, (DONE, result))[1]
