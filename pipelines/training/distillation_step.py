"""Stage 2 with a teacher: clean latents to the error of a student's step against several steps of its teacher."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.denoisers import make_denoise, time_value
from diffusion.distillation import jump, jump_target, noise_in
from diffusion.loss import diffuse, prediction_loss
from diffusion.schedules import level_at
from pipelines.building.process import Process
from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.cached_latents import LatentSource
from pipelines.training.diffusion_step import drop_conditions
from pipelines.training.teacher import Teacher
from utils.records import Condition
from utils.seeding import generator


class Learned(NamedTuple):
    """A batch that a step is learned from."""

    x0: Tensor  # (B, L, D)
    mask: Tensor | None
    condition: Condition | None
    eps: Tensor  # (B, L, D)


class DistillationStep:
    """(step, micro) -> losses (B,), and values to log: jump, which of the student's steps they are of, from 1.

    A whole batch learns one of the student's steps, each once in as many batches, in random order. A share
    --train_prob_self_cond of the optimizer steps lets the student come there by steps of its own from an earlier time,
    which also gives it an estimate to go on from; the others noise latents of texts to that time.
    """

    def __init__(
        self,
        student: nn.Module,
        latents: LatentSource,
        process: Process,
        plan: BatchPlan,
        num_steps: int,
        teacher: Teacher,
        jumps: int,
        *,
        self_condition: bool,
        all_jumps: bool = False,
    ) -> None:
        """student: the network, or the wrapper that averages its gradients over ranks. jumps: steps of its sampler.

        all_jumps: the mean over all of them at once: of held-out texts.
        """
        self.student, self.latents, self.process, self.plan = student, latents, process, plan
        self.num_steps, self.teacher, self.jumps = num_steps, teacher, jumps
        self.self_condition, self.all_jumps = self_condition, all_jumps
        self.times = process.grid(jumps).tolist()

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        clean, condition = self.latents(self.plan.rows(step, micro, len(self.latents)))
        draws = self.plan.draws(step, micro, self.latents.device)
        condition = drop_conditions(condition, draws, self.process.options)
        mask = clean.mask if self.latents.space.masked else None
        learned = Learned(clean.x0, mask, condition, draws.normal("noise", *clean.x0.shape[1:]))
        if self.all_jumps:
            return torch.stack([self.losses(learned, k, k) for k in range(self.jumps)]).mean(0), {}
        k = self._jump(step)
        losses = self.losses(learned, self._start(step, k), k)
        return losses, {"jump": torch.full_like(losses, k + 1)}

    def _jump(self, step: int) -> int:
        """The step of the student's grid that is learned. Not in turn: of every hundredth loss all would be of one."""
        turn, place = divmod(step, self.jumps)
        return int(torch.randperm(self.jumps, generator=generator(self.plan.seed, turn, "jumps"))[place])

    def _start(self, step: int, k: int) -> int:
        """The step of the student's grid that it begins at, to come to its k-th. The same for all micro-batches."""
        drawn = generator(self.plan.seed, step, "distillation")
        own = torch.rand((), generator=drawn) < self.process.options.train_prob_self_cond
        return int(torch.randint(k, (), generator=drawn)) if own and k else k

    def losses(self, learned: Learned, start: int, k: int) -> Tensor:
        """Error (B,) of the student's step k, counted from 0 at t = 1, where it comes to that from its step `start`."""
        schedule, options, times = self.process.train_schedule, self.process.options, self.times
        z, x0_prev = diffuse(learned.x0, learned.eps, schedule(torch.tensor(times[start]))).to(learned.x0), None
        with torch.no_grad():
            for i in range(start, k):
                x0_prev = self._estimate(z, times[i], learned, x0_prev)
                z = jump(z, x0_prev, schedule(torch.tensor(times[i])), schedule(torch.tensor(times[i + 1])))
        t, s = times[k], times[k + 1]
        z_s = self.teacher(z, k, learned.mask, learned.condition, x0_prev)
        time = torch.full((1,), t, dtype=z.dtype, device=z.device)
        level = level_at(schedule, time, z)
        # at t = 0 a sampler returns its estimate itself
        x0 = z_s if s == 0 else jump_target(z, z_s, level, level_at(schedule, torch.full_like(time, s), z))
        prediction = self._network(z, time_value(schedule, time, self.process.time_input), learned, x0_prev)
        eps = noise_in(z, x0, level)
        losses = prediction_loss(prediction, x0, eps, level, options.objective, options.loss_type, learned.mask)
        return losses * self.process.loss_weight(time)

    def _network(self, z: Tensor, time: Tensor, learned: Learned, x0_prev: Tensor | None) -> Tensor:
        if not self.self_condition:
            return self.student(z, time, learned.mask, learned.condition)
        # said of each text, so that every step has all parameters in it: ranks wait for the gradients of all
        has_prev = torch.full((len(z),), x0_prev is not None, device=z.device)
        x0_prev = torch.zeros_like(z) if x0_prev is None else x0_prev
        return self.student(z, time, learned.mask, learned.condition, x0_prev, has_prev)

    def _estimate(self, z: Tensor, t: float, learned: Learned, x0_prev: Tensor | None) -> Tensor:
        """What the student says at t, without gradient: of a step that is not the last, so never projected."""
        process = self.process

        def network(z: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            return self._network(z, time, learned, x0_prev)

        denoise = make_denoise(network, process.options.objective, process.train_schedule, process.time_input)
        return denoise(z, torch.full((1,), t, dtype=z.dtype, device=z.device), x0_prev)
