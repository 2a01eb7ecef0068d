"""The best checkpoint: which metric selects it, when it ends a run, and who reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines import sample, train_classifier, train_diffusion
from pipelines.adapt_decoder import main as adapt_decoder
from pipelines.best_checkpoint import Score, find_metric, larger_is_better, save_if_best
from pipelines.cli.programs import CLASSIFIER, DIFFUSION
from pipelines.load_run import load_run
from pipelines.run_context import RunContext
from pipelines.text_diffusion import TextDiffusionPipeline
from pipelines.training import is_finished
from utils import checkpoints
from utils.cli.parse import parse
from utils.distributed import DistContext
from utils.errors import UserError
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import OptimizerOptions
from utils.pretrained import WeightsRead
from utils.state import State
from utils.trackers import read_metrics


def test_a_tie_keeps_the_first_step_and_is_said_once(tmp_path, capsys):
    """A metric that is 0 for every step, such as ROUGE of a language that it does not know, would do so for ever."""
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
    larger += " decoder/greedy/similarity decoder/share_of_latents"
    larger += " noise/greedy/bleu_0.4 noise/beam/exact_match_1 noise/margin_0.4 noise/margin_1e-05"
    smaller = "val_ema_loss val_loss_q0 perplexity corpus_perplexity memorization self_bleu linear_auc empty"
    assert all(map(larger_is_better, larger.split()))
    assert not any(map(larger_is_better, smaller.split()))


# ------------------------------------------------------------------------------------------------------------- programs

EVERY_2 = "--num_train_steps 10 --save_and_sample_every 2"
COMMON = "--device cpu --no_wandb --mixed_precision no --lr_warmup_steps 2"
BEST, NEWEST = {"checkpoint": "best", "step": 2}, {"checkpoint": "newest", "step": 4}  # of `ended`


@pytest.fixture(scope="module")
def ended(programs, chain, tmp_path_factory) -> Path:
    """A run with a --best_metric. With a learning rate of 0 no validation is better than the first one."""
    run = tmp_path_factory.mktemp("ended") / "run"
    flags = f"{EVERY_2} --num_train_steps 4 --learning_rate 0 --best_metric mauve --objective pred_v"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", run, flags) == 0
    return run


def recorded(run: Path) -> dict[str, dict]:
    """Which weights of other runs a run has read, by flag."""
    return json.loads((run / "args.json").read_text())["weights_read"]


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


def test_the_checkpoint_that_is_read_is_chosen(ended, steps_read, tmp_path, capsys):
    """Unset: the newest, and the best of a run that was trained with --best_metric."""
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    best = checkpoints.load_best(run)
    assert best.metadata["best"]["metric"] == "mauve" and 0 <= best.metadata["best"]["value"] <= 1
    steps = {None: best.step, "best": best.step, "newest": 4}
    assert best.step == 2
    capsys.readouterr()
    for name, step in steps.items():
        assert load_run(run, device="cpu", **given(name)).step == step
        note = "the best checkpoint is read, of step 2; the newest, of step 4, by --checkpoint newest"
        assert (note in capsys.readouterr().err) == (name is None)
    for place, flags, step in ((run, "", 2), (run, "--checkpoint newest", 4), (run / "best", "", 2)):
        steps_read(run)
        assert main_of_sample([str(place), "-n", "1", "--device", "cpu", *flags.split()], run)
        assert steps_read(run) == [step]
    args = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(json.dumps({**args, "best_metric": None}))
    for flags, step in (("", 4), ("--checkpoint best", 2)):
        assert main_of_sample([str(run), "-n", "1", "--device", "cpu", *flags.split()], run)
        assert steps_read(run) == [step]
    shutil.rmtree(run / "best")
    with pytest.raises(UserError, match="it holds no best checkpoint: use the newest one"):
        load_run(run, device="cpu", checkpoint="best")


def given(name: str | None) -> dict[str, str]:
    return {} if name is None else {"checkpoint": name}


def main_of_sample(argv: list[str], run: Path) -> list[str]:
    assert sample.main(argv) in (0, None)
    return [path.name for path in run.rglob("*samples*")]


@pytest.mark.parametrize(("metric", "flags"), [("perplexity", ""), ("label_accuracy", "--class_conditional")])
def test_metrics_of_samples_select_the_checkpoint_that_is_read(programs, chain, tmp_path, metric, flags):
    run, space = tmp_path / "run", f"--latent_model_path {chain / 'ae'}"
    flags += f" {EVERY_2} --num_train_steps 4 --learning_rate 1e-2 --best_metric {metric}"
    assert programs.diffusion(space, run, flags) == 0
    key = f"model/greedy/{metric}"
    values = {line["step"]: line[key] for line in read_metrics(run) if key in line}
    best = (min if metric == "perplexity" else max)(values, key=values.get)  # of equal values the first
    assert set(values) == {2, 4} and load_run(run, device="cpu").weights == ("best", best)
    assert checkpoints.load_best(run).metadata["best"] == {"metric": metric, "value": values[best], "step": best}


def test_a_run_starts_from_the_checkpoint_that_is_read_of_another_run(programs, chain, ended, steps_read, tmp_path):
    """Unset: from the one that its evaluations read, here the best, since it was trained with --best_metric."""
    space = f"--latent_model_path {chain / 'ae'} --objective pred_v --num_train_steps 1"
    for name, flags, weights in (("init", "", BEST), ("newest", "--checkpoint newest", NEWEST)):
        assert programs.diffusion(space, tmp_path / name, f"--init_path {ended} {flags}") == 0
        assert steps_read(ended) == [weights["step"]] and recorded(tmp_path / name) == {"init_path": weights}
    words = f"--joint_run {ended} --output_dir {tmp_path / 'joint'} --num_train_steps 1 --train_batch_size 8 {COMMON} "
    words += f"--num_samples 4 --decoding greedy --scorer {programs.scorer} --config val_loss_examples=16"
    assert train_diffusion.train(parse(DIFFUSION, words.split())) == 0
    assert steps_read(ended) == [2] and recorded(tmp_path / "joint") == {"joint_run": BEST}


def test_a_resumed_student_reads_the_same_checkpoint_of_its_teacher(programs, ended, steps_read, tmp_path):
    student = tmp_path / "student"
    assert programs.student(ended, student, "--checkpoint newest --max_seconds 0") == 0
    assert steps_read(ended) == [4] and checkpoints.load(student).step == 1
    assert programs.resume("diffusion", student) == 0
    assert steps_read(ended) == [4] and recorded(student) == {"distill_run": NEWEST}
    with pytest.raises(UserError, match="student reads the newest checkpoint of its --distill_run .* leave --checkpoi"):
        programs.resume("diffusion", student, "--checkpoint best")


def test_a_teacher_that_has_been_trained_on_is_said(tmp_path, capsys):
    saved = {"weights_read": {"distill_run": NEWEST}}
    run = RunContext(
        SimpleNamespace(mode="resume_training", checkpoint_args=saved), DistContext(), tmp_path, None, None
    )
    run.record_weights("distill_run", WeightsRead("newest", 4))
    assert not capsys.readouterr().err
    run.record_weights("distill_run", WeightsRead("newest", 8))
    assert "--distill_run are those of step 8 now, and were those of step 4 before" in capsys.readouterr().err


def test_a_decoder_is_adapted_to_the_chosen_checkpoint_of_a_denoiser(programs, ended, steps_read, tmp_path):
    adapted = tmp_path / "adapted"
    flags = "--checkpoint newest --num_train_steps 2 --max_seconds 0 --device cpu --no_wandb --decoding greedy "
    flags += "--eval_texts 4 --config denoiser_steps=2"
    assert adapt_decoder([str(ended), "--output_dir", str(adapted), *flags.split()]) == 0
    assert steps_read(ended) == [4] and checkpoints.load(adapted).step == 1
    assert programs.resume("autoencoder", adapted) == 0
    assert steps_read(ended) == [4]
    own = checkpoints.load_best(ended / "autoencoder").step  # a copy, which holds no other
    assert recorded(adapted) == {"resume_dir": {"checkpoint": "best", "step": own}, "denoiser_run": NEWEST}


def test_a_classifier_keeps_its_best_checkpoint_and_reads_the_chosen_one(programs, ended, steps_read, tmp_path, capsys):
    run = tmp_path / "classifier"
    words = (
        f"{programs.data} {COMMON} --diffusion_run {ended} --checkpoint newest --classifier_dim 64 --classifier_depth "
        "1 --num_train_steps 9 --train_batch_size 16 --eval_every 2 --learning_rate 0 --best_metric val_accuracy "
        f"--patience 1 --config val_loss_examples=16 --output_dir {run}"
    )
    assert train_classifier.train(parse(CLASSIFIER, words.split())) == 0
    assert "ended by --patience at step 4 of 9: 1 validations were no better than val_acc" in capsys.readouterr().err
    assert steps_read(ended) == [4] and recorded(run) == {"diffusion_run": NEWEST}
    assert checkpoints.load(run).step == 4 and checkpoints.load_best(run).step == 2 and is_finished(run)
    steps_read(run)
    control = {"latent_classifier": str(run), "target_label": "1", "checkpoint": "newest"}
    TextDiffusionPipeline.from_pretrained(ended, device="cpu", **control)
    assert steps_read(run) == [2], "--checkpoint is for the run that samples"


def test_an_autoencoder_is_evaluated_and_trained_on_from_the_chosen_checkpoint(
    programs, chain, steps_read, tmp_path, capsys
):
    run = tmp_path / "ae"
    flags = "--num_train_steps 8 --eval_every 2 --learning_rate 0 --patience 1"
    assert programs.autoencoder(chain / "lm", run, flags) == 0
    assert "ended by --patience at step 4 of 8: 1 validations were no better than bleu" in capsys.readouterr().err
    for name, flags, weights in (("best", "", BEST), ("newest", "--checkpoint newest", NEWEST)):
        assert programs.again("autoencoder", run, f"--eval {flags} --output_dir {tmp_path / 'out'}") == 0
        found = json.loads((tmp_path / "out/evaluation/eval-valid.json").read_text())
        assert steps_read(run) == [weights["step"]] and weights.items() <= found["protocol"].items()
        flags += f" --resume_dir {run} --num_train_steps 1"
        assert programs.autoencoder(chain / "lm", tmp_path / name, flags) == 0
        assert steps_read(run) == [weights["step"]] and recorded(tmp_path / name) == {"resume_dir": weights}


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
