"""The best checkpoint: what a metric that does not change means for it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from pipelines.best_checkpoint import Score, find_metric, larger_is_better, save_if_best
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
        save_if_best(run, state, Score("rougeL", score))
    said = capsys.readouterr().err
    assert state.best == {"metric": "rougeL", "value": 0.5, "step": 4}
    assert said.count("of equal steps best/ holds the first") == 1 and "rougeL is 0 at step 2 as at step 1" in said
    assert said.count("new best") == 2 and all(line.count("\n") == 0 for line in said.splitlines())


def test_a_name_means_the_end_of_a_key():
    keys = (
        "val_loss val_ema_loss val_ema_loss_q0 reference/val_perplexity model/greedy/perplexity "
        "model/greedy/gpt2_train_mauve model/greedy/gpt2_val_mauve model/greedy/minilm_val_mauve "
        "model/seq2seq/mbr_rougeL model/seq2seq/rougeL midpoints/greedy/perplexity model/nucleus/cond0_label_accuracy "
        "model/nucleus/label_accuracy"
    ).split()
    metrics = dict.fromkeys(keys, 0.0)
    means = {
        "val_ema_loss": "val_ema_loss",
        "mauve": "model/greedy/gpt2_val_mauve",
        "minilm_val_mauve": "model/greedy/minilm_val_mauve",
        "perplexity": "model/greedy/perplexity",
        "midpoints/perplexity": "midpoints/greedy/perplexity",
        "rougeL": "model/seq2seq/rougeL",
        "mbr_rougeL": "model/seq2seq/mbr_rougeL",
        "accuracy": "model/nucleus/label_accuracy",
        "reference/val_perplexity": "reference/val_perplexity",
        "auve": None,
    }
    assert {name: find_metric(name, metrics) for name in means} == means


def test_which_metrics_are_better_when_larger():
    larger = "gpt2_val_mauve sacrebleu mbr_rougeL label_accuracy autoencoder/greedy/exact_match diversity recovery"
    smaller = "val_ema_loss val_loss_q0 perplexity corpus_perplexity memorization self_bleu linear_auc empty"
    assert all(map(larger_is_better, larger.split()))
    assert not any(map(larger_is_better, smaller.split()))
