"""Training: bitwise resume, accumulation, signals, pending hooks, and a loss that is nan."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.exc import InductorError

from utils import checkpoints
from utils.compile import compile_network
from utils.distributed import DistContext, autocast
from utils.ema import EMA
from utils.errors import UserError
from utils.finite import FirstNonFinite
from utils.hooks import Logger, PeriodicHook
from utils.loop import _gradients, train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LR_SCHEDULES, LoopOptions, OptimizerOptions
from utils.preemption import EXIT_CODES, StopSignals, check_interrupt
from utils.seeding import StepRNG
from utils.state import State, load_weights
from utils.stop_agreement import StopAgreement
from utils.trackers import read_metrics
from utils.train_eval import eval_mode, train_mode

BATCH = 8
OPTIMISER = OptimizerOptions(learning_rate=1e-2, lr_warmup_steps=3)


class Net(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(16), nn.Linear(16, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def make_state(dropout: float = 0.1, options: OptimizerOptions = OPTIMISER, steps: int = 10, seed: int = 3) -> State:
    torch.manual_seed(0)
    net = Net(dropout)
    optimizer = make_optimizer(net, options)
    return State(net, optimizer, make_lr_schedule(optimizer, options, steps), EMA(net, 0.9), seed=seed)


def make_step(state: State, micros: int, batch: int = BATCH):
    """A denoising step: noise and data are drawn for the whole batch, of which a micro-batch is a slice."""

    def step_fn(step: int, micro: int):
        rows = batch // micros
        rng = StepRNG(state.seed, step, batch, micro * rows, (micro + 1) * rows)
        x0, eps = rng.normal("x0", 6), rng.normal("eps", 6)
        errors = (state.model(x0 + eps) - x0) ** 2
        return errors.mean(1), {"absolute": errors.detach().sqrt().mean(1), "constant": torch.tensor(2.0)}

    return step_fn


def run(state: State, folder, options: LoopOptions, hooks=()) -> str:
    log = Logger(options.log_every, folder, total=options.num_train_steps)
    step_fn = make_step(state, options.gradient_accumulation_steps)
    return train(
        state,
        step_fn,
        [log, *hooks],
        options,
        clip_grad_norm=0.5,
        autocast=autocast(state.dist.device, options.mixed_precision),
        global_batch=BATCH,
    )


def logged(folder) -> list[dict]:
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(folder)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("lr_schedule", ["cosine", "greedy"])
def test_ten_steps_equal_five_saved_loaded_and_five_more(tmp_path, precision, lr_schedule):
    optimiser = replace(OPTIMISER, lr_schedule=lr_schedule)
    options = LoopOptions(num_train_steps=10, gradient_accumulation_steps=2, log_every=1, mixed_precision=precision)
    whole = make_state(options=optimiser)
    assert run(whole, tmp_path / "whole", options) == "done"

    first = make_state(options=optimiser)
    stop_at_7 = [PeriodicHook(5, lambda s: s.save(tmp_path / "parts"))]
    run(first, tmp_path / "parts", replace(options, num_train_steps=7), stop_at_7)  # steps 6 and 7 are lost

    second = make_state(options=optimiser, seed=99)
    with torch.no_grad():
        for p in second.model.parameters():
            p.add_(1.0)  # the weights before restoring must not matter
    second.restore(checkpoints.load(tmp_path / "parts"))
    assert second.step == 5
    torch.rand(17)  # the state of the global generator must not matter
    assert run(second, tmp_path / "parts", options) == "done"

    assert len(logged(tmp_path / "whole")) == 10
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    for name in ("model", "ema", "optimizer"):
        assert checkpoints.fingerprint(second.tensors()[name]) == checkpoints.fingerprint(whole.tensors()[name])
    assert second.metadata() == whole.metadata()


def test_dropout_depends_on_step_and_seed(tmp_path):
    options = LoopOptions(num_train_steps=3, log_every=1)
    lines = {}
    for name, seed in (("a", 3), ("again", 3), ("b", 4)):
        run(make_state(seed=seed), tmp_path / name, options)
        lines[name] = logged(tmp_path / name)
    assert lines["a"] == lines["again"] != lines["b"]


@pytest.mark.parametrize("micros", [2, 4, 8])
def test_accumulation_equals_the_large_batch(tmp_path, micros):
    states = {}
    for n in (1, micros):
        states[n] = make_state(dropout=0.0)
        run(states[n], tmp_path / str(n), LoopOptions(num_train_steps=5, gradient_accumulation_steps=n, log_every=1))
    for one, many in zip(logged(tmp_path / "1"), logged(tmp_path / str(micros)), strict=True):
        assert many == pytest.approx(one, rel=1e-5)
    for p, q in zip(states[1].parameters(), states[micros].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def into_graphs(network: nn.Module, monkeypatch) -> None:
    """A stand-in for compilation on CUDA that returns the step unchanged."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda call, **how: call)
        compile_network(network, "on", torch.device("cuda"))


@pytest.mark.parametrize("graphs", [True, False])
def test_gradients_of_a_cuda_graph_survive_reuse_of_their_memory(tmp_path, monkeypatch, graphs):
    """CUDA graphs write gradients to the same memory each time: here the previous contents become nan.

    Without graphs gradients are not copied, and the same nan spoils them.
    """
    options, states = LoopOptions(num_train_steps=3, gradient_accumulation_steps=4, log_every=1), {}
    for name in ("left", "reused"):
        states[name] = state = make_state(dropout=0.0)
        plain, held = make_step(state, 4), []
        if graphs:
            into_graphs(state.model.body, monkeypatch)
        for p in state.parameters() if name == "reused" else ():
            p.register_post_accumulate_grad_hook(lambda p, held=held: held.append(p.grad))

        def step(number, micro, plain=plain, held=held):
            for grad in held if micro == 1 else ():
                grad.fill_(torch.nan)
            held.clear()
            return plain(number, micro)

        harmed = name == "reused" and not graphs
        with pytest.raises(UserError, match="grad_norm is nan") if harmed else nullcontext():
            train(state, step, [], options, clip_grad_norm=0.5, global_batch=BATCH)
    assert graphs == all(
        torch.equal(p, q) for p, q in zip(states["left"].parameters(), states["reused"].parameters(), strict=True)
    )


@pytest.mark.parametrize("graphs", [True, False])
def test_gradients_are_copied_once_and_only_out_of_graphs(monkeypatch, graphs):
    state = make_state(dropout=0.0)
    if graphs:
        into_graphs(state.model.body, monkeypatch)
    places: list[int] = []
    parameter = state.parameters()[0]
    parameter.register_post_accumulate_grad_hook(lambda p: places.append(p.grad.data_ptr()))
    options = LoopOptions(num_train_steps=1, gradient_accumulation_steps=4)
    train(state, make_step(state, 4), [], options, clip_grad_norm=0.5, global_batch=BATCH)
    assert len(places) == 4 and len(set(places[1:])) == 1 and (places[0] != places[1]) == graphs


def compile_with_backward_that_fails(network: nn.Module, error: Exception, lines: list[str], monkeypatch) -> None:
    """Compile by AOT autograd, without kernels of its own; the compiled backward raises an error when it runs."""
    from torch._dynamo.backends.common import aot_autograd

    def forward(graph, inputs):
        return make_boxed_func(graph.forward)

    def backward(graph, inputs):
        def run(*args):
            raise error

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        compile_network(network, "on", torch.device("cpu"), lines.append)


@pytest.mark.parametrize("error", [
    InductorError(RuntimeError("no kernel for this"), "backward"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    RuntimeError("CUDA error: operation not permitted when stream is capturing"),
])  # fmt: skip
@pytest.mark.parametrize("micros", [1, 2])
def test_a_compiled_backward_that_fails_is_repeated_uncompiled(monkeypatch, micros, error):
    """Weights, dropout included, are those of a network that was never compiled."""
    torch._dynamo.reset()
    options = LoopOptions(num_train_steps=3, gradient_accumulation_steps=micros, log_every=1)
    states, lines = [make_state(), make_state()], list[str]()
    compile_with_backward_that_fails(states[1].model, error, lines, monkeypatch)
    for state in states:
        assert train(state, make_step(state, micros), [], options, clip_grad_norm=0.5, global_batch=BATCH) == "done"
    (line,) = lines
    assert "torch.compile failed" in line and "--compile off" in line and "\n" not in line
    assert all(map(torch.equal, states[0].parameters(), states[1].parameters()))


def test_other_errors_of_a_backward_end_the_run_and_so_does_one_that_several_processes_would_repeat(monkeypatch):
    for error, processes, expected in (
        (torch.OutOfMemoryError("CUDA out of memory during graph capture"), 1, "CUDA out of memory"),
        (InductorError(RuntimeError("no kernel"), "backward"), 2, "one of several processes.*--compile off"),
    ):
        torch._dynamo.reset()
        state, lines = make_state(), list[str]()
        state.dist = DistContext(world_size=processes)
        compile_with_backward_that_fails(state.model, error, lines, monkeypatch)
        with pytest.raises(UserError if processes == 2 else torch.OutOfMemoryError, match=expected):
            _gradients(state, make_step(state, 1), 1, nullcontext, BATCH, FirstNonFinite())
        assert not lines


def test_the_loss_is_a_mean_over_examples_and_the_norm_is_taken_before_clipping(tmp_path):
    state = make_state(dropout=0.0)
    losses, _ = make_step(state, 1)(0, 0)
    losses.mean().backward()
    norm = torch.cat([p.grad.flatten() for p in state.parameters()]).norm()
    state.optimizer.zero_grad()
    run(state, tmp_path, LoopOptions(num_train_steps=1, gradient_accumulation_steps=4, log_every=1))
    line = logged(tmp_path)[0]
    assert line["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5) and norm > 0.5
    assert line["constant"] == pytest.approx(2.0)
    assert line["absolute"] > 0


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 138)])
def test_after_a_signal_the_step_is_finished_and_training_returns(tmp_path, name, code, capfd, request):
    state = make_state()
    if name == "SIGHUP":  # nohup, under which the tests may run, has it ignored
        request.addfinalizer(partial(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)))
    before = signal.getsignal(getattr(signal, name))
    calls, closed = [], []

    class Closing:
        def __call__(self, state, report):
            if state.step == 3:
                os.kill(os.getpid(), getattr(signal, name))

        def close(self, state):
            closed.append(state.step)

    hooks = [Closing(), PeriodicHook(1, lambda s: calls.append(s.step))]
    reason = run(state, tmp_path, LoopOptions(num_train_steps=100, log_every=1), hooks)
    assert reason == name and EXIT_CODES[reason] == code
    assert state.step == 3 and closed == [3] and calls == [1, 2, 3], "no further step starts"
    assert signal.getsignal(getattr(signal, name)) is before
    assert f"{name}: finishing this step" in capfd.readouterr().err


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hook = [lambda s, r: os.kill(os.getpid(), signal.SIGHUP)]
        assert run(make_state(), tmp_path, LoopOptions(num_train_steps=3, log_every=1), hook) == "done"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_outermost_recorder_holds_the_handlers_and_repeated_signals_change_nothing(tmp_path, capfd):
    """The caller of train() saves after it; schedulers send the signal again meanwhile."""
    state, before = make_state(), signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        hook = [lambda s, r: s.step == 2 and os.kill(os.getpid(), signal.SIGTERM)]
        assert run(state, tmp_path, LoopOptions(num_train_steps=9, log_every=1), hook) == "SIGTERM"
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        state.save(tmp_path)
        assert stop.received == "SIGTERM" and StopSignals.active is stop
    assert signal.getsignal(signal.SIGTERM) is before and StopSignals.active is None
    assert checkpoints.load(tmp_path).step == 2 and capfd.readouterr().err.count("SIGTERM") == 1


def test_slow_steps_agree_on_stopping_more_often_than_fast_ones(monkeypatch):
    """torchrun ends its processes 30 seconds after SIGTERM. Here a dist that counts its agreements."""

    class Two:
        world_size, calls = 2, 0

        def max_of(self, numbers):
            self.calls += 1
            return numbers

    now = [0.0]
    monkeypatch.setattr("utils.stop_agreement.time.monotonic", lambda: now[0])
    for seconds, expected in ((0.01, 100 // 10), (0.5, 100 // 4), (9.0, 100)):
        state, stop = replace(make_state(), dist=Two()), StopSignals()
        agree = StopAgreement(state, stop, 0.0, LoopOptions(num_train_steps=10**6))
        for state.step in range(1, 101):
            now[0] += seconds
            assert agree() is None
        assert expected <= state.dist.calls <= expected + 1, seconds
        stop.received = "SIGUSR1"
        assert "SIGUSR1" in [agree() for _ in range(10)]


def test_a_run_stopped_by_a_signal_resumes_to_the_same_result(tmp_path):
    options = LoopOptions(num_train_steps=10, log_every=1, gradient_accumulation_steps=2)
    whole, part, rest = make_state(), make_state(), make_state()
    run(whole, tmp_path / "whole", options)
    reason = run(part, tmp_path / "part", options, [lambda s, r: s.step == 4 and os.kill(os.getpid(), signal.SIGTERM)])
    part.save(tmp_path / "part")
    rest.restore(checkpoints.load(tmp_path / "part"))
    run(rest, tmp_path / "part", options)
    assert reason == "SIGTERM" and logged(tmp_path / "part") == logged(tmp_path / "whole")


def killing(step):
    """A hook that sends SIGTERM at a step; later hooks of the list still run at that step."""
    return lambda s, r: s.step == step and os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("when", ["in the step", "before the hook", "in the hook", "in the pending hook"])
def test_a_hook_that_a_signal_prevented_runs_when_resumed(tmp_path, when):
    """In the end every call completed once, at its step."""
    options, done = LoopOptions(num_train_steps=8, log_every=1), []

    def call(state):
        if when == "in the hook" and state.step == 4 and 4 not in tried:
            os.kill(os.getpid(), signal.SIGTERM)
        if when == "in the pending hook" and tried == [2, 4]:
            os.kill(os.getpid(), signal.SIGTERM)
        tried.append(state.step)
        check_interrupt()
        done.append(state.step)

    tried: list[int] = []
    first = {"in the step": [], "before the hook": [killing(4)], "in the pending hook": [killing(4)]}
    state = make_state()
    if when == "in the step":
        inner = make_step(state, 1)

        def step_fn(step, micro):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(step, micro)
    else:
        step_fn = make_step(state, 1)
    hooks = [*first.get(when, []), PeriodicHook(2, call, name="call")]
    codes = [train(state, step_fn, hooks, options, clip_grad_norm=0.0, global_batch=BATCH)]
    assert state.step == 4 and done == [2] and state.pending == ["call"]
    state.save(tmp_path)
    while codes[-1] != "done" and len(codes) < 4:
        state = make_state()
        state.restore(checkpoints.load(tmp_path))
        hooks = [PeriodicHook(2, call, name="call")]
        codes.append(train(state, make_step(state, 1), hooks, options, clip_grad_norm=0.0, global_batch=BATCH))
        state.save(tmp_path)
    assert codes == ["SIGTERM"] * (2 if when == "in the pending hook" else 1) + ["done"]
    assert done == [2, 4, 6, 8] and state.pending == []


def test_a_step_that_checks_for_interrupts_is_still_finished(tmp_path):
    """A step that samples, such as one that trains a decoder on latents of a denoiser, calls check_interrupt."""
    state = make_state()
    inner = make_step(state, 1)

    def step_fn(step, micro):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        check_interrupt()
        return inner(step, micro)

    assert (
        train(state, step_fn, [], LoopOptions(num_train_steps=6), clip_grad_norm=0.0, global_batch=BATCH) == "SIGTERM"
    )
    assert state.step == 3


def test_max_seconds_counts_the_time_of_hooks():
    state = make_state()
    hook = PeriodicHook(3, lambda s: time.sleep(0.3))
    options = LoopOptions(num_train_steps=10**9, max_seconds=0.25)
    train(state, make_step(state, 1), [hook], options, clip_grad_norm=0.0, global_batch=BATCH)
    assert state.step == 3


def test_max_seconds_stops_with_the_reason_time(tmp_path):
    state = make_state()
    options = LoopOptions(num_train_steps=10**9, log_every=10**9, max_seconds=0.2)
    began = time.monotonic()
    assert run(state, tmp_path, options) == "time" and EXIT_CODES["time"] == 0
    assert time.monotonic() - began < 5 and state.step >= 1
    already = State(state.model, state.optimizer, state.schedule, step=7)
    finished = replace(options, num_train_steps=7)
    assert train(already, make_step(already, 1), [], finished, clip_grad_norm=1.0, global_batch=BATCH) == "done"
    assert already.step == 7


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_names_its_step_and_batch_and_nothing_is_saved(tmp_path, value):
    """The loop reads losses only when it logs or saves, here a step later, when the losses of all examples are nan."""
    state = make_state()
    clean = make_step(state, 2)

    class Step:
        def __call__(self, step, micro):
            losses, values = clean(step, micro)
            return losses * torch.tensor([1.0, float(value if (step, micro) == (4, 1) else 1), 1, 1]), values

        def describe(self, step, micro, positions):
            return f"described {step} {micro} {positions}"

    hooks = [PeriodicHook(3, lambda s: s.save(tmp_path))]
    options = LoopOptions(num_train_steps=9, log_every=100, gradient_accumulation_steps=2)
    with pytest.raises(
        UserError, match=r"at step 5 \(examples 1 of micro-batch 1: described 4 1 \[1\]\).*learning_rate"
    ):
        train(state, Step(), hooks, options, clip_grad_norm=1.0, global_batch=BATCH)
    assert checkpoints.load(tmp_path).step == 3


def test_an_infinite_gradient_of_finite_losses_is_said(tmp_path):
    state = make_state()
    state.parameters()[0].register_hook(lambda grad: grad * float("inf") if state.step == 1 else grad)
    with pytest.raises(UserError, match=r"grad_norm is (inf|nan) at step 2 \(with finite losses\)"):
        run(state, tmp_path, LoopOptions(num_train_steps=3, log_every=1))


def test_a_periodic_hook_runs_at_multiples_of_its_interval():
    state, calls = make_state(), []
    hook = PeriodicHook(4, lambda s: calls.append(s.step))
    train(state, make_step(state, 1), [hook], LoopOptions(num_train_steps=10), clip_grad_norm=0.0, global_batch=BATCH)
    assert calls == [4, 8]


def test_the_log_has_these_names_and_extra_values(tmp_path):
    state = make_state()
    log = Logger(
        2, tmp_path, total=4, names={"loss": "train/loss", "learning_rate": "lr"}, extra=lambda s: {"samples": 8 * s}
    )
    train(state, make_step(state, 1), [log], LoopOptions(num_train_steps=4), clip_grad_norm=1.0, global_batch=BATCH)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4] and lines[1]["samples"] == 32
    assert {"train/loss", "lr", "grad_norm"} <= lines[0].keys() and "loss" not in lines[0]


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("lr_schedule", LR_SCHEDULES)
def test_every_schedule_and_optimizer_survives_a_resume(tmp_path, optimizer, lr_schedule):
    optimiser = OptimizerOptions(optimizer=optimizer, lr_schedule=lr_schedule, learning_rate=1e-3, lr_warmup_steps=2)
    options = LoopOptions(num_train_steps=6, log_every=1)
    whole, part, rest = (make_state(options=optimiser, steps=6) for _ in range(3))
    run(whole, tmp_path / "whole", options)
    run(part, tmp_path / "part", replace(options, num_train_steps=3))
    part.save(tmp_path / "part")
    rest.restore(checkpoints.load(tmp_path / "part"))
    run(rest, tmp_path / "part", options)
    assert logged(tmp_path / "part") == logged(tmp_path / "whole")
    assert logged(tmp_path / "whole")[-1]["learning_rate"] > 0 or lr_schedule == "linear"


def test_fp16_scaling_trains_and_its_scale_is_restored(tmp_path):
    options = LoopOptions(num_train_steps=4, log_every=1, mixed_precision="fp16")
    whole, part, rest = make_state(steps=4), make_state(steps=4), make_state(steps=4)
    run(whole, tmp_path / "whole", options)
    run(part, tmp_path / "part", replace(options, num_train_steps=2))
    part.save(tmp_path / "part")
    rest.restore(checkpoints.load(tmp_path / "part"))
    run(rest, tmp_path / "part", options)
    assert whole.scaler is not None and whole.metadata()["scaler"] == rest.metadata()["scaler"]
    assert logged(tmp_path / "part") == logged(tmp_path / "whole")


def test_frozen_parts_stay_in_evaluation_mode_and_out_of_checkpoints(tmp_path):
    both = nn.ModuleDict({"frozen": Net(0.5), "trained": Net(0.5)})
    both["frozen"].requires_grad_(False)
    train_mode(both)
    assert both["trained"].body[2].training and not both["frozen"].body[2].training
    with eval_mode(both):
        assert not both["trained"].training and not torch.is_grad_enabled()
    assert both["trained"].training and not both["frozen"].training
    optimizer = make_optimizer(both, OPTIMISER)
    state = State(both, optimizer, make_lr_schedule(optimizer, OPTIMISER, 1), EMA(both))
    assert all(name.startswith("trained.") for file in ("model", "ema") for name in state.tensors()[file])


def test_averaged_weights_are_loaded_under_every_name_of_a_tied_parameter(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
            self.last.weight = self.first.weight

    net = Tied()
    optimizer = make_optimizer(net, OPTIMISER)
    state = State(net, optimizer, make_lr_schedule(optimizer, OPTIMISER, 1), EMA(net))
    state.ema.tensors["first.weight"].fill_(7.0)
    state.save(tmp_path)
    fresh = Tied()
    load_weights(fresh, checkpoints.load(tmp_path), averaged=True)
    assert (fresh.last.weight == 7).all()
    load_weights(fresh, checkpoints.load(tmp_path))
    assert (fresh.last.weight == net.first.weight).all() and not (net.first.weight == 7).any()


def test_another_models_checkpoint_is_refused_in_one_line_and_changes_nothing(tmp_path):
    state = make_state()
    state.save(tmp_path)
    wide = nn.ModuleDict({"body": nn.Sequential(nn.Linear(6, 32))})
    before = checkpoints.fingerprint(wide)
    with pytest.raises(UserError, match="another model") as caught:
        load_weights(wide, checkpoints.load(tmp_path))
    assert "\n" not in str(caught.value) and checkpoints.fingerprint(wide) == before
    wider = Net(0.1)
    wider.body[0], wider.body[3] = nn.Linear(6, 32), nn.LayerNorm(32)
    with pytest.raises(UserError, match=r"shape \(16, 6\), this run has \(32, 6\)"):
        load_weights(wider, checkpoints.load(tmp_path))
