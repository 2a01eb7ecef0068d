"""The best checkpoint: which metric selects it, when it ends a run, and who reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.best_checkpoint import Score, find_metric, larger_is_better, save_if_best
from pipelines.load_run import load_run
from pipelines.training import is_finished
from utils import checkpoints
from utils.distributed import DistContext
from utils.errors import UserError
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import OptimizerOptions
from utils.state import State
from utils.trackers import read_metrics


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
    keys = [
        "val_loss",
        "val_ema_loss",
        "val_ema_loss_q0",
        "reference/val_perplexity",
        "model/greedy/perplexity",
        "model/greedy/gpt2_train_mauve",
        "model/greedy/gpt2_val_mauve",
        "model/greedy/minilm_val_mauve",
        "model/seq2seq/mbr_rougeL",
        "model/seq2seq/rougeL",
        "midpoints/greedy/perplexity",
        "model/nucleus/cond0_label_accuracy",
        "model/nucleus/label_accuracy",
    ]
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


# ------------------------------------------------------------------------------------------------------------- programs

EVERY_2 = "--num_train_steps 10 --save_and_sample_every 2"


def test_patience_ends_a_run_that_does_not_improve(programs, chain, tmp_path, capsys):
    """With a learning rate of 0 no validation is better than the first."""
    run, space = tmp_path / "run", f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, run, f"{EVERY_2} --learning_rate 0 --patience 1") == 0
    said = capsys.readouterr().err
    assert "ended by --patience at step 4 of 10: 1 validations were no better than val_ema_loss" in said
    assert checkpoints.load(run).step == 4 and checkpoints.load_best(run).step == 2 and is_finished(run)
    assert (run / "samples").exists() or list(run.glob("greedy-sample-*.txt"))
    capsys.readouterr()
    assert programs.resume("diffusion", run) == 0
    assert "has ended already; a larger --patience goes on" in capsys.readouterr().err
    assert checkpoints.load(run).step == 4
    assert programs.resume("diffusion", run, "--patience 3") == 0, "more patience"
    assert checkpoints.load(run).step == 8 and is_finished(run)


def test_the_checkpoint_that_is_read_is_chosen(programs, chain, tmp_path):
    """Unset: the newest, and the best of a run that was trained with --best_metric."""
    run, space = tmp_path / "run", f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, run, f"{EVERY_2} --learning_rate 0 --num_train_steps 4 --best_metric mauve") == 0
    best = checkpoints.load_best(run)
    assert best.metadata["best"]["metric"] == "mauve" and 0 <= best.metadata["best"]["value"] <= 1
    steps = {None: best.step, "best": best.step, "newest": 4}
    assert {name: load_run(run, device="cpu", **given(name)).step for name in steps} == steps
    args = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(json.dumps({**args, "best_metric": None}))
    assert load_run(run, device="cpu").step == 4 and load_run(run, device="cpu", checkpoint="best").step == best.step
    texts = [main_of_sample([str(place), "-n", "1", "--device", "cpu"], run) for place in (run, run / "best")]
    assert len(texts) == 2 and all(texts)
    shutil.rmtree(run / "best")
    with pytest.raises(UserError, match="it holds no best checkpoint: use the newest one"):
        load_run(run, device="cpu", checkpoint="best")


def given(name: str | None) -> dict[str, str]:
    return {} if name is None else {"checkpoint": name}


def main_of_sample(argv: list[str], run: Path) -> list[str]:
    from pipelines import sample

    assert sample.main(argv) in (0, None)
    return [path.name for path in run.rglob("*samples*")]


def test_a_denoiser_keeps_the_step_of_its_lowest_validation_loss(programs, chain, tmp_path):
    run = tmp_path / "run"
    flags = "--num_train_steps 6 --save_and_sample_every 2 --learning_rate 3e-3"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", run, flags) == 0
    losses = {line["step"]: line["val_ema_loss"] for line in read_metrics(run) if "val_ema_loss" in line}
    best = min((2, 4, 6), key=losses.get)
    assert checkpoints.load_best(run).metadata["best"] == {
        "metric": "val_ema_loss",
        "value": losses[best],
        "step": best,
    }


def test_stage_0_and_draft_models_keep_a_best_checkpoint(programs, chain, tmp_path, capsys):
    lm = tmp_path / "lm"
    flags = "--num_train_steps 4 --eval_every 2 --learning_rate 0 --best_metric bleu"
    assert programs.pretrain(lm, flags) == 0
    assert checkpoints.load_best(lm).step == 2 and "the model is that of the best checkpoint, of step 2" in (
        capsys.readouterr().err
    )
    ae = tmp_path / "ae"
    shutil.copytree(chain / "ae", ae)
    flags = "--eval_every 2 --learning_rate 0 --best_metric exact_match --config val_loss_examples=8"
    assert programs.draft_model(ae, flags) == 0
    assert checkpoints.load_best(ae / "drafter").metadata["best"]["metric"] == "exact_match"


@pytest.mark.parametrize(
    ("stage", "flags", "message"),
    [
        ("diffusion", "--best_metric rogueL", "is no validation metric of this run"),
        ("diffusion", "--best_metric rougeL", "is no validation metric of this run.*mauve, perplexity"),
        ("diffusion", "--best_metric val_ema_los", r"\(did you mean val_ema_loss\?\)"),
        (
            "diffusion",
            "--best_metric a/mauve",
            "not among the metrics of a validation.*go on with --resume",
        ),
        ("pretrain", "--patience 2", "--patience 2 watches a metric: name it with --best_metric"),
        ("pretrain", "--best_metric mauve", "choose one of bleu, exact_match"),
    ],
)
def test_a_metric_that_a_run_does_not_have_is_one_line(programs, chain, tmp_path, stage, flags, message):
    with pytest.raises(UserError, match=message) as error:
        if stage == "pretrain":
            programs.pretrain(tmp_path / "run", flags)
        else:
            programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
    assert "\n" not in str(error.value)
