"""The training loop over a step function and hooks. It does not depend on the model or the task.

Per optimizer step: micro-batches forward and backward, clip, optimizer, learning rate, averaged weights; then hooks.
The host does not wait for the device between two logged steps. All randomness is a function of (seed, step,
micro-batch, rank), so that a resumed run equals an uninterrupted one bit for bit.

Ours and not accelerate's: Accelerator.accumulate scales the loss of each micro-batch by the number of micro-batches,
which equals the large batch only where all have as many examples; here each example counts 1 / global batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from utils.compile import switch_off, uses_cuda_graphs
from utils.finite import FirstNonFinite
from utils.heartbeat import beat
from utils.hooks import Hook, StepResult
from utils.optim import clip_grad_norm as clip_gradients
from utils.options import LoopOptions
from utils.preemption import EXIT_CODES, StopSignals
from utils.seeding import derive_seed
from utils.sharding import is_fsdp, sync_gradients
from utils.state import State
from utils.stop_agreement import StopAgreement
from utils.train_eval import train_mode

StepFn = Callable[[int, int], tuple[Tensor, dict[str, Tensor]]]
"""(step, micro) -> losses (b,) of the micro-batch's examples, and values to log: (b,) per example, or scalars; all on
the device, never read by the step. A method `describe` of it, if there is one, names examples whose loss is not finite
(utils.finite.Describe)."""


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
    """Train up to options.num_train_steps; returns why it ended: a key of preemption.EXIT_CODES.

    clip_grad_norm: largest norm, 0 for no clipping. global_batch: examples of one optimizer step, all ranks and
    micro-batches together. started: time.monotonic() from which options.max_seconds counts; None: now.
    The caller saves at the end, for every reason, and exits with EXIT_CODES[reason]. It opens StopSignals around both:
    else a second signal would end the process while it saves.
    Raises UserError when the loss or the gradient norm is nan or infinite: it names the first such step and its batch.
    """
    started = time.monotonic() if started is None else started
    if options.mixed_precision == "fp16" and state.scaler is None:
        state.scaler = torch.amp.GradScaler(state.dist.device.type)
        if state.scaler_state:
            state.scaler.load_state_dict(state.scaler_state)
    parameters = state.parameters()
    train_mode(state.model)
    non_finite = FirstNonFinite(getattr(step_fn, "describe", None))
    reason = "done"
    with StopSignals() as stop:  # that of the caller, which holds the handlers until it has saved
        stop_reason = StopAgreement(state, stop, started, options)
        try:
            for hook in hooks:
                _call(hook, "open", state)
            if stop.received and state.dist.world_size == 1:
                reason = stop.received
            reason = state.ended_by or reason
            while state.step < options.num_train_steps and reason == "done":
                beat()
                micros = options.gradient_accumulation_steps
                loss, values = _gradients(state, step_fn, micros, autocast, global_batch, non_finite)
                report = _update(state, loss, values, parameters, clip_grad_norm)
                stopping = stop_reason()
                report.non_finite = non_finite
                report.stopping = stopping if stopping != "time" else None
                if state.step % options.log_every == 0 or state.step == options.num_train_steps or stopping:
                    report.check()
                for hook in hooks:
                    hook(state, report)
                if state.dist.world_size == 1:  # hooks may take hours; several ranks agree after a later step
                    stopping = stop_reason()
                if stopping and (EXIT_CODES[stopping] or state.step < options.num_train_steps):
                    report.check()  # the caller saves
                    reason = stopping
                elif state.ended_by:
                    reason = state.ended_by
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
    non_finite: FirstNonFinite,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward over all micro-batches; returns this rank's part of the mean loss, of the values too.

    Where kernels of a compiled backward fail when they run, it switches compilation off and begins again.
    """
    try:
        return _accumulate(state, step_fn, micros, autocast, global_batch, non_finite)
    except Exception as error:
        # ranks average gradients within a backward
        if not switch_off(state.model, error, can_repeat=state.dist.world_size == 1):
            raise
    state.optimizer.zero_grad(set_to_none=True)  # what the failed backward has added
    return _accumulate(state, step_fn, micros, autocast, global_batch, non_finite)


def _accumulate(
    state: State,
    step_fn: StepFn,
    micros: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    global_batch: int,
    non_finite: FirstNonFinite,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward over all micro-batches. The random state of each follows from step and micro-batch."""
    dist, scaler = state.dist, state.scaler
    loss: Tensor | None = None
    values: dict[str, Tensor] = {}
    for micro in range(micros):
        torch.manual_seed(derive_seed(state.seed, state.step, micro, dist.rank, "dropout"))
        with _no_sync(state.wrapped, last=micro == micros - 1):
            with autocast():
                losses, logged = step_fn(state.step, micro)
            non_finite.observe(losses, state.step, micro)
            # Each example has the weight 1 / global batch, for any split of it; DDP then takes the mean over ranks.
            part = losses.float().sum() / global_batch
            scaled = part * dist.world_size
            (scaler.scale(scaled) if scaler else scaled).backward()
        if micro == 0 and micros > 1 and uses_cuda_graphs(state.model):
            _copy_gradients(state)
        loss = part.detach() if loss is None else loss + part.detach()
        for name, value in logged.items():
            value = value.detach().float()
            share = value.sum() / global_batch if value.ndim else value / (micros * dist.world_size)
            values[name] = values[name] + share if name in values else share
    assert loss is not None
    return loss, values


def _copy_gradients(state: State) -> None:
    """Copy gradients out of the memory of CUDA graphs, which the next micro-batch reuses and would overwrite."""
    for p in state.parameters():
        if p.grad is not None:
            p.grad = p.grad.clone()


def _update(
    state: State, loss: Tensor, values: dict[str, Tensor], parameters: list[nn.Parameter], max_norm: float
) -> StepResult:
    """Clip gradients, then update parameters, learning rate and averaged weights; counts the step."""
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
    state.schedule.step(loss, state.dist.sum)
    state.optimizer.zero_grad(set_to_none=True)
    for ema in state.emas.values():
        ema.update()
    state.step += 1
    return StepResult(state.step, loss, values, norm, lr, state.dist, may_skip=scaler is not None)


def _no_sync(wrapped: nn.Module | None, *, last: bool) -> AbstractContextManager[Any]:
    """Average gradients over ranks only once, with the last micro-batch."""
    if wrapped is not None and is_fsdp(wrapped):
        return sync_gradients(wrapped, last)
    no_sync = getattr(wrapped, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def _call(hook: Hook, name: str, state: State) -> None:
    method = getattr(hook, name, None)
    if method is not None:
        method(state)
