"""Flags of the diffusion process. Plain dataclasses: importing them costs nothing, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

CONTINUOUS = ("cosine", "simple_linear", "beta_linear", "sigmoid", "sqrt")
DISCRETE = ("cosine", "linear", "sqrt", "trunc_cos", "trunc_lin", "pw_lin", "warmup-decay")
SAMPLERS = ("ddpm", "ddim", "dpmpp", "dpmpp_sde", "heun")
GRIDS = ("uniform", "shifted", "log_snr", "logit_normal", "karras")


@dataclass
class ProcessOptions:
    objective: str = field(
        default="pred_noise",
        metadata=dict(help="what the network predicts", choices=("pred_noise", "pred_x0", "pred_v")),
    )
    loss_type: str = field(
        default="l2", metadata=dict(help="error of the prediction", choices=("l1", "l2", "smooth_l1"))
    )
    train_schedule: str = field(default="cosine", metadata=dict(help="continuous noise schedule", choices=CONTINUOUS))
    scale: float = field(
        default=1.0,
        metadata=dict(help="shift of the log-SNR by 2 ln(scale); below 1 adds noise at every t", unit="factor"),
    )
    beta_schedule: str | None = field(
        default=None, metadata=dict(help="train on a discrete chain instead of a continuous schedule", choices=DISCRETE)
    )
    timesteps: int = field(
        default=1000, metadata=dict(help="length of the discrete chain; only with --beta_schedule", unit="steps")
    )
    train_prob_self_cond: float = field(
        default=0.5,
        metadata=dict(
            help="share of each batch that is shown its previous estimate (with --self_condition)", unit="probability"
        ),
    )
    class_unconditional_prob: float = field(
        default=0.1, metadata=dict(help="share of examples that train with the null class", unit="probability")
    )
    seq2seq_unconditional_prob: float = field(
        default=0.1, metadata=dict(help="share of examples that train with the null source", unit="probability")
    )
    p2_loss_weight_gamma: float = field(
        default=0.0,
        metadata=dict(
            help="weight the loss by (1 + snr)^-gamma; the reference parsed it without effect", unit="exponent"
        ),
    )
    loss_weighting: str = field(
        default="none",
        metadata=dict(
            help="weight of a noise level in the loss; min_snr: min(snr, gamma) on the error of x0",
            choices=("none", "min_snr"),
        ),
    )
    min_snr_gamma: float = field(
        default=5.0, metadata=dict(help="bound of --loss_weighting min_snr; 5 is published", unit="snr")
    )
    schedule_sampler: str = field(
        default="stratified",
        metadata=dict(
            help="times of training: stratified (evenly spread over each batch), uniform, lossaware (where the loss "
            "was large, weighted), or fixstep (half as often in the noisy half)",
            choices=("stratified", "uniform", "lossaware", "fixstep"),
            aliases={"loss-second-moment": "lossaware"},
        ),
    )
    time_bins: int | None = field(
        default=100,
        metadata=dict(
            help="neighbouring times that --schedule_sampler lossaware remembers together; none: each step of the "
            "chain by itself, as published, which needs ten losses of every one",
            unit="bins",
            at_least=1,
        ),
    )
    T_schedule: str = field(
        default="normal",
        metadata=dict(
            help="anneal the range of noise levels over the first half of training",
            choices=("normal", "linear", "polynomial", "cosine", "unsmooth"),
        ),
    )
    polynomial_T_power: float = field(
        default=2, metadata=dict(help="power of --T_schedule polynomial", unit="exponent", at_least=0)
    )


@dataclass
class SamplingOptions:
    preset: str | None = field(
        default=None,
        metadata=dict(
            help="sampler, time grid, steps and decoding in one word; what is typed beside it goes before it",
            choices=("fast", "balanced", "best"),
        ),
    )
    sampler: str = field(
        default="ddpm", metadata=dict(help="reverse process; heun calls the network twice a step", choices=SAMPLERS)
    )
    sampling_timesteps: int = field(
        default=250, metadata=dict(help="steps of the reverse process, 1 or more", unit="steps")
    )
    sampling_schedule: str | None = field(
        default=None,
        metadata=dict(help="continuous schedule to sample with; unset: the one trained with", choices=CONTINUOUS),
    )
    ddim_sampling_eta: float | None = field(
        default=None,
        metadata=dict(
            help="noise of a DDIM step, 0 none, 1 ancestral; unset: 0, or 1 with --beta_schedule. "
            "Typed without --sampler, selects ddim",
            unit="factor",
            at_least=0,
            at_most=1,
        ),
    )
    cls_free_guidance: float = field(
        default=1.0,
        metadata=dict(
            help="weight of classifier-free guidance by class and source: 1 leaves it off, above 1 follows the "
            "condition more closely than the data does",
            unit="factor",
        ),
    )
    posterior_variance: str = field(
        default="large",
        metadata=dict(help="variance of a ddpm step: beta_t, or that of the posterior", choices=("small", "large")),
    )
    time_grid: str = field(default="uniform", metadata=dict(help="how the sampling steps are spaced", choices=GRIDS))
    grid_shift: float | None = field(
        default=None,
        metadata=dict(
            help="factor on the odds of t in --time_grid shifted (unset: 3) and logit_normal (unset: 1); "
            "above 1 more steps are spent where there is noise",
            unit="factor",
        ),
    )
    grid_rho: float = field(
        default=7.0, metadata=dict(help="how --time_grid karras favours low noise; 7 is published", unit="exponent")
    )
    timestep_respacing: str | None = field(
        default=None,
        metadata=dict(
            help="steps of the chain to walk, in place of --sampling_timesteps: ddimN, counts by section (50, "
            "or 10,15), or at:0,9,49; only with --beta_schedule",
        ),
    )
    noise_bound: float | None = field(
        default=None,
        metadata=dict(
            help="noise of a sampling step stays within this bound, being drawn again beyond it; unset or 0: no bound",
            unit="standard deviations",
            at_least=0,
        ),
    )
