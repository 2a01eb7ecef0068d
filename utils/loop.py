"""The training loop: step functions and hooks, and nothing of what is trained.

Per optimizer step: micro-batches forward and backward, clip, optimizer, learning rate, averaged weights; then hooks.
The host never waits for the device between log points. All randomness is a function of (seed, step, micro-batch, rank),
so a run that was stopped and resumed equals one that was not, to the last bit.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils import checkpoints
from utils.distributed import Ranks
from utils.ema import EMA
from utils.errors import UserError
from utils.optim import LrSchedule
from utils.optim import clip_grad_norm as clip_gradients
from utils.options import LoopOptions
from utils.progress import Progress
from utils.seeding import derive
from utils.trackers import MetricsFile, Tracker

StepFn = Callable[[int, int], tuple[Tensor, dict[str, Tensor]]]
"""(step, micro) -> losses (b,) of the micro-batch's examples, and values to log: (b,) per example, or scalars; all on
the device, never read by the step."""

EXIT_CODES = {"done": 0, "time": 0, "SIGTERM": 143, "SIGINT": 130}
_AGREE_EVERY = 10  # steps between the ranks' agreements on stopping: each costs a wait


# --------------------------------------------------------------------------------------------------------------- state


@dataclass
class State:
    """What training changes. A checkpoint holds all of it."""

    modules: nn.Module  # all that trains: a module, or a ModuleDict of several
    optimizer: torch.optim.Optimizer
    schedule: LrSchedule
    ema: EMA | None = None
    step: int = 0  # optimizer steps done
    best: dict[str, Any] = field(default_factory=dict)  # of the hooks: best metrics so far, for JSON
    seed: int = 42
    ranks: Ranks = field(default_factory=Ranks)
    wrapped: nn.Module | None = None  # what the step function calls under several ranks (distributed.wrap); for no_sync
    scaler: torch.amp.GradScaler | None = None  # of fp16; made by train()
    scaler_state: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.modules.parameters() if p.requires_grad]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Files of a checkpoint: model, ema (if there is one) and optimizer."""
        packed, _ = checkpoints.pack_optimizer(self.optimizer)
        files = {"model": weights(self.modules), "optimizer": packed}
        return files | ({"ema": self.ema.state_dict()} if self.ema else {})

    def facts(self) -> dict[str, Any]:
        _, optimizer = checkpoints.pack_optimizer(self.optimizer)
        return {
            "step": self.step,
            "best": self.best,
            "seed": self.seed,
            "optimizer": optimizer,
            "schedule": self.schedule.facts(),
            "ema_updates": self.ema.updates if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else self.scaler_state,
        }

    def save(self, folder: Path | str, *, keep: int = 2, **facts: Any) -> None:
        """A checkpoint by the main rank; facts of the caller join the state's own."""
        if self.ranks.main:
            checkpoints.save(folder, self.tensors(), {**self.facts(), **facts}, keep)
        self.ranks.barrier()

    def save_best(self, folder: Path | str, **facts: Any) -> None:
        """The weights and their average as the best so far; without the optimizer, nothing trains on from there."""
        if self.ranks.main:
            files = {name: x for name, x in self.tensors().items() if name != "optimizer"}
            checkpoints.save_best(folder, files, {"step": self.step, "best": self.best, **facts})
        self.ranks.barrier()

    def load_weights(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Weights and average only: for evaluation, or to start another run from them."""
        load_weights(self.modules, checkpoint)
        if self.ema and "ema" in checkpoint.tensors:
            try:
                self.ema.load_state_dict(checkpoint.tensors["ema"], checkpoint.facts.get("ema_updates"))
            except ValueError as error:
                raise UserError(f"{checkpoint.path}: {error}") from None

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Everything, to train on as if there had been no stop."""
        facts = checkpoint.facts
        if self.ema and "ema" not in checkpoint.tensors:
            raise UserError(f"{checkpoint.path} holds no averaged weights: it cannot be resumed, only evaluated")
        self.load_weights(checkpoint)
        checkpoints.unpack_optimizer(self.optimizer, checkpoint.tensors["optimizer"], facts["optimizer"])
        self.schedule.restore(facts["schedule"])
        self.step, self.best, self.seed = facts["step"], dict(facts["best"]), facts["seed"]
        self.scaler_state = dict(facts["scaler"])
        if self.scaler and self.scaler_state:
            self.scaler.load_state_dict(self.scaler_state)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and saved buffers by name. What is frozen is someone else's to keep."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: x for name, x in module.state_dict().items() if name not in frozen}


@torch.no_grad()
def load_weights(module: nn.Module, checkpoint: checkpoints.Checkpoint, *, averaged: bool = False) -> None:
    """Put a checkpoint's weights into a module; averaged: the averaged ones where there are some, for evaluation."""
    own, found = weights(module), dict(checkpoint.tensors["model"])
    if averaged:
        averages = checkpoint.tensors.get("ema", {})
        places = {own[name].data_ptr(): x for name, x in averages.items() if name in own}
        # A tied parameter has an average under one of its names only, and every name must get it.
        found |= {name: places[x.data_ptr()] for name, x in own.items() if x.numel() and x.data_ptr() in places}
    different = sorted(own.keys() ^ found.keys())
    if different:
        where = "lacks" if different[0] in own else "holds, and this model has not,"
        raise UserError(
            f"{checkpoint.path} {where} {different[0]}: another model's; check the flags against its args.json"
        )
    for name, x in own.items():
        if x.shape != found[name].shape:
            raise UserError(
                f"{checkpoint.path}: {name} has shape {tuple(found[name].shape)}, this run wants {tuple(x.shape)}: "
                f"check the flags against its args.json"
            )
    for name, x in own.items():  # only now, so that a refused checkpoint changes nothing
        x.copy_(found[name])


def train_mode(module: nn.Module) -> None:
    """Training mode, but for submodules that are wholly frozen: dropout in a frozen language model would be noise."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within, the module is in evaluation mode and records no gradients; after, every part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


# -------------------------------------------------------------------------------------------------------------- report


@dataclass
class Report:
    """What one step was like. Tensors stay on the device until scalars() is asked for: that waits."""

    step: int  # steps done, this one included
    loss: Tensor  # scalar: this rank's part of the mean over the global batch
    values: dict[str, Tensor]  # scalars: likewise
    grad_norm: Tensor  # before clipping
    lr: float  # that this step used
    ranks: Ranks
    stopping: str | None = None  # the signal that was received: long deeds are left for later
    skips: bool = False  # fp16 skips steps whose gradients overflow: their norm may be infinite
    _scalars: dict[str, float] | None = None

    def scalars(self) -> dict[str, float]:
        """loss, grad_norm, learning_rate and the values, over all ranks. Every rank must ask. Waits for the device."""
        if self._scalars is None:
            names = ["loss", *self.values]
            parts = torch.stack([self.loss.float(), *(v.float() for v in self.values.values())])
            numbers = self.ranks.sum(parts).tolist()
            found = dict(zip(names, numbers, strict=True))
            self._scalars = {
                "loss": found.pop("loss"),
                "grad_norm": float(self.grad_norm),
                "learning_rate": self.lr,
                **found,
            }
        return self._scalars

    def check(self) -> None:
        """UserError if the loss or the gradients are no longer numbers."""
        scalars = self.scalars()
        names = ("loss",) if self.skips else ("loss", "grad_norm")
        bad = next((n for n in names if not abs(scalars[n]) < float("inf")), None)
        if bad:
            raise UserError(
                f"the {bad} is {scalars[bad]} at step {self.step}: training stopped and nothing was saved over; resume "
                f"the last checkpoint with a lower --learning_rate or --clip_grad_norm, or with --mixed_precision no"
            )


class Hook(Protocol):
    """Called after every step. May have open(state), called before the first, and close(state), after the last.

    close is called however training ends. A hook that sets modules to evaluation mode sets them back (evaluating()).
    """

    def __call__(self, state: State, report: Report) -> None: ...


# --------------------------------------------------------------------------------------------------------------- train


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying of them: `with StopSignals() as stop: ... stop.received`.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python allows no handlers, it notes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        print(f"\n{self.received}: finishing this step, then stopping{hint}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def train(
    state: State,
    step_fn: StepFn,
    hooks: Sequence[Hook],
    options: LoopOptions,
    *,
    clip_grad_norm: float,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    global_batch: int,
    started: float | None = None,
) -> str:
    """Train up to options.num_train_steps; returns why it ended: "done", "time", "SIGTERM" or "SIGINT".

    clip_grad_norm: largest norm, 0 for no clipping. global_batch: examples of one optimizer step, all ranks and
    micro-batches together. started: time.monotonic() that options.max_seconds counts from; unset: now.
    The caller saves at the end, whatever it was, and exits with EXIT_CODES of it.
    """
    started = time.monotonic() if started is None else started
    if options.mixed_precision == "fp16" and state.scaler is None:
        state.scaler = torch.amp.GradScaler(state.ranks.device.type)
        if state.scaler_state:
            state.scaler.load_state_dict(state.scaler_state)
    parameters = state.parameters()
    train_mode(state.modules)
    reason = "done"
    with StopSignals() as stop:
        try:
            for hook in hooks:
                _call(hook, "open", state)
            while state.step < options.num_train_steps and reason == "done":
                report = _step(state, step_fn, parameters, options, clip_grad_norm, autocast, global_batch)
                stopping = _stopping(state, stop, started, options)
                report.stopping = stopping if stopping != "time" else None
                if state.step % options.log_every == 0 or state.step == options.num_train_steps or stopping:
                    report.check()
                for hook in hooks:
                    hook(state, report)
                if report.stopping or (stopping and state.step < options.num_train_steps):
                    reason = stopping or reason
            if reason == "done" and stop.received and state.ranks.world == 1:
                reason = stop.received  # during the hooks of the last step
        finally:
            for hook in hooks:
                _call(hook, "close", state)
    return reason


def _call(hook: Hook, name: str, state: State) -> None:
    method = getattr(hook, name, None)
    if method is not None:
        method(state)


def _step(
    state: State,
    step_fn: StepFn,
    parameters: list[nn.Parameter],
    options: LoopOptions,
    max_norm: float,
    autocast: Callable[[], AbstractContextManager[Any]],
    global_batch: int,
) -> Report:
    """One optimizer step over all micro-batches."""
    micros, ranks, scaler = options.gradient_accumulation_steps, state.ranks, state.scaler
    loss: Tensor | None = None
    values: dict[str, Tensor] = {}
    for micro in range(micros):
        torch.manual_seed(derive(state.seed, state.step, micro, ranks.rank, "dropout"))
        with _no_sync(state.wrapped, last=micro == micros - 1):
            with autocast():
                losses, logged = step_fn(state.step, micro)
            # Each example counts 1 / global batch, however the batch is split; DDP then averages over ranks.
            part = losses.float().sum() / global_batch
            scaled = part * ranks.world
            (scaler.scale(scaled) if scaler else scaled).backward()
        loss = part.detach() if loss is None else loss + part.detach()
        for name, value in logged.items():
            value = value.detach().float()
            share = value.sum() / global_batch if value.ndim else value / (micros * ranks.world)
            values[name] = values[name] + share if name in values else share
    assert loss is not None
    if scaler:
        scaler.unscale_(state.optimizer)
    norm = clip_gradients(parameters, max_norm)
    lr = state.schedule.lr
    if scaler:
        scaler.step(state.optimizer)
        scaler.update()
    else:
        state.optimizer.step()
    state.schedule.step(loss, ranks.sum)
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update()
    state.step += 1
    return Report(state.step, loss, values, norm, lr, ranks, skips=scaler is not None)


def _no_sync(wrapped: nn.Module | None, *, last: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over ranks once, with the last micro-batch."""
    no_sync = getattr(wrapped, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def _stopping(state: State, stop: StopSignals, started: float, options: LoopOptions) -> str | None:
    """Why to stop after this step; the ranks agree on it, or one would wait for the others for ever."""
    late = options.max_seconds is not None and time.monotonic() - started >= options.max_seconds
    mine = stop.received or ("time" if late else None)
    if state.ranks.world == 1:
        return mine
    if state.step % _AGREE_EVERY and state.step < options.num_train_steps:
        return None
    order = ("time", "SIGINT", "SIGTERM")
    agreed = [name for name in order if state.ranks.any(mine == name)]
    return agreed[-1] if agreed else None


# --------------------------------------------------------------------------------------------------------------- hooks


class Every:
    """Does a deed at each multiple of an interval, after checking that the loss is a number: it may save.

    After a signal it does nothing, since clusters give seconds: the caller saves. last: one more step to do it at.
    """

    def __init__(self, interval: int, deed: Callable[[State, Report], None], *, last: int | None = None):
        assert interval >= 1
        self.interval, self.deed, self.last = interval, deed, last

    def __call__(self, state: State, report: Report) -> None:
        if (state.step % self.interval == 0 or state.step == self.last) and not report.stopping:
            report.check()
            self.deed(state, report)


class Log:
    """Every so many steps a line in metrics.jsonl and the trackers; in between, a line of progress.

    Other hooks record their own numbers through record() and say(). To be the first among the hooks.
    total: the last step. title: of the line of progress. names: other names for what is logged, such as
    {"loss": "train/loss"}. extra: step -> more values, such as the epoch.
    """

    def __init__(
        self,
        every: int,
        folder: Path | str,
        trackers: Sequence[Tracker] = (),
        *,
        total: int,
        title: str = "train",
        names: Mapping[str, str] | None = None,
        extra: Callable[[int], Mapping[str, float]] = lambda step: {},
    ):
        self.every, self.folder, self.total, self.title = every, Path(folder), total, title
        self.trackers, self.names, self.extra = list(trackers), dict(names or {}), extra
        self._file: MetricsFile | None = None
        self._bar: Progress | None = None
        self._main = True
        self._began = time.monotonic()

    def open(self, state: State) -> None:
        """Cut metrics.jsonl back to the step that is resumed, and start the clock."""
        self._main, self._began = state.ranks.main, time.monotonic()
        self._bar = Progress(self.title, self.total, start=state.step, quiet=not self._main)
        self._file = MetricsFile(self.folder, state.step) if self._main else None

    def __call__(self, state: State, report: Report) -> None:
        assert self._bar is not None, "train() opens its hooks"
        note = None
        if state.step % self.every == 0 or state.step == self.total:
            scalars = report.scalars()
            values = {self.names.get(name, name): value for name, value in scalars.items()}
            seconds = round(time.monotonic() - self._began, 3)
            self.record({**values, **self.extra(state.step), "seconds": seconds}, state.step)
            note = f"loss {scalars['loss']:.4g}, grad_norm {scalars['grad_norm']:.3g}, lr {report.lr:.3g}"
        self._bar.at(state.step, note)

    def record(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers into metrics.jsonl and every tracker."""
        if self._main:
            for tracker in (self._file or MetricsFile(self.folder), *self.trackers):
                tracker.log(values, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Sample texts and the like, for the trackers that show tables."""
        if self._main:
            for tracker in self.trackers:
                tracker.table(name, columns, rows, step)

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        if self._bar:
            self._bar.say(text)
        elif self._main:
            print(text, file=sys.stderr)

    def close(self, state: State) -> None:
        """End the line of progress. The trackers stay open: an evaluation may follow."""
        if self._bar:
            self._bar.at(state.step)
            self._bar.close()
