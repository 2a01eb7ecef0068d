"""For each training program, a run that was stopped and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli.programs import DIFFUSION
from pipelines.run_context import check_same_batch_size
from pipelines.steps.autoencoder import AutoencoderStep
from pipelines.steps.denoising_lm import DenoisingLMStep
from pipelines.steps.diffusion import DiffusionStep
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]

# 200 texts: an epoch is 12.5 steps of 16, or of 2 micro-batches of 8. Stops: inside the first epoch, and in the second.
STEPS = 20
RUNS = ("whole", "parts")


def test_a_language_model_that_is_stopped_can_be_used(programs, stop_after, tmp_path, capsys):
    stop_after(DenoisingLMStep, 2)
    assert programs.pretrain(tmp_path / "lm", "--num_train_steps 20") == 143
    assert "holds the language model of step 2, which stage 1 can use as it is" in capsys.readouterr().err
    assert programs.autoencoder(tmp_path / "lm", tmp_path / "ae", "--num_train_steps 1") == 0


def test_language_model_resumes_exactly(programs, stopped_run, fingerprints, tmp_path):
    flags = f"--num_train_steps {STEPS} --config lm_dropout=0.1 --train_batch_size 8 --gradient_accumulation_steps 2"
    assert programs.pretrain(tmp_path / "whole", flags) == 0
    stopped_run("pretrain", DenoisingLMStep, lambda: programs.pretrain(tmp_path / "parts", flags), tmp_path / "parts")
    whole, parts = fingerprints(tmp_path / "whole"), fingerprints(tmp_path / "parts")
    assert len(whole[0]) == STEPS and whole == parts
    model = "model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "parts" / model).read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        "--lr_schedule greedy",
        "--lm_mode ft --lr_schedule reduce_lr_on_plateau --mixed_precision bf16",
        "--l2_normalize_latents --max_latent_noise 0.9",
    ],
)
def test_autoencoder_resumes_exactly(programs, chain, stopped_run, fingerprints, tmp_path, flags):
    flags += f" --num_train_steps {STEPS} --train_batch_size 8 --gradient_accumulation_steps 2"
    assert programs.autoencoder(chain / "lm", tmp_path / "whole", flags) == 0
    stopped_run(
        "autoencoder",
        AutoencoderStep,
        lambda: programs.autoencoder(chain / "lm", tmp_path / "parts", flags),
        tmp_path / "parts",
    )
    whole, parts = fingerprints(tmp_path / "whole"), fingerprints(tmp_path / "parts")
    assert len(whole[0]) == 2 * STEPS and whole == parts


@pytest.mark.parametrize(
    "flags",
    [
        "--self_condition --scale_shift --train_batch_size 8 --gradient_accumulation_steps 2 --ema_update_every 2",
        "--self_condition --optimizer lion --normalize_latent --T_schedule linear --train_batch_size 16",
        "--denoiser_variant states --beta_schedule cosine --self_condition --class_conditional --train_batch_size 16",
        "uncompressed --self_condition --class_conditional --train_batch_size 16",
        "uncompressed --denoiser_variant states --beta_schedule linear --normalize_latent --class_conditional",
        "--schedule_sampler adaptive --config importance_bins=2 --objective pred_v --train_batch_size 16",
    ],
    ids=[
        "accumulation",
        "lion-annealed",
        "first-release",
        "classes-of-states",
        "classes-of-states-first-release",
        "adaptive-times",
    ],
)
def test_diffusion_resumes_exactly(programs, chain, stopped_run, fingerprints, tmp_path, flags):
    """uncompressed: the run is on encoder states."""
    space = f"--enc_dec_model {chain / 'lm'}" if "uncompressed" in flags else f"--latent_model_path {chain / 'ae'}"
    flags = f"{flags.removeprefix('uncompressed')} --num_train_steps {STEPS}"
    assert programs.diffusion(space, tmp_path / "whole", flags) == 0
    stopped_run(
        "diffusion",
        DiffusionStep,
        lambda: programs.diffusion(space, tmp_path / "parts", flags),
        tmp_path / "parts",
    )
    whole, parts = fingerprints(tmp_path / "whole"), fingerprints(tmp_path / "parts")
    files = {"model", "ema", "optimizer"} | ({"times"} if "adaptive" in flags else set())
    assert len(whole[0]) == 2 * STEPS and set(whole[1]) == files
    assert whole == parts


def test_a_resumed_run_may_split_its_global_batch_in_another_way(programs, chain, stop_after, tmp_path):
    """This allows fewer GPUs than before, or less memory."""
    space = f"--latent_model_path {chain / 'ae'}"
    flags = "--num_train_steps 6 --train_batch_size 8 --disable_dropout"
    assert programs.diffusion(space, tmp_path / "whole", flags) == 0
    stop_after(DiffusionStep, 3)
    assert programs.diffusion(space, tmp_path / "parts", flags) == 143
    with pytest.raises(
        UserError, match="global batch of 8 texts, and 1 process.* make it 4: set --train_batch"
    ) as error:
        programs.resume("diffusion", tmp_path / "parts", "--train_batch_size 4")
    assert "\n" not in str(error.value)
    halves = "--train_batch_size 4 --gradient_accumulation_steps 2"
    assert programs.resume("diffusion", tmp_path / "parts", halves) == 0
    lines = [[line for line in read_metrics(tmp_path / run) if "loss" in line] for run in RUNS]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(*lines, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["samples"] == one["samples"]
    resumed = parse(DIFFUSION, f"--resume_training --resume_dir {tmp_path / 'parts'}".split())
    assert (resumed.config.loop.train_batch_size, resumed.config.loop.gradient_accumulation_steps) == (4, 2)
    with pytest.raises(UserError, match="3 process.* make it 24"):
        check_same_batch_size(resumed, 3)
    resumed.set("gradient_accumulation_steps", 1)
    check_same_batch_size(resumed, 2)


@pytest.mark.parametrize("stage", ["diffusion", "autoencoder"])
def test_the_advice_of_the_nonfinite_loss_error_works(programs, chain, monkeypatch, tmp_path, stage):
    """The run resumes with the flags that the error names."""
    flags = "--num_train_steps 6 --save_every 2 --mixed_precision bf16"
    space = f"--latent_model_path {chain / 'ae'}"
    start, step, batch = {
        "diffusion": (
            lambda: programs.diffusion(space, tmp_path, flags),
            DiffusionStep,
            r"text \d+, .* of the split, counted from 0; noise level t 0\.\d+",
        ),
        "autoencoder": (lambda: programs.autoencoder(chain / "lm", tmp_path, flags), AutoencoderStep, r"text \d+, "),
    }[stage]
    call = step.__call__

    def broken(self, number, micro):
        losses, values = call(self, number, micro)
        return losses * (float("nan") if number == 4 else 1.0), values

    with monkeypatch.context() as patch:
        patch.setattr(step, "__call__", broken)
        with pytest.raises(UserError, match=f"at step 5 .*{batch}.*--clip_grad_norm or with --mixed_precision no"):
            start()
    assert checkpoints.load(tmp_path).step == 4
    assert programs.resume(stage, tmp_path, "--mixed_precision no --clip_grad_norm 0.1") == 0
    assert checkpoints.load(tmp_path).step == 6


def test_a_time_limit_stops_evaluates_and_saves(programs, chain, fingerprints, tmp_path):
    space = f"--latent_model_path {chain / 'ae'}"
    flags = "--num_train_steps 6 --self_condition"
    assert programs.diffusion(space, tmp_path / "whole", flags) == 0
    assert programs.diffusion(space, tmp_path / "parts", f"{flags} --max_seconds 0") == 0  # makes one step
    assert checkpoints.load(tmp_path / "parts").step == 1
    assert [line["step"] for line in read_metrics(tmp_path / "parts") if "model/greedy/diversity" in line] == [1]
    assert programs.resume("diffusion", tmp_path / "parts") == 0  # the limit is not saved
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")


def test_an_evaluation_at_the_time_limit_runs_once(programs, chain, tmp_path):
    flags = "--num_train_steps 6 --save_and_sample_every 1 --max_seconds 0"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "model/greedy/diversity" in line] == [1]


def test_a_resumed_run_makes_a_missed_evaluation(programs, chain, stop_after, fingerprints, tmp_path):
    """A signal during step 4, which has an evaluation: the run exits at once, and evaluates when it is resumed."""
    space, flags = f"--latent_model_path {chain / 'ae'}", "--num_train_steps 6 --save_and_sample_every 2"
    assert programs.diffusion(space, tmp_path / "whole", flags) == 0
    stop_after(DiffusionStep, 4)
    assert programs.diffusion(space, tmp_path / "parts", flags) == 143
    assert not (tmp_path / "parts" / "greedy-sample-2.txt").exists()
    assert programs.resume("diffusion", tmp_path / "parts") == 0
    evaluated = [[line for line in read_metrics(tmp_path / run) if "model/greedy/diversity" in line] for run in RUNS]
    for one, other in zip(*evaluated, strict=True):
        assert one["step"] == other["step"]
        assert one["model/greedy/diversity"] == pytest.approx(other["model/greedy/diversity"], nan_ok=True)
    for step in (1, 2, 3):
        name = f"greedy-sample-{step}.txt"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")


def test_a_signal_at_a_logging_step_loses_no_validation_loss(programs, chain, stop_after, fingerprints, tmp_path):
    """A signal during step 4, which logs losses: both logs have its validation losses."""
    space, flags = f"--latent_model_path {chain / 'ae'}", "--num_train_steps 8 --log_every 4"
    assert programs.diffusion(space, tmp_path / "whole", flags) == 0
    stop_after(DiffusionStep, 4)
    assert programs.diffusion(space, tmp_path / "parts", flags) == 143
    assert programs.resume("diffusion", tmp_path / "parts") == 0
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")


def test_an_earlier_checkpoint_replaces_a_damaged_one(programs, chain, stop_after, fingerprints, tmp_path, capsys):
    flags = "--num_train_steps 8 --save_every 3"
    assert programs.autoencoder(chain / "lm", tmp_path / "whole", flags) == 0
    stop_after(AutoencoderStep, 5)
    assert programs.autoencoder(chain / "lm", tmp_path / "parts", flags) == 143
    newest = checkpoints.load(tmp_path / "parts")
    assert newest.step == 5
    file = newest.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert programs.resume("autoencoder", tmp_path / "parts") == 0
    assert "step_00000005 is damaged" in capsys.readouterr().err
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")


def test_only_one_process_may_train_in_a_folder(programs, chain, contents, tmp_path):
    space, out = f"--latent_model_path {chain / 'ae'}", tmp_path / "run"
    assert programs.diffusion(space, out) == 0
    program = "import sys, time; from pathlib import Path; from utils.locks import try_lock; "
    program += "print(try_lock(Path(sys.argv[1])), flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", program, out], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "True\n"
        before = contents(out)
        with pytest.raises(UserError, match="another process is training into"):
            programs.resume("diffusion", out)
        assert contents(out) == before
        assert programs.again("diffusion", out, f"--eval --output_dir {tmp_path / 'seen'}") == 0, (
            "an evaluation is allowed"
        )
    finally:
        other.kill()
        other.wait()
    assert programs.resume("diffusion", out) == 0, "the lock ends with its process"


def test_resuming_a_finished_run_changes_nothing(programs, chain, fingerprints, tmp_path, capsys):
    assert programs.autoencoder(chain / "lm", tmp_path / "run") == 0
    before = fingerprints(tmp_path / "run")
    assert programs.resume("autoencoder", tmp_path / "run") == 0
    assert "has already trained its 4 steps" in capsys.readouterr().err
    assert fingerprints(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_real_signals_finish_the_step_save_and_exit(programs, chain, tmp_path, number, status):
    out = tmp_path / "run"
    command = [sys.executable, "train_text_diffusion.py", "--latent_model_path", chain / "ae", "--output_dir", out]
    command += f"{programs.data} --device cpu --max_seq_len 40 --tx_dim 64 --tx_depth 1 --log_every 1".split()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() or len(read_metrics(out)) < 6:
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()  # a process that runs would keep its standard error open
                pytest.fail(process.stderr.read())
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, errors
    step = checkpoints.load(out).step
    assert read_metrics(out)[-1]["step"] == step >= 3
    assert f"Continue with --resume_training --resume_dir {out}" in errors and "Traceback" not in errors
