"""The best checkpoint: what a metric that does not change means for it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from pipelines.best_checkpoint import save_if_best
from utils.distributed import DistContext
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import OptimizerOptions
from utils.state import State


def test_a_tie_keeps_the_first_step_and_is_said_once(tmp_path, capsys):
    """A metric that is 0 for every step, such as ROUGE of a language that it does not know, would do so for ever."""
    from pipelines.run_context import RunContext

    net, options = torch.nn.Linear(1, 1), OptimizerOptions()
    optimizer = make_optimizer(net, options)
    state = State(net, optimizer, make_lr_schedule(optimizer, options, 9))
    run = RunContext(SimpleNamespace(), DistContext(), tmp_path, None, None)
    for state.step, score in enumerate((0.0, 0.0, 0.0, 0.5, 0.5, 0.4), start=1):
        save_if_best(run, state, ("rougeL", score))
    said = capsys.readouterr().err
    assert state.best == {"metric": "rougeL", "value": 0.5, "step": 4}
    assert said.count("of equal steps best/ holds the first") == 1 and "rougeL is 0 at step 2 as at step 1" in said
    assert said.count("new best") == 2 and all(line.count("\n") == 0 for line in said.splitlines())
