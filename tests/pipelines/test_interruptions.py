"""What a kill at a bad moment must not lose: evaluations, the best checkpoint, final results. And longer runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import train_diffusion
from pipelines.evaluators.autoencoder import AutoencoderEvaluator
from pipelines.steps.diffusion import DiffusionStep
from pipelines.training import EVALUATED
from utils import checkpoints
from utils.errors import UserError
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


@pytest.fixture
def kill(monkeypatch):
    """kill(owner, name, k): the k-th call of a function ends the process after the function has done its work."""

    def arrange(owner, name, k):
        original, calls = getattr(owner, name), []

        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            calls.append(1)
            if len(calls) == k:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, call)

    return arrange


def evaluations(folder: Path, key: str = "model/greedy/diversity") -> list[int]:
    return [line["step"] for line in read_metrics(folder) if key in line]


@pytest.fixture(scope="module")
def whole(programs, chain, tmp_path_factory) -> Path:
    """An undisturbed run of four steps with evaluations after the second and the fourth."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", out, FLAGS) == 0
    return out


FLAGS = "--num_train_steps 4 --save_and_sample_every 2"


@pytest.mark.parametrize("k", [1, 2])
def test_an_evaluation_that_a_kill_ended_is_made_up_for_once(
    programs, chain, whole, kill, monkeypatch, fingerprints, tmp_path, capsys, k
):
    """Killed when the metrics are in the log already, in the first evaluation and in the last one."""
    out = tmp_path / "run"
    with monkeypatch.context():
        kill(train_diffusion, "save_if_best", k)
        with pytest.raises(Killed):
            programs.diffusion(f"--latent_model_path {chain / 'ae'}", out, FLAGS)
    monkeypatch.undo()
    assert checkpoints.load(out).step == 2 * k, "the evaluation costs no step"
    assert checkpoints.load(out).metadata["pending"] == ["sample"]
    assert evaluations(out) == [2, 4][:k]
    capsys.readouterr()
    assert programs.resume("diffusion", out) == 0
    if k == 2:
        assert "has already trained its 4 steps, and its last evaluation is made now" in capsys.readouterr().err
    assert evaluations(out) == [2, 4] and checkpoints.load(out).metadata["pending"] == []
    assert fingerprints(out) == fingerprints(whole)
    for number in (1, 2):
        assert (out / f"greedy-sample-{number}.txt").read_bytes() == (
            whole / f"greedy-sample-{number}.txt"
        ).read_bytes()
    assert json.loads((out / "metrics.json").read_text())["step"] == 4
    capsys.readouterr()
    assert programs.resume("diffusion", out) == 0, "of a finished run"
    assert "a larger --num_train_steps extends it" in capsys.readouterr().err
    assert evaluations(out) == [2, 4]


def test_a_kill_after_an_evaluation_does_not_repeat_it(programs, chain, whole, monkeypatch, fingerprints, tmp_path):
    """Between the evaluation and the next checkpoint. What the evaluation found is known from its record."""
    out, call = tmp_path / "run", DiffusionStep.__call__

    def third(self, step, micro):
        if step == 2 and self.timestep_sampler is not None:
            raise Killed
        return call(self, step, micro)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionStep, "__call__", third)
        with pytest.raises(Killed):
            programs.diffusion(f"--latent_model_path {chain / 'ae'}", out, FLAGS)
    assert json.loads((out / EVALUATED).read_text())["step"] == 2
    with monkeypatch.context() as patch:
        asked = []
        evaluate = train_diffusion.save_if_best
        patch.setattr(
            train_diffusion, "save_if_best", lambda run, s, score: asked.append(s.step) or evaluate(run, s, score)
        )
        assert programs.resume("diffusion", out) == 0
    assert asked == [4] and evaluations(out) == [2, 4] and fingerprints(out) == fingerprints(whole)


@pytest.mark.parametrize("damage", ["{", '{"step": 2, "name": 3, "best": {}}'])
def test_a_damaged_record_of_the_evaluation_repeats_it(programs, chain, whole, fingerprints, tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints/step_00000004")
    (out / EVALUATED).write_text(damage)
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'5\n"x"\n{"step": "4"}\n\xff\xfe\n{"step": 3, "lo')
    assert programs.resume("diffusion", out) == 0
    assert evaluations(out) == [2, 4] and fingerprints(out) == fingerprints(whole)


@pytest.mark.parametrize("k", [1, 2])
def test_the_validation_of_an_autoencoder_is_made_up_for(programs, chain, kill, monkeypatch, tmp_path, k):
    flags, key = "--eval_every 2 --log_every 4", "autoencoder/greedy/bleu"
    if k == 1:
        assert programs.autoencoder(chain / "lm", tmp_path / "whole", flags) == 0
    kill(AutoencoderEvaluator, "evaluate_latents", k)
    with pytest.raises(Killed):
        programs.autoencoder(chain / "lm", tmp_path / "run", flags)
    monkeypatch.undo()
    assert checkpoints.load(tmp_path / "run").step == 2 * k
    assert not (tmp_path / "run/validation.json").exists() or k == 2
    assert programs.resume("autoencoder", tmp_path / "run") == 0
    assert evaluations(tmp_path / "run", key) == [2, 4]
    assert (
        checkpoints.load(tmp_path / "run").metadata["best"] == checkpoints.load_best(tmp_path / "run").metadata["best"]
    )
    validation = json.loads((tmp_path / "run/validation.json").read_text())
    assert validation[key] == [line[key] for line in read_metrics(tmp_path / "run") if key in line][-1]


def test_a_run_folder_that_was_removed_while_it_trained_can_be_loaded(programs, chain, tmp_path, monkeypatch, capsys):
    out, call = tmp_path / "run", DiffusionStep.__call__

    def removing(self, step, micro):
        if step == 2 and self.timestep_sampler is not None and micro == 0:
            shutil.rmtree(out)
        return call(self, step, micro)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionStep, "__call__", removing)
        assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", out, FLAGS) == 0
    assert "was removed or moved while it trained" in capsys.readouterr().err
    assert checkpoints.load(out).step == 4
    assert programs.again("diffusion", out, "--eval --num_samples 2") == 0
    assert programs.resume("diffusion", out, "--num_train_steps 5") == 0


@pytest.mark.parametrize(
    ("schedule", "seam"),
    [
        ("constant", None),
        ("linear", r"linear is computed anew for 6 steps.* from 0 to 4e-05 at step 4"),
        pytest.param("cosine", "cosine", marks=pytest.mark.slow),
    ],
)
def test_a_finished_run_is_extended(programs, chain, fingerprints, tmp_path, capsys, schedule, seam):
    import re

    space, flags = f"--latent_model_path {chain / 'ae'}", f"--lr_schedule {schedule} --lr_warmup_steps 1"
    assert programs.diffusion(space, tmp_path / "run", f"{flags} --num_train_steps 4") == 0
    capsys.readouterr()
    assert programs.resume("diffusion", tmp_path / "run", "--num_train_steps 6") == 0
    said = capsys.readouterr().err
    assert "extended from 4 to 6 steps" in said and (re.search(seam, said) if seam else "goes on as it was" in said)
    assert checkpoints.load(tmp_path / "run").step == 6
    assert json.loads((tmp_path / "run/args.json").read_text())["num_train_steps"] == 6
    assert evaluations(tmp_path / "run") == [4, 6]
    with pytest.raises(UserError, match="--num_train_steps 5 is less than the 6 steps.*--max_seconds") as error:
        programs.resume("diffusion", tmp_path / "run", "--num_train_steps 5")
    assert "\n" not in str(error.value)
    if seam is None:
        assert programs.diffusion(space, tmp_path / "straight", f"{flags} --num_train_steps 6") == 0
        assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "straight")


def test_an_unwritable_run_folder_is_refused_in_one_line(programs, whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    from pipelines import run_context

    def refused(dir):
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(run_context, "TemporaryFile", refused)  # tests may run as root, whom no permission stops
    with pytest.raises(UserError, match="cannot write to .*Read-only file system.*resume the copy") as error:
        programs.resume("diffusion", out)
    assert "\n" not in str(error.value)
    shutil.rmtree(out)
    with pytest.raises(UserError, match="no such folder"):
        programs.resume("diffusion", out)


SIGNALS = """
import os, pty, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from transformers import get_scheduler  # once, before the forks
from utils import checkpoints
from utils.loop import train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions, OptimizerOptions
from utils.preemption import EXIT_CODES, StopSignals
from utils.state import State
torch.set_num_threads(1)
random.seed(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which the tests may run, has it ignored

def run(folder, pipe, steps=10**6):
    net, options = nn.Linear(200, 1000), OptimizerOptions(learning_rate=1e-2, lr_warmup_steps=1)
    optimizer = make_optimizer(net, options)
    state = State(net, optimizer, make_lr_schedule(optimizer, options, 10**6))
    def step(number, micro):
        os.write(pipe, b".")
        return net(torch.ones(2, 200)).square().mean(1), {}
    with StopSignals():
        reason = train(state, step, [], LoopOptions(num_train_steps=steps), clip_grad_norm=1.0, global_batch=2)
        print("a message to a terminal that may be gone", flush=True)
        state.save(folder)
    return EXIT_CODES[reason]

run(Path(sys.argv[1]) / "first", os.pipe()[1], 1)  # what torch imports at a first step, once before the forks

for number, names in enumerate(sys.argv[2:]):
    folder, (reads, writes) = Path(sys.argv[1]) / str(number), os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        code = 1
        try:
            code = run(folder, writes)
        finally:
            os._exit(code)
    os.close(writes)
    begun = len(os.read(reads, 1))
    if names == "closed":
        os.close(terminal)
    for name in names.split("+") if names != "closed" else ():
        os.kill(pid, getattr(signal, name))
        time.sleep(random.choice((0, 0, random.uniform(0, 0.03))))
    while more := os.read(reads, 10**6):
        begun += len(more)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(names, code, checkpoints.load(folder).step == begun, flush=True)
"""


def test_repeated_signals_and_a_closed_terminal_lose_no_step(tmp_path):
    """Schedulers and torchrun send signals twice, at any interval, also while the last checkpoint is written.

    Real processes, each on a terminal of its own. A closed terminal sends SIGHUP, and no message can be written to it.
    """
    cases = ["SIGTERM+SIGTERM", "SIGTERM+SIGTERM+SIGTERM", "SIGUSR1+SIGTERM", "SIGHUP+SIGHUP", "SIGINT+SIGTERM"] * 2
    cases += ["closed"]
    found = subprocess.run(
        [sys.executable, "-c", SIGNALS, tmp_path, *cases], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    lines = [line.split() for line in found.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == cases, found.stderr
    for names, code, complete in lines:
        sent = ["SIGHUP"] if names == "closed" else names.split("+")
        assert complete == "True", f"{names}: a step was lost"
        assert int(code) in {128 + getattr(signal, name) for name in sent} | {-getattr(signal, name) for name in sent}
