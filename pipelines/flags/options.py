"""Flags that belong to one entry point rather than to a part."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AutoencoderIntervals:
    eval_every: int = field(
        default=1000, metadata=dict(help="steps between validations, each with a checkpoint", unit="steps")
    )
    eval_texts: int = field(
        default=1000, metadata=dict(help="held-out texts reconstructed at a validation", unit="texts")
    )
    midpoints: bool = field(
        default=False,
        metadata=dict(
            help="at --eval and --eval_test also write out the middle of each held-out text and its nearest neighbour, "
            "judged by --scorer or a small one trained on the corpus: a space whose middles read well can be generated "
            "from, whatever its reconstruction"
        ),
    )


@dataclass
class PriorOptions:
    """A decoder trained on for the latents that a denoiser comes up with; see pipelines/training/imagined."""

    prior_run: str | None = field(
        default=None,
        metadata=dict(
            help="with --lm_mode decoder: train it on latents as the denoiser of this diffusion run would have them"
        ),
    )
    prior_prob: float = field(
        default=0.8, metadata=dict(help="share of the texts whose latents come from --prior_run", unit="probability")
    )
    prior_steps: int = field(
        default=8,
        metadata=dict(help="steps of its sampler from noise to data; a batch walks a random rest", unit="steps"),
    )


@dataclass
class DiffusionIntervals:
    save_and_sample_every: int = field(
        default=5000,
        metadata=dict(help="steps between samplings with evaluation, each with a checkpoint", unit="steps"),
    )
    sample_every: int | None = field(
        default=None, metadata=dict(help="steps between samplings; unset: --save_and_sample_every", unit="steps")
    )
    init_path: str | None = field(
        default=None, metadata=dict(help="run folder whose weights training starts from, at step 0")
    )


@dataclass
class DistillationOptions:
    """A student that samples in few steps; see diffusion/distillation and pipelines/training/distillation_step."""

    distill_run: str | None = field(
        default=None,
        metadata=dict(
            help="train a student of this diffusion run: it begins with the run's weights and learns to sample in "
            "--distill_steps network calls, without guidance's second one; layout, latents and corpus are the run's"
        ),
    )
    distill_steps: int = field(
        default=4, metadata=dict(help="sampling steps, and network calls, of the student", unit="steps")
    )
    distill_substeps: int = field(
        default=6,
        metadata=dict(help="solver steps of the teacher for each step of the student", unit="steps"),
    )
    distill_guidance: float = field(
        default=1.0,
        metadata=dict(
            help="weight of classifier-free guidance that the teacher samples with, and the student then has in it",
            unit="factor",
        ),
    )


@dataclass
class PretrainingIntervals:
    eval_every: int = field(default=500, metadata=dict(help="steps between validations", unit="steps"))
    eval_texts: int = field(default=500, metadata=dict(help="held-out texts copied at a validation", unit="texts"))


@dataclass
class EmbeddingLossOptions:
    """What is learned beside the estimate of x0 in a space of token embeddings."""

    decoder_nll_weight: float = field(
        default=1.0, metadata=dict(help="weight of -log p(w | x0), which keeps embeddings apart", unit="factor")
    )
    terminal_weight: float = field(
        default=1.0,
        metadata=dict(help="weight of what the noisiest step leaves of x0, which keeps them small", unit="factor"),
    )


@dataclass
class RoundingOptions:
    """Rounding of estimates to token embeddings while sampling; see pipelines/sampling/rounding."""

    clamp: bool = field(
        default=False, metadata=dict(help="round each estimate to the nearest token embeddings while sampling")
    )
    clamp_from: float = field(
        default=1.0,
        metadata=dict(help="time from which --clamp rounds; 1: from the first step on", unit="probability"),
    )
    clamp_until: float = field(
        default=0.0,
        metadata=dict(help="time until which --clamp rounds; 0: to the last step", unit="probability"),
    )
    rejection_rate: float = field(
        default=0.0,
        metadata=dict(
            help="round each estimate, but leave tokens that did not change unrounded and without noise with this "
            "probability, which falls with t; 0: off",
            unit="probability",
        ),
    )


@dataclass
class ControlOptions:
    """Samples steered to a label by a classifier of noised latents; see pipelines/sampling/control."""

    latent_classifier: str | None = field(
        default=None, metadata=dict(help="run folder of python -m pipelines.train_classifier for this run's latents")
    )
    target_label: str | None = field(
        default=None, metadata=dict(help="label of --latent_classifier, by name or number")
    )
    guidance_kind: str = field(
        default="steps",
        metadata=dict(
            help="steps: gradient steps after each sampling step, with a fluency term; estimate: one shift of each "
            "estimate, exact where the classifier is",
            choices=("steps", "estimate"),
        ),
    )
    guidance_steps: int = field(
        default=3, metadata=dict(help="gradient steps after each sampling step", unit="steps", at_least=1)
    )
    guidance_strength: float = field(default=1.0, metadata=dict(help="weight of the label", unit="factor"))
    guidance_fluency: float = field(
        default=1.0,
        metadata=dict(help="weight of what the diffusion itself says of the text; 0: none", unit="factor", at_least=0),
    )
    guidance_rate: float = field(
        default=0.5, metadata=dict(help="length of a gradient step, above 0 and up to 1", unit="probability")
    )
    guidance_langevin: bool = field(
        default=False, metadata=dict(help="add noise to the gradient steps, so that they sample instead of climbing")
    )


@dataclass
class TrajectoryOptions:
    """Seeing texts come out of noise; see pipelines/sampling/trajectory."""

    trajectory: bool = field(
        default=False,
        metadata=dict(
            help="show texts on their way from noise, and write them to trajectory.json of the output folder"
        ),
    )
    trajectory_texts: int = field(default=3, metadata=dict(help="texts of --trajectory", unit="texts", at_least=1))
    trajectory_views: int = field(
        default=20, metadata=dict(help="how often --trajectory looks on the way", unit="views", at_least=1)
    )


@dataclass
class ClassifierRunOptions:
    """What a classifier of noised latents is trained for."""

    diffusion_run: str | None = field(
        default=None, metadata=dict(help="run folder whose latents the classifier is to judge")
    )
    eval_every: int = field(default=500, metadata=dict(help="steps between validations", unit="steps", at_least=1))


@dataclass
class DrafterRunOptions:
    """What a drafter is trained for."""

    latent_model_path: str | None = field(
        default=None,
        metadata=dict(
            help="run folder of the trained autoencoder whose texts are to be written sooner; a diffusion run keeps "
            "its own under autoencoder/"
        ),
    )
    enc_dec_model: str | None = field(
        default=None,
        metadata=dict(help="where the language model is now; unset: where the autoencoder's run says that it was"),
    )
    latent_noise: float = field(
        default=0.4,
        metadata=dict(
            help="train on latents noised up to this sigma too, since those of samples are never quite right",
            unit="probability",
        ),
    )
    latent_noise_prob: float = field(
        default=0.5, metadata=dict(help="share of the texts whose latents are noised", unit="probability")
    )
    latent_cache_dir: str | None = field(
        default=None, metadata=dict(help="where encoded corpora are kept; unset: latent_cache/ in the run folder")
    )
    eval_every: int = field(default=500, metadata=dict(help="steps between validations", unit="steps", at_least=1))


@dataclass
class AbsorbingOptions:
    """The soft absorbing state of DiffuSeq-v2; see diffusion/absorbing."""

    learned_mean_embed: bool = field(
        default=False, metadata=dict(help="noise drifts to a learned vector instead of zero: a soft absorbing state")
    )
    denoise: bool = field(
        default=False,
        metadata=dict(
            help="discrete noise: whole tokens are replaced by the absorbing state, in training and while sampling"
        ),
    )
    denoise_rate: float = field(
        default=0.2, metadata=dict(help="share of --denoise, times the amplitude of the noise", unit="probability")
    )
    reg_rate: float = field(
        default=0.01, metadata=dict(help="weight of the norm of the absorbing state in the loss", unit="factor")
    )
