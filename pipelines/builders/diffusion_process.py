"""The diffusion process of a run: schedules, objective, time, grid and sampler, put together from flags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffusion import time_sampling
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.loss import LossConfig
from diffusion.options import ProcessOptions, SamplingOptions
from diffusion.samplers import Sampler, make_sampler
from diffusion.schedules import Schedule, make_continuous_schedule, num_timesteps
from diffusion.timesteps import make_grid, parse_respacing, respaced_timesteps
from diffusion.weighting import make_weighting, p2_weight


@dataclass(frozen=True)
class DiffusionProcess:
    """Everything about noise that training and sampling share."""

    options: ProcessOptions
    time_input: str
    train_schedule: Schedule
    sampling_schedule: Schedule
    sampler: Sampler
    make_timesteps: Callable[[int], Tensor]  # steps -> times
    truncate_noise: float | None = None  # of a sampling step, in standard deviations
    project_from_t: float = 1.0  # time from which on estimates are brought back to where data lies

    @property
    def loss_config(self) -> LossConfig:
        """What the denoiser is trained to predict."""
        o = self.options
        return LossConfig(self.train_schedule, o.objective, o.loss_type, self.time_input)

    def max_time(self, step: int, num_steps: int) -> float:
        """T(step) / T: the upper end of the times that training draws from."""
        o = self.options
        return time_sampling.max_time(
            o.T_schedule, step, num_steps, num_timesteps(self.train_schedule), o.polynomial_T_power
        )

    def draw_times(self, step: int, num_steps: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        """A function (n, generator) -> times (n,) and weights (n,) for a training step."""
        return partial(
            time_sampling.sample_stratified,
            max_time=self.max_time(step, num_steps),
            timesteps=num_timesteps(self.train_schedule),
        )

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight (B,) of a text's loss by its noise level."""
        o, schedule = self.options, self.train_schedule
        weight = make_weighting(o.loss_weighting, o.objective, o.min_snr_gamma)(schedule, t)
        gamma = o.p2_loss_weight_gamma
        return weight * p2_weight(schedule, t, gamma) if gamma else weight

    def grid(self, steps: int) -> Tensor:
        """Falling times (steps + 1,) from 1 to 0; sampling always walks the whole range."""
        return self.make_timesteps(steps)


def make_process(
    options: ProcessOptions,
    sampling: SamplingOptions,
    variant: str,
    trained_scale: float | None = None,
    *,
    student: bool = False,
) -> DiffusionProcess:
    """variant: of the denoiser. trained_scale: --scale of training where options holds another for sampling.

    student: of a distillation, whose estimates are of data at its last step only (diffusion/ddim_maps).
    """
    from model.denoiser import DENOISERS  # here: what uses a process need not load the networks

    sampler = make_sampler(
        sampling.sampler, eta=sampling.ddim_sampling_eta or 0.0, variance=sampling.posterior_variance
    )
    train: Schedule
    sampling_schedule: Schedule
    if options.beta_schedule is not None:
        train = sampling_schedule = make_discrete_schedule(options.beta_schedule, options.timesteps)
    else:
        train = make_continuous_schedule(
            options.train_schedule, options.scale if trained_scale is None else trained_scale
        )
        sampling_schedule = make_continuous_schedule(sampling.sampling_schedule or options.train_schedule, options.scale)
    make_timesteps = make_timesteps_fn(sampling, sampling_schedule)
    # what cannot be done is refused now, not after training
    times = make_timesteps(sampling.sampling_timesteps)
    project_from_t = float(times[-2]) if student else 1.0
    make_weighting(options.loss_weighting, options.objective, options.min_snr_gamma)
    return DiffusionProcess(
        options, DENOISERS[variant].time_input, train, sampling_schedule, sampler, make_timesteps, sampling.truncate_noise, project_from_t
    )


def make_timesteps_fn(sampling: SamplingOptions, schedule: Schedule) -> Callable[[int], Tensor]:
    """steps -> times of a schedule, laid out as the flags say."""
    if sampling.timestep_respacing is None:
        return partial(make_grid, sampling.time_grid, schedule, shift=sampling.grid_shift, rho=sampling.grid_rho)
    timesteps = num_timesteps(schedule)
    if timesteps is None:
        raise ValueError("--timestep_respacing chooses steps of a discrete chain: add --beta_schedule, or drop it")
    times = respaced_timesteps(timesteps, parse_respacing(sampling.timestep_respacing, timesteps))
    return lambda steps: times
