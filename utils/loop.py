"""The training loop: step functions and hooks, and nothing of what is trained.

Per optimizer step: micro-batches forward and backward, clip, optimizer, learning rate, averaged weights; then hooks.
The host never waits for the device between log points. All randomness is a function of (seed, step, micro-batch, rank),
so a run that was stopped and resumed equals one that was not, to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from utils.hooks import Hook, Report
from utils.modes import train_mode
from utils.optim import clip_grad_norm as clip_gradients
from utils.options import LoopOptions
from utils.seeding import derive
from utils.sharding import gathers, gradients_averaged
from utils.speed import in_graphs
from utils.state import State
from utils.stop import EXIT_CODES, StopSignals, reason_to_stop

StepFn = Callable[[int, int], tuple[Tensor, dict[str, Tensor]]]
"""(step, micro) -> losses (b,) of the micro-batch's examples, and values to log: (b,) per example, or scalars; all on
the device, never read by the step."""


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
            if stop.received and state.ranks.world == 1:
                reason = stop.received
            while state.step < options.num_train_steps and reason == "done":
                micros = options.gradient_accumulation_steps
                loss, values = _gradients(state, step_fn, micros, autocast, global_batch)
                report = _update(state, loss, values, parameters, clip_grad_norm)
                stopping = reason_to_stop(state, stop, started, options)
                report.stopping = stopping if stopping != "time" else None
                if state.step % options.log_every == 0 or state.step == options.num_train_steps or stopping:
                    report.check()
                for hook in hooks:
                    hook(state, report)
                if state.ranks.world == 1:  # hooks may take hours; several ranks agree on it after a later step
                    stopping = reason_to_stop(state, stop, started, options)
                if stopping and (EXIT_CODES[stopping] or state.step < options.num_train_steps):
                    report.check()  # the caller saves
                    reason = stopping
        finally:
            for hook in hooks:
                _call(hook, "close", state)
    return reason


def _gradients(
    state: State,
    step_fn: StepFn,
    micros: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    global_batch: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward over all micro-batches; returns this rank's part of the mean loss, of the values too."""
    ranks, scaler = state.ranks, state.scaler
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
        if micro == 0 and micros > 1 and in_graphs(state.modules):
            _keep_gradients(state)
        loss = part.detach() if loss is None else loss + part.detach()
        for name, value in logged.items():
            value = value.detach().float()
            share = value.sum() / global_batch if value.ndim else value / (micros * ranks.world)
            values[name] = values[name] + share if name in values else share
    assert loss is not None
    return loss, values


def _keep_gradients(state: State) -> None:
    """Out of the memory of CUDA graphs, which the next micro-batch reuses; what it adds then lies here, too."""
    for p in state.parameters():
        if p.grad is not None:
            p.grad = p.grad.clone()


def _update(
    state: State, loss: Tensor, values: dict[str, Tensor], parameters: list[nn.Parameter], max_norm: float
) -> Report:
    """Clip, then optimizer, learning rate and averaged weights: one more step is done."""
    scaler = state.scaler
    if scaler:
        scaler.unscale_(state.optimizer)
    norm = clip_gradients(parameters, max_norm)
    lr = state.schedule.lr
    if scaler:
        scaler.step(state.optimizer)
        scaler.update()
    else:
        state.optimizer.step()
    state.schedule.step(loss, state.ranks.sum)
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update()
    state.step += 1
    return Report(state.step, loss, values, norm, lr, state.ranks, skips=scaler is not None)


def _no_sync(wrapped: nn.Module | None, *, last: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over ranks once, with the last micro-batch."""
    if wrapped is not None and gathers(wrapped):
        return gradients_averaged(wrapped, last)
    no_sync = getattr(wrapped, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def _call(hook: Hook, name: str, state: State) -> None:
    method = getattr(hook, name, None)
    if method is not None:
        method(state)
