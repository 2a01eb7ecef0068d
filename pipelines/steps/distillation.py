"""The training step of distillation: clean latents to the error of one step of a student."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffusion.absorbing import absorbing_shift
from diffusion.ddim_maps import ddim_step, ddim_target_x0, eps_from_x0
from diffusion.denoisers import get_time_input, make_denoise
from diffusion.loss import DenoisingResult, corrupt, prediction_loss
from diffusion.objectives import to_x0
from diffusion.schedules import broadcast_level
from pipelines.builders.diffusion_process import DiffusionProcess
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.datamodule import LatentSource
from pipelines.steps.describe import describe_rows
from pipelines.steps.diffusion import AdditionalLosses, drop_conditions
from pipelines.steps.teacher import Teacher
from utils.records import Condition, KnownPositions, Latents
from utils.seeding import StepRNG, seeded_generator


class DistillBatch(NamedTuple):
    """A batch that a step of the student trains on."""

    x0: Tensor  # (B, L, D)
    mask: Tensor | None
    condition: Condition | None
    eps: Tensor  # (B, L, D)
    known: KnownPositions | None = None  # positions that stay clean: the source of a packed pair
    shift: Tensor | None = None  # (B, L, D), towards an absorbing state

    @property
    def loss_mask(self) -> Tensor | None:
        """(B, L) bool, the positions that are generated; None: all of them."""
        if self.known is None:
            return self.mask
        return ~self.known.mask if self.mask is None else self.mask & ~self.known.mask


class TextReader(Protocol):
    """(rows, draws) -> clean latents, conditions and known positions of the texts of a batch."""

    def __call__(self, rows: Tensor, draws: StepRNG) -> tuple[Latents, Condition | None, KnownPositions | None]: ...


class DistillationStep:
    """(step, micro) -> losses (B,), and values (B,) to log: student_step, the step of the student that is trained,
    counted from 1.

    All micro-batches of an optimizer step train the same step of the student. student_steps consecutive optimizer steps
    train all of them, in random order. In a share --train_prob_self_cond of the optimizer steps the student takes its
    own steps from an earlier time to that step, which also gives an estimate for self-conditioning; the others start
    from latents of texts, noised to that time. The loss is that of the prediction plus the
    AdditionalLosses of pipelines/steps/diffusion.

    z is alpha x0 + sigma eps throughout, also where there is an absorbing state (diffusion/absorbing): only what a
    network reads is shifted. Known positions are clean in what it reads, and have no loss.
    """

    logs_quarters = False

    def __init__(
        self,
        student: nn.Module,
        latents: LatentSource,
        process: DiffusionProcess,
        batch_sampler: BatchSampler,
        num_steps: int,
        teacher: Teacher,
        student_steps: int,
        *,
        self_condition: bool,
        average_steps: bool = False,
        read: TextReader | None = None,
        absorbing: Tensor | None = None,
    ) -> None:
        """student: the network, or the wrapper that averages its gradients over ranks. num_steps: number of steps of
        the whole run.

        student_steps: number of steps of the student's sampler. average_steps: return the mean loss over all of them,
        for validation. read: reads the texts of a batch, with no losses of the space; None: cached latents, with them.
        absorbing: (D,), the absorbing state of the noise; None: none.
        """
        self.student, self.latents, self.process, self.batch_sampler = student, latents, process, batch_sampler
        self.num_steps, self.teacher, self.student_steps = num_steps, teacher, student_steps
        self.self_condition, self.average_steps = self_condition, average_steps
        self.times = process.grid(student_steps).tolist()
        self.additional_losses = AdditionalLosses(latents)
        if read is not None:
            self.additional_losses.own = False  # of the space of embeddings, which its student leaves as it is
        self.read: TextReader = self._read if read is None else read
        self.absorbing = absorbing

    def _read(self, rows: Tensor, draws: StepRNG) -> tuple[Latents, Condition | None, KnownPositions | None]:
        return (*self.latents(rows), None)

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.latents), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.batch_sampler.rows(step, micro, len(self.latents))
        draws = self.batch_sampler.rng(step, micro, self.latents.device)
        clean, condition, known = self.read(rows, draws)
        condition = drop_conditions(condition, draws, self.process.options)
        mask = clean.mask if self.latents.space.variable_length else None
        batch = DistillBatch(clean.x0, mask, condition, draws.normal("noise", *clean.x0.shape[1:]), known)
        if self.absorbing is not None:
            batch = batch._replace(shift=absorbing_shift(self.absorbing.detach(), batch.loss_mask))

        def total(start: int, k: int) -> tuple[Tensor, dict[str, Tensor]]:
            result = self.evaluate(batch, start, k)
            losses = self.process.weight_losses(result.loss, result.t)
            target = replace(clean, x0=result.x0)
            return self.additional_losses.add(losses, self.additional_losses(rows, target, result))

        if self.average_steps:
            return torch.stack([total(k, k)[0] for k in range(self.student_steps)]).mean(0), {}
        k = self._select_step(step)
        losses, terms = total(self._rollout_start(step, k), k)
        return losses, {"student_step": torch.full_like(losses, k + 1)} | terms

    def _select_step(self, step: int) -> int:
        """The step of the student's grid to train. The order is random, so losses logged at intervals cover all."""
        cycle, place = divmod(step, self.student_steps)
        # "jumps" is part of the seed: renaming it would change the order
        order = torch.randperm(self.student_steps, generator=seeded_generator(self.batch_sampler.seed, cycle, "jumps"))
        return int(order[place])

    def _rollout_start(self, step: int, k: int) -> int:
        """The step of the student's grid from which it reaches step k by itself. The same for all micro-batches."""
        generator = seeded_generator(self.batch_sampler.seed, step, "distillation")
        rollout = torch.rand((), generator=generator) < self.process.options.train_prob_self_cond
        return int(torch.randint(k, (), generator=generator)) if rollout and k else k

    def losses(self, batch: DistillBatch, start: int, k: int) -> Tensor:
        """Loss (B,) of the prediction at the student's step k, weighted by noise level. Arguments: see `evaluate`."""
        result = self.evaluate(batch, start, k)
        return self.process.weight_losses(result.loss, result.t)

    def evaluate(self, batch: DistillBatch, start: int, k: int) -> DenoisingResult:
        """The student's step k, counted from 0 at t = 1, which it reaches from its step `start`, against the teacher.

        The x0 of the result is the target x0 of the step of the teacher.
        """
        schedule, options, times = self.process.train_schedule, self.process.options, self.times
        z, x0_prev = corrupt(batch.x0, batch.eps, schedule(torch.tensor(times[start]))).to(batch.x0), None
        with torch.no_grad():
            for i in range(start, k):
                x0_prev = self._estimate(z, times[i], batch, x0_prev)
                z = ddim_step(z, x0_prev, schedule(torch.tensor(times[i])), schedule(torch.tensor(times[i + 1])))
        t, s = times[k], times[k + 1]
        if batch.known is None and batch.shift is None:
            z_s = self.teacher(z, k, batch.mask, batch.condition, x0_prev)
        else:
            z_s = self.teacher(z, k, batch.mask, batch.condition, x0_prev, batch.known, batch.shift)
        time = torch.full((1,), t, dtype=z.dtype, device=z.device)
        level = broadcast_level(schedule, time, z)
        # at t = 0 a sampler returns its estimate of x0
        x0 = z_s if s == 0 else ddim_target_x0(z, z_s, level, broadcast_level(schedule, torch.full_like(time, s), z))
        prediction = self._predict(z, t, get_time_input(schedule, time, self.process.time_input), batch, x0_prev)
        eps = eps_from_x0(z, x0, level)
        losses = prediction_loss(prediction, x0, eps, level, options.objective, options.loss_type, batch.loss_mask)
        x0_hat = None
        if self.additional_losses:
            x0_hat = to_x0(options.objective, prediction.to(z.dtype), z, level)
        return DenoisingResult(losses, x0, x0_hat, time.expand(len(z)), batch.loss_mask, schedule)

    def _predict(self, z: Tensor, t: float, time: Tensor, batch: DistillBatch, x0_prev: Tensor | None) -> Tensor:
        """The prediction (B, L, D) of the network at time t; time: its input."""
        if batch.shift is not None:
            z = z + (1 - self.process.train_schedule(torch.tensor(t)).alpha) * batch.shift
        if batch.known is not None:
            z = torch.where(batch.known.mask[..., None], batch.known.value.to(z), z)
        if not self.self_condition:
            return self.student(z, time, batch.mask, batch.condition)
        # a mask for each text, so that every step uses all parameters: DDP waits for the gradients of all of them
        self_cond_mask = torch.full((len(z),), x0_prev is not None, device=z.device)
        x0_prev = torch.zeros_like(z) if x0_prev is None else x0_prev
        return self.student(z, time, batch.mask, batch.condition, x0_prev, self_cond_mask)

    def _estimate(self, z: Tensor, t: float, batch: DistillBatch, x0_prev: Tensor | None) -> Tensor:
        """The student's x0_hat at t, without gradient. Only the last step is projected, so this is not."""
        process = self.process

        def network(z: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            return self._predict(z, t, time, batch, x0_prev)

        denoise = make_denoise(network, process.options.objective, process.train_schedule, process.time_input)
        x0 = denoise(z, torch.full((1,), t, dtype=z.dtype, device=z.device), x0_prev)
        return x0 if batch.known is None else torch.where(batch.known.mask[..., None], batch.known.value.to(x0), x0)
