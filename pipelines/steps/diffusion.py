"""The training step of diffusion on clean latents, in the order of the paper's training algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion.adaptive_times import EvenLoss
from diffusion.denoisers import Denoise, project_x0
from diffusion.importance_sampling import LossSecondMoment
from diffusion.loss import (
    BoundNetwork,
    DenoisingResult,
    denoising_loss,
    loss_terms,
    term_weights,
    unbias_bound,
    weighted_total,
)
from diffusion.options import ProcessOptions
from diffusion.schedules import num_timesteps
from diffusion.time_sampling import STATEFUL_SAMPLERS, TIME_SAMPLERS, TimeSampler, sample_logit_normal
from latent_models.spaces.base import LatentSpace
from pipelines.builders.diffusion_process import DiffusionProcess
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.datamodule import LatentSource
from pipelines.steps.describe import describe_rows, describe_times
from utils.records import Condition, Latents, to_device
from utils.seeding import SelectedRows, StepRNG

if TYPE_CHECKING:
    from utils.distributed import DistContext
    from utils.hooks import StepResult
    from utils.state import State

QUARTERS = (0, 1, 2, 3)  # quarters of the noise range; 0 is the cleanest


class TimestepSampler:
    """Timestep sampling (--schedule_sampler): stratified, uniform, logit-normal, or by the loss of each timestep.

    (step, num_steps) -> a function (n, generator) -> timesteps (n,) and importance weights (n,)

    The weights make the mean over a batch that over uniform times; `loss_weight` gives those of the loss.
    Sampling by the loss depends on the losses of the global batch: after each optimizer step the ranks gather them, so
    that all of them keep the same state. Checkpoints hold it, so that a resumed run samples as an uninterrupted one.
    """

    def __init__(self, process: DiffusionProcess, dist: DistContext) -> None:
        self.process, self.dist = process, dist
        o, self.timesteps = process.options, num_timesteps(process.train_schedule)
        self.importance: LossSecondMoment | EvenLoss | None = None
        if (stateful := STATEFUL_SAMPLERS.get(o.schedule_sampler)) is not None:
            self.importance = stateful(self.timesteps, bins=o.importance_bins, device=dist.device)
        self.sampler: TimeSampler = self.importance or TIME_SAMPLERS[o.schedule_sampler]
        if o.schedule_sampler == "logit_normal":
            self.sampler = partial(sample_logit_normal, mean=o.time_logit_mean, std=o.time_logit_std)
        self.recorded: list[tuple[Tensor, Tensor]] = []  # times and losses of the micro-batches of this step

    def __call__(self, step: int, num_steps: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        max_time = self.process.max_time(step, num_steps)
        draw = partial(self.sampler, max_time=max_time, timesteps=self.timesteps)
        return draw if self.process.weighted_times else partial(_draw_with_shares, draw, max_time)

    def loss_weight(self, weight: Tensor) -> Tensor:
        """The weights (B,) of the loss: those drawn, or 1 where the density of times is the weight."""
        return weight if self.process.weighted_times else torch.ones_like(weight)

    def record_losses(self, t: Tensor, loss: Tensor, micro: int) -> None:
        """Losses (B,) of a micro-batch at times (B,), without importance weights."""
        if self.importance is not None:
            self.recorded = self.recorded if micro else []  # a step that failed begins again
            loss = loss.detach().float()
            if isinstance(self.importance, EvenLoss):
                loss = self.process.x0_errors(loss, t)
            self.recorded.append((t.detach(), loss))

    def sync_losses(self, state: State, report: StepResult) -> None:
        """A hook that runs after every step, before anything is saved."""
        if self.importance is None:
            return
        # (micro, 2, B) of each rank -> (micro, rank, B): the order of the global batch
        own = torch.stack([torch.stack(pair) for pair in self.recorded])
        gathered = self.dist.gather(own)  # (rank, micro, 2, B)
        times, losses = gathered.permute(2, 1, 0, 3).flatten(1)
        self.importance.update(times, losses)
        self.recorded = []

    def state_to_checkpoint(self) -> dict[str, LossSecondMoment | EvenLoss]:
        """State to checkpoint, by file name."""
        return {} if self.importance is None else {"times": self.importance}


def _draw_with_shares(
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    max_time: float,
    n: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Times (n,) of the global batch, and weights (n,) that give each quarter of the range a quarter of the batch.

    For logs alone: the inverse density of a rare time would be a weight of a thousand.
    """
    t, _ = draw(n, generator)
    quarter = quarter_of(t, max_time)
    counts = (quarter == torch.arange(4, device=t.device)[:, None]).sum(1)  # (4,)
    return t, n / (4 * counts[quarter.long()])


def drop_conditions(condition: Condition | None, draws: StepRNG, options: ProcessOptions) -> Condition | None:
    """Replace some classes and sources of a training batch by the null ones, at the rates of the options.

    Returns None without a condition.
    """
    if condition is None:
        return None
    return condition.drop(
        draws.uniform("class"),
        options.class_unconditional_prob,
        draws.uniform("source"),
        options.seq2seq_unconditional_prob,
    )


def quarter_of(t: Tensor, max_time: float) -> Tensor:
    """The quarter of the noise range of times (B,), 0 to 3, 0 the cleanest."""
    return (4 * t / max_time).ceil().clamp(1, 4) - 1


def split_by_quarter(name: str, values: Tensor, t: Tensor, max_time: float) -> dict[str, Tensor]:
    """values (B,) by quarter of the noise range as {name}_q0 to {name}_q3, whose batch means are those of a quarter.

    Times are stratified and losses weighted, so a quarter of the batch lies in each quarter: hence the factor 4.
    """
    quarter = quarter_of(t, max_time)
    return {f"{name}_q{q}": 4 * values * (quarter == q) for q in QUARTERS}


class AdditionalLosses:
    """Losses in addition to the loss of the prediction: the losses of the latent space (LatentSpace.losses), and the
    LOSS_TERMS whose weight is not 0 (diffusion/loss)."""

    def __init__(self, latents: LatentSource, weights: Mapping[str, float] | None = None) -> None:
        """weights: weights by name, which override those of the table and the space; other weights are 1."""
        self.latents = latents
        space: Any = getattr(latents.space, "space", latents.space)  # the one inside a NormalizedSpace
        method = getattr(type(space), "losses", None)
        self.own = method is not None and method is not LatentSpace.losses
        self.terms = term_weights(weights)
        self.weights = {**getattr(space, "loss_weights", {}), **(weights or {}), **self.terms}

    def __bool__(self) -> bool:
        """Whether there are additional losses; they need an estimate of x0 with gradient."""
        return self.own or bool(self.terms)

    def __call__(self, rows: Tensor, clean: Latents, result: DenoisingResult) -> dict[str, Tensor]:
        """Losses (B,) by name, unweighted. rows: (B,) of the split."""
        own: dict[str, Tensor] = {}
        if self.own:
            assert result.x0_hat is not None
            batch = self.latents.tokens.batch(rows).to(self.latents.device)
            own = self.latents.space.losses(batch, clean, result.x0_hat)
        return own | loss_terms(result, self.terms)

    def add(self, prediction: Tensor, terms: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (B,) of the loss of the prediction and these losses, and the unweighted losses by name, to log."""
        if not terms:
            return prediction, {}
        logged = {"diffusion": prediction.detach()} | {name: loss.detach() for name, loss in terms.items()}
        return weighted_total(prediction, terms, self.weights), logged


def rows_on(selected: SelectedRows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mask and numbers of the selected rows, on a device."""
    return to_device(selected.mask, device), to_device(selected.rows, device)


class DiffusionStep:
    """(step, micro) -> losses (B,), and values (B,) to log: the loss by quarter of the noise range, and each loss term.

    The loss is that of the prediction, plus the losses of the latent space
    (LatentSpace.losses, weight 1) and those LOSS_TERMS whose weight is not 0 (diffusion/loss).
    """

    logs_quarters = True

    def __init__(
        self,
        denoiser: nn.Module,
        latents: LatentSource,
        process: DiffusionProcess,
        batch_sampler: BatchSampler,
        num_steps: int,
        self_condition: bool,
        timestep_sampler: TimestepSampler | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """denoiser: the network, or the wrapper that averages its gradients over ranks. num_steps: number of steps of
        the whole run.

        timestep_sampler: sampler of training timesteps; None: stratified. weights: weights of loss terms by name, which
        override those of the table.
        """
        self.denoiser, self.latents, self.process, self.batch_sampler = denoiser, latents, process, batch_sampler
        self.num_steps, self.self_condition, self.timestep_sampler = num_steps, self_condition, timestep_sampler
        self.additional_losses = AdditionalLosses(latents, weights)

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        texts = describe_rows(self.batch_sampler, len(self.latents), step, micro, positions)
        draw = (self.timestep_sampler or self.process.make_time_sampler)(step, self.num_steps)
        return f"{texts}; {describe_times(self.batch_sampler, draw, step, micro, positions, self.latents.device)}"

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        options, space = self.process.options, self.latents.space
        rows = self.batch_sampler.rows(step, micro, len(self.latents))
        clean, condition = self.latents(rows)
        draws = self.batch_sampler.rng(step, micro, self.latents.device)
        condition = drop_conditions(condition, draws, options)
        make_sampler = self.timestep_sampler or self.process.make_time_sampler
        t, weight = draws.sample_global(make_sampler(step, self.num_steps), "time")
        eps = draws.normal("noise", *clean.x0.shape[1:])
        selected = draws.select_rows("self_condition", options.train_prob_self_cond)
        mask = clean.mask if space.variable_length else None
        estimate_noise = None
        if self.self_condition and options.self_cond_noise and self.timestep_sampler is not None:  # in training
            estimate_noise = options.self_cond_noise * draws.normal("estimate noise", *clean.x0.shape[1:])
        result = self.denoise(
            clean.x0, mask, t, eps, condition, selected if self.self_condition else None, estimate_noise
        )
        losses = self.process.weight_losses(result.loss, t)
        if self.timestep_sampler is not None:
            self.timestep_sampler.record_losses(t, losses, micro)
        importance = weight if self.timestep_sampler is None else self.timestep_sampler.loss_weight(weight)
        logged = split_by_quarter("loss", losses.detach() * weight, t, self.process.max_time(step, self.num_steps))
        others = unbias_bound(self.additional_losses(rows, clean, result), importance)
        total, terms = self.additional_losses.add(losses * importance, others)
        return total, logged | terms

    def losses(
        self,
        x0: Tensor,
        mask: Tensor | None,
        t: Tensor,
        eps: Tensor,
        condition: Condition | None,
        selected: SelectedRows | None,
    ) -> Tensor:
        """Loss (B,) of the prediction at given times and noise, weighted by noise level. Arguments: see `denoise`."""
        return self.process.weight_losses(self.denoise(x0, mask, t, eps, condition, selected).loss, t)

    def denoise(
        self,
        x0: Tensor,
        mask: Tensor | None,
        t: Tensor,
        eps: Tensor,
        condition: Condition | None,
        selected: SelectedRows | None,
        estimate_noise: Tensor | None = None,
    ) -> DenoisingResult:
        """Corrupt, self-condition, predict and compare.

        x0, eps: (B, L, D). mask: (B, L), None where every position is text. t: (B,). selected: the rows that receive
        the network's own estimate of x0, without gradient; None: no self-conditioning. estimate_noise: see
        denoising_loss.
        """

        def bind(rows: Tensor | None) -> BoundNetwork:
            return bind_denoiser(self.denoiser, mask, condition, rows)

        def project(denoise: Denoise, rows: Tensor) -> Denoise:
            return project_x0(denoise, self.latents.space.project)

        return denoising_loss(
            bind,
            x0,
            t,
            eps,
            self.process.loss_config,
            mask=mask,
            self_cond=None if selected is None else rows_on(selected, x0.device),
            wrap=project,
            with_x0_hat=bool(self.additional_losses),
            estimate_noise=estimate_noise,
        )


def bind_denoiser(
    denoiser: nn.Module, mask: Tensor | None, condition: Condition | None, rows: Tensor | None
) -> BoundNetwork:
    """The denoiser with the mask and condition of some rows of a batch. rows: (k,); None: all of them."""
    if rows is not None:
        mask = None if mask is None else mask[rows]
        condition = None if condition is None else condition[rows]

    def network(
        z: Tensor, time: Tensor, x0_self_cond: Tensor | None = None, self_cond_mask: Tensor | None = None
    ) -> Tensor:
        return denoiser(z, time, mask, condition, x0_self_cond, self_cond_mask)

    return network
