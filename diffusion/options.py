"""Flags of the diffusion process. Plain dataclasses: importing them costs nothing, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys

CONTINUOUS_SCHEDULES = table_keys("diffusion.schedules", "CONTINUOUS_SCHEDULES")
DISCRETE_SCHEDULES = table_keys("diffusion.discrete_schedules", "DISCRETE_SCHEDULES")
SAMPLERS = table_keys("diffusion.samplers", "SAMPLERS")
TIMESTEP_GRIDS = table_keys("diffusion.timesteps", "TIMESTEP_GRIDS")


# values of --schedule_sampler whose density is a weight of the noise levels, see diffusion/time_sampling
UNWEIGHTED = ("logit_normal", "adaptive")


@dataclass
class ProcessOptions:
    objective: str = flag(
        "pred_noise",
        "what the network predicts",
        choices=table_keys("diffusion.objectives", "OBJECTIVES"),
        published=True,
    )
    loss_type: str = flag(
        "l2",
        "error of the prediction",
        choices=table_keys("diffusion.loss", "LOSSES"),
        student="may_differ",
        published=True,
    )
    train_schedule: str = flag(
        "cosine",
        "continuous noise schedule; rectified_flow: the linear path, alpha = 1 - t and sigma = t",
        choices=CONTINUOUS_SCHEDULES,
        published=True,
    )
    scale: float = flag(
        1.0,
        "adds 2 ln(scale) to the log-SNR of the schedule at every t; below 1 means more noise. --train_schedule tan is "
        "tan-d with d = 9 / scale",
        needs=("beta_schedule", None),
        may_change="eval",
        published=True,
    )
    scale_by_dimension: bool = flag(
        False,
        "set --scale to sqrt(4096 / numbers of a latent), for which more numbers have more noise",
        needs=("beta_schedule", None),
        space="frozen",
    )
    beta_schedule: str | None = flag(
        None,
        "train on a discrete chain instead of a continuous schedule",
        choices=DISCRETE_SCHEDULES,
        published=True,
    )
    timesteps: int = flag(
        1000, "length of the discrete chain; only with --beta_schedule", unit="steps", at_least=1, published=True
    )
    train_prob_self_cond: float = flag(
        0.5,
        "share of a batch trained with self-conditioning",
        at_least=0,
        at_most=1,
        needs="self_condition",
        student="may_differ",
        published=True,
    )
    self_cond_noise: float = flag(
        0.0,
        "noise on the estimates that self-conditioning feeds back in training, as a share of the noise of the text; "
        "sampling in few steps has worse estimates than training",
        at_least=0,
        needs="self_condition",
    )
    class_unconditional_prob: float = flag(
        0.1,
        "share of examples that train with the null class",
        at_least=0,
        at_most=1,
        needs="class_conditional",
        student="may_differ",
        published=True,
    )
    seq2seq_unconditional_prob: float = flag(
        0.1,
        "share of examples that train with the null source",
        at_least=0,
        at_most=1,
        student="may_differ",
        published=True,
    )
    p2_loss_weight_gamma: float = flag(
        0.0,
        "weight the loss by (1 + snr)^-gamma; the published code ignores this flag",
        student="may_differ",
        published=True,
    )
    loss_weighting: str = flag(
        "none",
        "weight of the loss at each noise level; min_snr: the error of x0 is multiplied by min(snr, gamma); x0, v, "
        "flow: the squared error is that of x0, of v or of the velocity, whatever the network predicts",
        choices=table_keys("diffusion.weighting", "WEIGHTINGS"),
        student="may_differ",
    )
    min_snr_gamma: float = flag(
        5.0,
        "gamma of --loss_weighting min_snr; 5 is published",
        needs=("loss_weighting", "min_snr"),
        student="may_differ",
        config_only=True,
    )
    schedule_sampler: str = flag(
        "stratified",
        "how training timesteps are drawn: stratified (evenly spread over each batch), uniform, lossaware (more often "
        "where the loss was large, with weights), fixstep (half as often in the noisy half), logit_normal (most in "
        "the middle of the range, without weights), or adaptive (equally many wherever the error of x0 grows by an "
        "equal amount, without weights)",
        choices=(
            *table_keys("diffusion.time_sampling", "TIME_SAMPLERS"),
            *table_keys("diffusion.time_sampling", "STATEFUL_SAMPLERS"),
        ),
        aliases={"loss-second-moment": "lossaware"},
        student="unused",
    )
    importance_bins: int | None = flag(
        100,
        "bins of neighboring timesteps that share statistics in --schedule_sampler lossaware and adaptive; none: one "
        "per step of the chain, as published; each bin needs ten losses before sampling changes",
        unit="bins",
        at_least=1,
        needs=("schedule_sampler", "lossaware", "adaptive"),
        student="unused",
        config_only=True,
    )
    time_logit_mean: float = flag(
        0.0,
        "mean of the logit of t in --schedule_sampler logit_normal; above 0: more training where there is noise",
        needs=("schedule_sampler", "logit_normal"),
        student="unused",
        config_only=True,
    )
    time_logit_std: float = flag(
        1.0,
        "its standard deviation; smaller: closer to the middle",
        above=0,
        needs=("schedule_sampler", "logit_normal"),
        student="unused",
        config_only=True,
    )
    T_schedule: str = flag(
        "normal",
        "how the range of training timesteps grows over the first half of training, from the cleanest fifth to all: "
        "linear, polynomial, cosine, or unsmooth (by a fifth of them at a time); normal: no annealing, all from the "
        "start",
        choices=table_keys("diffusion.time_sampling", "T_SCHEDULES"),
        student="unused",
        published=True,
    )
    polynomial_T_power: float = flag(
        2,
        "power of --T_schedule polynomial",
        at_least=0,
        needs=("T_schedule", "polynomial"),
        student="unused",
        published=True,
    )


@dataclass
class SamplingOptions:
    preset: str | None = flag(
        None,
        "set sampler, time grid, steps and decoding; flags on the command line take precedence",
        choices=table_keys("pipelines.cli.presets", "PRESETS"),
    )
    sampler: str = flag(
        "ddpm",
        "reverse process; heun calls the network twice a step",
        choices=SAMPLERS,
        student="sampling",
        published=True,
    )
    sampling_timesteps: int = flag(
        250,
        "steps of the reverse process, 1 or more",
        unit="steps",
        at_least=1,
        may_change="both",
        student="sampling",
        published=True,
    )
    sampling_schedule: str | None = flag(
        None,
        "continuous noise schedule for sampling; unset: the schedule of training",
        choices=CONTINUOUS_SCHEDULES,
        student="sampling",
        published=True,
    )
    ddim_sampling_eta: float | None = flag(
        None,
        "noise of a DDIM step, from 0 (none) to 1 (ancestral); unset: 0, or 1 with --beta_schedule. Selects --sampler "
        "ddim if no sampler is given",
        at_least=0,
        at_most=1,
        may_change="both",
        student="sampling",
        published=True,
    )
    renoise_gamma: float = flag(
        0.0,
        "go back before each step, by this share of its length, to more noise, which is drawn anew; 0: no; 1 to 1.5 is "
        "usual in 32 steps",
        at_least=0,
        needs=("sampler", "ddim", "heun"),
        may_change="both",
        student="sampling",
    )
    cls_free_guidance: float = flag(
        1.0,
        "weight of classifier-free guidance by class and source; 1: no guidance; above 1: samples follow the "
        "condition more closely",
        may_change="both",
    )
    posterior_variance: str = flag(
        "large",
        "variance of a ddpm step; large: beta_t; small: the variance of z_s given z_t and x0; learned: that of the "
        "network, the default with --learned_variance",
        choices=table_keys("diffusion.samplers", "POSTERIOR_VARIANCES"),
        needs=("sampler", "ddpm"),
    )
    time_grid: str = flag("uniform", "how the sampling steps are spaced", choices=TIMESTEP_GRIDS, student="grid")
    grid_shift: float | None = flag(
        None,
        "factor on the odds of t in --time_grid shifted (unset: 3) and logit_normal (unset: 1); "
        "above 1 spends more steps at high noise",
        needs=("time_grid", "shifted", "logit_normal"),
        student="grid",
    )
    grid_rho: float = flag(
        7.0,
        "exponent of --time_grid karras; larger spends more steps at low noise; 7 is published",
        needs=("time_grid", "karras"),
        student="grid",
        config_only=True,
    )
    timestep_respacing: str | None = flag(
        None,
        "steps of the chain to use instead of --sampling_timesteps: ddimN, counts by section (50, "
        "or 10,15), or at:0,9,49; only with --beta_schedule",
        student="sampling",
    )
    truncate_noise: float | None = flag(
        None,
        "draw the noise of sampling steps from a normal distribution truncated at this bound; unset or 0: no bound",
        unit="standard deviations",
        at_least=0,
    )
