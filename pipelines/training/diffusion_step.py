"""Stage 2: clean latents to the diffusion loss, in the order of the paper's training algorithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.denoisers import make_denoise, projected, time_value
from diffusion.loss import diffuse, prediction_loss
from diffusion.options import ProcessOptions
from diffusion.schedules import level_at
from pipelines.building.process import Process
from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.cached_latents import LatentSource
from pipelines.training.training_times import TrainingTimes
from utils.records import Condition
from utils.seeding import Chosen, Draws
from utils.transfer import moved


def drop_conditions(condition: Condition | None, draws: Draws, options: ProcessOptions) -> Condition | None:
    """The condition of a training batch, its share of classes and of sources replaced by the null ones."""
    if condition is None:
        return None
    return condition.drop(
        draws.uniform("class"),
        options.class_unconditional_prob,
        draws.uniform("source"),
        options.seq2seq_unconditional_prob,
    )


class DiffusionStep:
    """(step, micro) -> losses (B,), and values to log: the loss by quarter of the noise range (q1 the cleanest)."""

    def __init__(
        self,
        denoiser: nn.Module,
        latents: LatentSource,
        process: Process,
        plan: BatchPlan,
        num_steps: int,
        self_condition: bool,
        times: TrainingTimes | None = None,
    ) -> None:
        """denoiser: the network, or the wrapper that averages its gradients over ranks. num_steps: of the whole run.

        times: which times it looks at; None: evenly spread ones.
        """
        self.denoiser, self.latents, self.process, self.plan = denoiser, latents, process, plan
        self.num_steps, self.self_condition, self.times = num_steps, self_condition, times

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        options, space = self.process.options, self.latents.space
        clean, condition = self.latents(self.plan.rows(step, micro, len(self.latents)))
        draws = self.plan.draws(step, micro, self.latents.device)
        condition = drop_conditions(condition, draws, options)
        t, weight = draws.rows((self.times or self.process.draw_times)(step, self.num_steps), "time")
        eps = draws.normal("noise", *clean.x0.shape[1:])
        shown = draws.chosen_rows("self_condition", options.train_prob_self_cond)
        mask = clean.mask if space.masked else None
        losses = self.losses(clean.x0, mask, t, eps, condition, shown if self.self_condition else None)
        if self.times is not None:
            self.times.saw(t, losses)
        # of weighted losses a quarter lies in each quarter of the range, hence the factor 4
        quarter = (4 * t / self.process.t_max(step, self.num_steps)).ceil().clamp(1, 4)
        return losses * weight, {f"loss_q{q}": 4 * losses.detach() * weight * (quarter == q) for q in (1, 2, 3, 4)}

    def losses(
        self,
        x0: Tensor,
        mask: Tensor | None,
        t: Tensor,
        eps: Tensor,
        condition: Condition | None,
        shown: Chosen | None,
    ) -> Tensor:
        """Diffusion loss (B,) at given times and noise.

        x0, eps: (B, L, D). mask: (B, L), None where every position is text. t: (B,). shown: the examples
        that see an estimate of x0 by the network itself, without gradient; None: no self-conditioning.
        """
        schedule, options = self.process.train_schedule, self.process.options
        level = level_at(schedule, t, x0)
        z_t = diffuse(x0, eps, level)  # (B, L, D)
        time = time_value(schedule, t, self.process.time_input)
        x0_prev = has_prev = None
        if shown is not None:
            has_prev, rows = (moved(x, z_t.device) for x in shown)
            x0_prev = self.estimate(z_t, t, mask, condition, rows)
        prediction = self.denoiser(z_t, time, mask, condition, x0_prev, has_prev)
        losses = prediction_loss(prediction, x0, eps, level, options.objective, options.loss_type, mask)
        return losses * self.process.loss_weight(t)

    @torch.no_grad()
    def estimate(
        self, z_t: Tensor, t: Tensor, mask: Tensor | None, condition: Condition | None, rows: Tensor
    ) -> Tensor:
        """First estimates of x0 (B, L, D) for some rows of the batch, of which has_prev says who sees it; else zero."""
        some = None if condition is None else condition[rows]
        inner = None if mask is None else mask[rows]

        def network(z: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            return self.denoiser(z, time, inner, some, x0_prev)

        process = self.process
        denoise = make_denoise(network, process.options.objective, process.train_schedule, process.time_input)
        x0 = projected(denoise, self.latents.space.project)(z_t[rows], t[rows], None)
        return torch.zeros_like(z_t).index_copy(0, rows, x0)
