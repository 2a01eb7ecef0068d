"""Devices and ranks; two real processes give the results of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.distributed import (
    PATIENCE,
    DistContext,
    autocast,
    gather_objects,
    init_distributed,
    new_cpu_group,
    pick_device,
    wrap,
)
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    dist = init_distributed("cpu")
    assert dist == DistContext() and dist.is_main and dist.any(True) and not dist.any(False)
    assert gather_objects(dist, [1, 2]) == [1, 2] and dist.sum(torch.tensor(3.0)) == 3
    net = torch.nn.Linear(1, 1)
    assert wrap(net, dist) is net and not torch.distributed.is_initialized()


def test_an_absent_device_is_refused_in_one_line():
    for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(UserError, match=f"--device {kind}.*cpu"):
                pick_device(kind)
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("flag", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch, flag):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for own in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", own)
        assert pick_device(flag) == torch.device("cuda", int(own))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"process 3 of this machine finds 2 GPU\(s\): .*--device cpu"):
        pick_device(flag)


def test_several_processes_on_a_mac_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes cannot share a GPU of Apple: .*--device cpu"):
        init_distributed("mps")


def test_a_cpu_group_has_its_own_timeout(tmp_path):
    """The default of torch for a further group, half an hour, is shorter than some evaluations by the main rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        backend = new_cpu_group(PATIENCE)._get_backend(torch.device("cpu"))
        assert backend.options._timeout == PATIENCE
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_is_a_factory_of_contexts(name, dtype):
    factory = autocast(torch.device("cpu"), name)
    for _ in range(2):
        with factory():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_autocast_keeps_gradients_after_a_pass_without_gradients():
    """As in self-conditioning. Autocast caches its casts; one made without gradients has no path to the weights."""
    net = torch.nn.Linear(4, 4)
    with autocast(torch.device("cpu"), "bf16")():
        with torch.no_grad():
            net(torch.ones(2, 4))
        net(torch.ones(2, 4)).sum().backward()
    assert net.weight.grad is not None and net.weight.grad.any()


PROGRAM = """
import json, sys
import torch
from torch import nn
from utils.distributed import cleanup, gather_objects, init_distributed, wrap
from utils.ema import EMA
from utils.hooks import Logger
from utils.loop import train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions, OptimizerOptions
from utils.seeding import StepRNG
from utils.state import State

torch.set_num_threads(1)
dist, total, micros = init_distributed("cpu"), 8, 2
torch.manual_seed(0)
net, options = nn.Linear(4, 4), OptimizerOptions(learning_rate=1e-2, lr_warmup_steps=1, lr_schedule="greedy")
optimizer = make_optimizer(net, options)
wrapped = wrap(net, dist)
state = State(net, optimizer, make_lr_schedule(optimizer, options, 6), EMA(net), dist=dist, wrapped=wrapped)
rows = total // (dist.world_size * micros)

def step_fn(step, micro):
    start = (micro * dist.world_size + dist.rank) * rows
    rng = StepRNG(state.seed, step, total, start, start + rows)
    x = rng.normal("x", 4)
    return ((wrapped(x) - x.roll(1, 1)) ** 2).mean(1), {"n": torch.ones(rows), "c": torch.tensor(3.0)}

loop = LoopOptions(num_train_steps=6, gradient_accumulation_steps=micros, log_every=1)
train(state, step_fn, [Logger(1, sys.argv[1], total=6)], loop, clip_grad_norm=0.1, global_batch=total)
worlds = gather_objects(dist, [dist.world_size])
state.save(sys.argv[1], worlds=worlds)
cleanup()
"""


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, start in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run(
            [*start, str(script), str(tmp_path / name)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    lines = {
        n: [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")
    }
    for a, b in zip(lines["one"], lines["two"], strict=True):
        for line in (a, b):
            del line["seconds"], line["steps_per_second"]
        assert b == pytest.approx(a, rel=1e-5) and a["n"] == pytest.approx(1.0) and a["c"] == pytest.approx(3.0)
    state = json.loads(next((tmp_path / "two/checkpoints").glob("*/state.json")).read_text())
    assert state["facts"]["worlds"] == [2, 2]
