"""Evaluation with several processes gives the results of one: rank 0 computes, all ranks share the scorer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.distributed import on_rank0
from evaluation.protocols import evaluate_texts
from utils.distributed import DistContext

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
import torch
from utils.distributed import cleanup, gather_objects, init_distributed
torch.set_num_threads(1)
dist = init_distributed("cpu")
from evaluation import scorers
from evaluation.protocols import evaluate_texts
from evaluation.distributed import on_rank0
from utils.errors import UserError
scorers.BATCH_TOKENS = 64
scorer, calls = scorers.load(sys.argv[1]), []
scorer.model.register_forward_hook(lambda *call: calls.append("nll"))
scorer.model.base_model.register_forward_hook(lambda *call: calls.append("states"))
stories, calls_of_fn = json.load(open(sys.argv[2])), []

def evaluate():
    calls_of_fn.append(1)
    return evaluate_texts(stories[:41], {"val": stories[39:]}, stories[:10], scorer)

result = on_rank0(dist, scorer, evaluate)
alone = scorer.nll(stories[:3]).nll  # on this rank alone
try:
    on_rank0(dist, scorer, lambda: 1 / 0 if not dist.is_main else scorers.load(None))
    message = None
except UserError as error:
    message = str(error)
found = gather_objects(dist, [[dist.world_size, result, len(calls_of_fn), len(calls), message, alone]])
if dist.is_main:
    json.dump(found, open(sys.argv[3], "w"))
cleanup()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_results_do_not_depend_on_the_number_of_processes(local_lm_folder, stories, tmp_path, processes):
    script, texts = tmp_path / "program.py", tmp_path / "texts.json"
    script.write_text(PROGRAM)
    texts.write_text(json.dumps(stories))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    found = {}
    for n in (1, processes):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        argv = [str(script), str(local_lm_folder), str(texts), str(tmp_path / f"{n}.json")]
        done = subprocess.run([*launch, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        found[n] = json.loads((tmp_path / f"{n}.json").read_text())
    (alone,), several = found[1], found[processes]
    assert [world for world, *_ in several] == [processes] * processes
    assert [calls_of_fn for _, _, calls_of_fn, *_ in several] == [1] + [0] * (processes - 1), "only rank 0 computes"
    work = [calls for _, _, _, calls, *_ in several]
    assert max(work) < 0.8 * alone[3] and min(work) > 0.15 * alone[3], (work, alone[3])
    for _, result, _, _, message, nll in several:
        assert result == alone[1] and nll == alone[5]
        assert message is not None and "no scorer" in message, "an error of rank 0 is raised on every rank"


def test_one_process_needs_no_communication(scorer, stories):
    result = on_rank0(DistContext(), scorer, lambda: evaluate_texts(stories[:5], {}, [], scorer))
    assert result["perplexity"] > 0 and scorer.dist is None
