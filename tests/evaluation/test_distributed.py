"""Several processes judge as one does: figures by the main one, the scorer's batches shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.distributed import on_rank0
from evaluation.protocols import evaluate_texts
from utils.distributed import Ranks

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
import torch
from utils.distributed import finish, gather_objects, init
torch.set_num_threads(1)
ranks = init("cpu")
from evaluation import scorers
from evaluation.protocols import evaluate_texts
from evaluation.distributed import by_main
from utils.errors import UserError
scorers.BATCH_TOKENS = 64
scorer, calls = scorers.load(sys.argv[1]), []
scorer.model.register_forward_hook(lambda *call: calls.append("nll"))
scorer.model.base_model.register_forward_hook(lambda *call: calls.append("states"))
stories, deeds = json.load(open(sys.argv[2])), []

def deed():
    deeds.append(1)
    return evaluate_texts(stories[:41], {"val": stories[39:]}, stories[:10], scorer)

result = by_main(ranks, scorer, deed)
alone = scorer.nll(stories[:3]).nll  # nobody helps now
try:
    by_main(ranks, scorer, lambda: 1 / 0 if not ranks.main else scorers.load(None))
    said = None
except UserError as error:
    said = str(error)
found = gather_objects(ranks, [[ranks.world, result, len(deeds), len(calls), said, alone]])
if ranks.main:
    json.dump(found, open(sys.argv[3], "w"))
finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_figures_do_not_depend_on_the_number_of_processes(home_folder, stories, tmp_path, processes):
    script, texts = tmp_path / "program.py", tmp_path / "texts.json"
    script.write_text(PROGRAM)
    texts.write_text(json.dumps(stories))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    found = {}
    for n in (1, processes):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        argv = [str(script), str(home_folder), str(texts), str(tmp_path / f"{n}.json")]
        done = subprocess.run([*launch, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        found[n] = json.loads((tmp_path / f"{n}.json").read_text())
    (alone,), several = found[1], found[processes]
    assert [world for world, *_ in several] == [processes] * processes
    assert [deeds for _, _, deeds, *_ in several] == [1] + [0] * (processes - 1), "the main process counts"
    work = [calls for _, _, _, calls, *_ in several]
    assert max(work) < 0.8 * alone[3] and min(work) > 0.15 * alone[3], (work, alone[3])
    for _, result, _, _, said, nll in several:
        assert result == alone[1] and nll == alone[5]
        assert said is not None and "no scorer" in said, "an error of the main process is everyone's"


def test_one_process_judges_by_itself(scorer, stories):
    result = on_rank0(Ranks(), scorer, lambda: evaluate_texts(stories[:5], {}, [], scorer))
    assert result["perplexity"] > 0 and scorer.ranks is None
