"""Sampler hooks of one call of the pipeline: a callback after each step, and a record of the latents.

The callback may change the latents and may stop the call. It has the form of diffusers' callback_on_step_end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.sampler_steps import Noise, StepHook
from diffusion.schedules import Schedule
from pipelines.sampling.sampler_call import SamplerCall
from utils.cli.flags import shown
from utils.errors import UserError
from utils.records import Latents

StepEndCallback = Callable[[Any, int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""(pipeline, step from 0, time at which the step began, in [0, 1], tensors by name) -> {"latents": (B, L, D)} or
None."""

TENSOR_INPUTS = ("latents", "pred_original_sample", "mask")


class Interruptible(Protocol):
    _interrupt: bool


class SamplingStopped(Exception):
    """Raised by a step hook: this batch ends here. Afterwards it is raised for every further batch of the call."""

    def __init__(self, estimate: Tensor | None = None) -> None:
        """estimate: clean latents (B, L, D) as the network estimates them at the last step."""
        super().__init__("a callback stopped sampling")
        self.estimate = estimate


class StepCallback:
    """A hook that calls a function after each step of each batch."""

    def __init__(self, pipeline: Interruptible, callback: StepEndCallback, tensor_inputs: Sequence[str]) -> None:
        """tensor_inputs: names of the tensors that the function gets, of TENSOR_INPUTS.

        UserError for anything but a function, and for another name.
        """
        if not callable(callback):
            raise UserError(
                f"callback_on_step_end is {shown(callback)}: give a function of (pipeline, step, timestep, "
                "callback_kwargs)"
            )
        names = [tensor_inputs] if isinstance(tensor_inputs, str) else list(tensor_inputs)
        for name in names:
            if name not in TENSOR_INPUTS:
                raise UserError(
                    f"callback_on_step_end_tensor_inputs has {shown(name)}: give some of {', '.join(TENSOR_INPUTS)}"
                )
        self.pipeline, self.callback, self.names = pipeline, callback, names
        self.stopped = False

    def __call__(self, call: SamplerCall) -> None:
        if self.stopped:
            raise SamplingStopped
        sampler = call.sampler

        def stoppable(
            denoise: Denoise,
            schedule: Schedule,
            timesteps: Tensor,
            z: Tensor,
            noise: Noise | None = None,
            step_hook: StepHook | None = None,
        ) -> Tensor:
            try:
                return sampler(denoise, schedule, timesteps, z, noise, step_hook)
            except SamplingStopped as stop:
                assert stop.estimate is not None
                self.stopped = True
                return (stop.estimate - (0 if call.shift is None else call.shift)).to(z.dtype)

        def step_hook(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
            tensors = {"latents": z, "pred_original_sample": x0, "mask": call.decode_mask}
            returned = self.callback(self.pipeline, step, float(t), {name: tensors[name] for name in self.names})
            z = self._latents_of(returned, z)
            if self.pipeline._interrupt:
                raise SamplingStopped(x0)
            return z

        call.sampler = stoppable
        call.step_hooks.append(step_hook)

    @staticmethod
    def _latents_of(returned: Any, z: Tensor) -> Tensor:
        if returned is None:
            return z
        if not isinstance(returned, Mapping):
            raise UserError(
                f'callback_on_step_end returned {shown(returned)}: return its callback_kwargs, {{"latents": ...}} or '
                "None"
            )
        latents = returned.get("latents", z)
        if not isinstance(latents, Tensor) or latents.shape != z.shape:
            found = tuple(latents.shape) if isinstance(latents, Tensor) else shown(latents)
            raise UserError(f"callback_on_step_end returned latents {found}: return a tensor of shape {tuple(z.shape)}")
        return latents.to(z)


class LatentRecord:
    """A hook that keeps the clean latents of every row that is sampled, by its block and row."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Latents] = {}  # (block, row) -> latents (1, L, D)

    def __call__(self, call: SamplerCall) -> None:
        sampler, ids = call.sampler, [(part.block, r) for part in call.parts for r in range(part.first, part.last)]

        def recorded(
            denoise: Denoise,
            schedule: Schedule,
            timesteps: Tensor,
            z: Tensor,
            noise: Noise | None = None,
            step_hook: StepHook | None = None,
        ) -> Tensor:
            result = sampler(denoise, schedule, timesteps, z, noise, step_hook)
            latents = call.latents(result + (0 if call.shift is None else call.shift))
            self.rows.update((row, latents[i : i + 1]) for i, row in enumerate(ids))
            return result

        call.sampler = recorded

    def of(self, origins: Sequence[tuple[int, int] | None]) -> Latents:
        """Latents of texts, given block and row of each; a text without any, which is empty, gets an unused row."""
        used = set(origins)
        unused = (row for row in self.rows if row not in used)
        rows = [self.rows[next(unused) if origin is None else origin] for origin in origins]
        return Latents.concat(rows)

    def all(self) -> Latents:
        """Latents of all rows, in the order of sampling."""
        return Latents.concat(list(self.rows.values()))


class StartFromNoise:
    """A hook: the sampler starts from given noise instead of drawing it."""

    def __init__(self, noise: Tensor) -> None:
        """noise: (n, L, D), one row for each text, which are sampled in order."""
        self.noise, self.used = noise, 0

    def __call__(self, call: SamplerCall) -> None:
        call.z = self.noise[self.used : self.used + len(call.z)].to(call.z)
        self.used += len(call.z)
