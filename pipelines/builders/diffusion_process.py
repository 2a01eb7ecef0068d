"""The diffusion process of a run: schedules, objective, timesteps and sampler, built from options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from diffusion import time_sampling
from diffusion.denoisers import Denoise, Network, get_time_input, make_denoise
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.learned_variance import HYBRID_WEIGHT, LearnedVariance
from diffusion.loss import LossConfig
from diffusion.noise_levels import power
from diffusion.options import UNWEIGHTED, ProcessOptions, SamplingOptions
from diffusion.samplers import Sampler, make_sampler
from diffusion.schedules import Schedule, log_snr, make_continuous_schedule, num_timesteps
from diffusion.timesteps import LOG_SNR_RANGE, make_grid, parse_respacing, respaced_timesteps
from diffusion.weighting import Weighting, make_weighting, p2_weight, x0_error_weight
from model import DENOISERS
from utils.errors import UserError


@dataclass(frozen=True)
class DiffusionProcess:
    """Schedules, timesteps and sampler, which training and sampling share."""

    options: ProcessOptions
    time_input: str
    train_schedule: Schedule
    sampling_schedule: Schedule
    sampler: Sampler
    make_timesteps: Callable[[int], Tensor]  # number of steps N -> times (N + 1,), falling from 1 to 0
    truncate_noise: float | None = None  # largest noise of a sampling step, in standard deviations
    project_from_t: float = 1.0  # estimates of x0 are projected onto the space for t <= this
    weighting: Weighting | None = None  # weights of the training loss by noise level (--loss_weighting); None: all 1
    # hands the variance that the network returns to the sampler, with --posterior_variance learned
    variance: LearnedVariance = field(default_factory=LearnedVariance)

    @property
    def loss_config(self) -> LossConfig:
        """Schedule, target and norm of the training loss."""
        o = self.options
        return LossConfig(self.train_schedule, o.objective, o.loss_type, self.time_input)

    def sampling_time_input(self, t: Tensor) -> Tensor:
        """The time input of a network at times t of the sampling schedule, shaped like t."""
        return get_time_input(self.sampling_schedule, t, self.time_input, train_schedule=self.train_schedule)

    def make_denoise(self, network: Network, shift: Tensor | None = None) -> Denoise:
        """The network as an estimate of x0 at times of the sampling schedule. shift: see diffusion.denoisers."""
        return make_denoise(
            network,
            self.options.objective,
            self.sampling_schedule,
            self.time_input,
            train_schedule=self.train_schedule,
            shift=shift,
            variance=self.variance,
        )

    def max_time(self, step: int, num_steps: int) -> float:
        """T(step) / T: the largest time that training samples at a step (--T_schedule)."""
        o = self.options
        return time_sampling.max_time(
            o.T_schedule, step, num_steps, num_timesteps(self.train_schedule), o.polynomial_T_power
        )

    def make_time_sampler(self, step: int, num_steps: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        """A function (n, generator) -> times (n,) and weights (n,) for a training step."""
        return partial(
            time_sampling.sample_stratified,
            max_time=self.max_time(step, num_steps),
            timesteps=num_timesteps(self.train_schedule),
        )

    def weight_losses(self, losses: Tensor, t: Tensor) -> Tensor:
        """Multiply losses (B,) of texts at times t (B,) by the weights of their noise levels."""
        return losses if self.weighting is None else losses * self.weighting(self.train_schedule, t)

    @property
    def weighted_times(self) -> bool:
        """Whether losses are divided by the density of their times, or the density is a weight of the noise levels."""
        return self.options.schedule_sampler not in UNWEIGHTED

    def hybrid_weights(self, learned_variance: bool) -> dict[str, float]:
        """Weights of the LOSS_TERMS that teach the variance of a step, if the network returns it."""
        timesteps = num_timesteps(self.train_schedule)
        if not learned_variance or timesteps is None:
            return {}
        return {"variational_bound": HYBRID_WEIGHT * timesteps}

    def x0_errors(self, losses: Tensor, t: Tensor) -> Tensor:
        """The squared errors of x0 (B,), from the losses of texts at times t (B,) after weight_losses."""
        power = 0.5 if self.options.loss_type == "l1" else 1.0
        plain = losses if self.weighting is None else losses / self.weighting(self.train_schedule, t)
        return plain * x0_error_weight(self.train_schedule, t, self.options.objective) ** power

    def grid(self, steps: int) -> Tensor:
        """Times (steps + 1,) of the sampler, falling from 1 to 0."""
        return self.make_timesteps(steps)


def make_process(
    options: ProcessOptions,
    sampling: SamplingOptions,
    variant: str,
    trained_scale: float | None = None,
    *,
    student: bool = False,
) -> DiffusionProcess:
    """The process of the options. Raises ValueError or UserError if they cannot be combined.

    variant: --denoiser_variant, which determines the time input. trained_scale: --scale of training, where options hold
    another for sampling. student: whether the denoiser is a student of a distillation. Its predictions are estimates of
    x0 only at the last step (diffusion/ddim_maps), so only that one is projected.
    """
    variance = LearnedVariance()
    sampler = make_sampler(
        sampling.sampler,
        eta=sampling.ddim_sampling_eta or 0.0,
        variance=sampling.posterior_variance,
        gamma=sampling.renoise_gamma,
        learned=variance,
    )
    train: Schedule
    sampling_schedule: Schedule
    if options.beta_schedule is not None:
        train = sampling_schedule = make_discrete_schedule(options.beta_schedule, options.timesteps)
    else:
        train = make_continuous_schedule(
            options.train_schedule, options.scale if trained_scale is None else trained_scale
        )
        sampling_schedule = make_continuous_schedule(
            sampling.sampling_schedule or options.train_schedule, options.scale
        )
    if options.beta_schedule is None:
        check_paths(options.train_schedule, train, sampling.sampling_schedule, sampling_schedule)
    if options.schedule_sampler == "adaptive":
        check_adaptive_times(options.objective, train)
    make_timesteps = make_timesteps_fn(sampling, sampling_schedule)
    # options that cannot be combined fail here, before training
    times = make_timesteps(sampling.sampling_timesteps)
    if note := unseen_levels(train, sampling_schedule, times):
        print(f"note: {note}", file=sys.stderr)
    project_from_t = float(times[-2]) if student else 1.0
    return DiffusionProcess(
        options,
        DENOISERS[variant].time_input,
        train,
        sampling_schedule,
        sampler,
        make_timesteps,
        sampling.truncate_noise,
        project_from_t,
        make_loss_weighting(options),
        variance,
    )


def check_paths(train_name: str, train: Schedule, sampling_name: str | None, sampling: Schedule) -> None:
    """UserError if only one of the schedules preserves the variance: the network would get latents of another size."""
    half = torch.full((), 0.5, dtype=torch.float64)
    if bool(power(train(half)) == 1) != bool(power(sampling(half)) == 1):
        raise UserError(
            f"--sampling_schedule {sampling_name} and --train_schedule {train_name}: one is the linear path, whose "
            "latents are shorter: leave --sampling_schedule out"
        )


def check_adaptive_times(objective: str, train: Schedule) -> None:
    """UserError if a small error of the prediction can be an error of x0 without bound, as for eps at t = 1."""
    if float(x0_error_weight(train, torch.ones(1, dtype=torch.float64), objective)) > 100:
        raise UserError(
            f"--schedule_sampler adaptive needs estimates of x0 that are bounded at every noise level, and those of "
            f"--objective {objective} are not: use pred_v, pred_x0 or pred_flow"
        )


def unseen_levels(train: Schedule, sampling: Schedule, times: Tensor) -> str | None:
    """One line about steps of the sampler whose noise levels training never had; None where they hardly matter.

    times: (N + 1,). Beyond LOG_SNR_RANGE estimates barely change; a few steps at an end are not worth a word.
    """
    noisiest, cleanest = (float(log_snr(train(torch.tensor(t, dtype=torch.float64)))) for t in (1.0, 0.0))
    levels = log_snr(sampling(times[:-1]))  # a sampler estimates x0 at all times but the last
    unseen = (levels > cleanest + 1) & (cleanest < LOG_SNR_RANGE) | (levels < noisiest - 1) & (
        noisiest > -LOG_SNR_RANGE
    )
    share = float(unseen.double().mean())
    if share < 0.02:
        return None
    return (
        f"{share:.0%} of the sampling steps have noise levels that training never had (its log-SNR goes from "
        f"{noisiest:.1f} to {cleanest:.1f}): leave out --sampling_schedule and --scale, or train on a schedule that "
        "covers them"
    )


def make_loss_weighting(options: ProcessOptions) -> Weighting | None:
    """The weighting of the training loss by noise level: --loss_weighting times p2; None if all weights are 1."""
    gamma = options.p2_loss_weight_gamma
    named = make_weighting(options.loss_weighting, options.objective, options.min_snr_gamma)
    if gamma:
        return lambda schedule, t: named(schedule, t) * p2_weight(schedule, t, gamma)
    return None if options.loss_weighting == "none" else named


def make_timesteps_fn(sampling: SamplingOptions, schedule: Schedule) -> Callable[[int], Tensor]:
    """A function: number of steps -> times, on the grid or the respacing of the options."""
    if sampling.timestep_respacing is None:
        return partial(make_grid, sampling.time_grid, schedule, shift=sampling.grid_shift, rho=sampling.grid_rho)
    timesteps = num_timesteps(schedule)
    if timesteps is None:
        raise ValueError(
            "--timestep_respacing chooses steps of a discrete schedule: add --beta_schedule, or leave it out"
        )
    times = respaced_timesteps(timesteps, parse_respacing(sampling.timestep_respacing, timesteps))
    return lambda steps: times
