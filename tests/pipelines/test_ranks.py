"""Several processes write the texts that one writes, and evaluate to the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.text_diffusion import TextDiffusionPipeline

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
import torch
from utils.distributed import finish, gather_objects, init
torch.set_num_threads(1)
ranks = init("cpu")
from pipelines.text_diffusion import TextDiffusionPipeline
generator = TextDiffusionPipeline.from_run(sys.argv[1], device="cpu", eval_batch_size=8).generator
generator.ranks = ranks
sampled = generator.sample(int(sys.argv[3]), 42, ["greedy", "nucleus"], quiet=True)
shares = gather_objects(ranks, [(ranks.world, sampled.speed.texts["denoise"])])
everywhere = gather_objects(ranks, [sampled.texts])
if ranks.main:
    json.dump({"shares": shares, "texts": everywhere}, open(sys.argv[2], "w"))
finish()
"""


def start(processes: int, *argv: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*launch, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_texts_do_not_depend_on_the_number_of_processes(chain, tmp_path, processes):
    n = 29  # of blocks of 8: two ranks have two each, three ranks have two, one and one
    script, out = tmp_path / "program.py", tmp_path / "out.json"
    script.write_text(PROGRAM)
    start(processes, str(script), str(chain / "diff"), str(out), str(n))
    found = json.loads(out.read_text())
    assert [world for world, _ in found["shares"]] == [processes] * processes
    assert sum(texts for _, texts in found["shares"]) == 32 and all(texts < 32 for _, texts in found["shares"])
    alone = TextDiffusionPipeline.from_run(chain / "diff", device="cpu", eval_batch_size=8).generator
    expected = alone.sample(n, 42, ["greedy", "nucleus"], quiet=True).texts
    assert found["texts"] == [expected] * processes, "every rank has every text"


@pytest.mark.slow
def test_an_evaluation_by_two_processes_finds_what_one_finds(programs, chain, tmp_path):
    flags = f"--eval --num_samples 20 --eval_batch_size 4 --decoding greedy,nucleus --scorer {programs.scorer}"
    assert programs.again("diffusion", chain / "diff", f"{flags} --output_dir {tmp_path / 'one'}") == 0
    argv = f"--resume_dir {chain / 'diff'} --no_wandb {flags} --output_dir {tmp_path / 'two'}"
    start(2, "train_text_diffusion.py", *argv.split())
    names = sorted(path.name for path in (tmp_path / "one" / "evaluation").glob("*samples*"))
    assert len(names) == 4
    for name in names:
        one, two = ((tmp_path / run / "evaluation" / name).read_text() for run in ("one", "two"))
        assert one == two
    one, two = (json.loads((tmp_path / run / "evaluation" / "eval-valid.json").read_text()) for run in ("one", "two"))
    for result in (one, two):
        assert all(result.pop(f"speed/{part}_texts_per_second") > 0 for part in ("denoise", "decode"))
    assert one == two
