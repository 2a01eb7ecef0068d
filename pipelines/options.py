"""Flags that belong to one entry point rather than to a part."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


@dataclass
class AutoencoderValidationOptions:
    eval_every: int = flag(
        1000, "steps between validations, each with a checkpoint", unit="steps", at_least=1, published=True
    )
    eval_texts: int = flag(
        1000, "held-out texts reconstructed at a validation", unit="texts", at_least=1, may_change="eval"
    )
    eval_interpolation: bool = flag(
        False,
        "at --eval and --eval_test also write out the middle of each held-out text and its nearest neighbour, "
        "judged by --scorer or a small one trained on the corpus: a space whose middles read well can be generated "
        "from, whatever its reconstruction",
        may_change="eval",
    )


@dataclass
class DenoiserAugmentationOptions:
    """A decoder trained on for the latents that a denoiser comes up with; see pipelines/steps/denoiser_augmentation."""

    denoiser_run: str | None = flag(
        None, "with --lm_mode decoder: train it on latents as the denoiser of this diffusion run would have them"
    )
    denoiser_prob: float = flag(
        0.8, "share of the texts whose latents come from --denoiser_run", at_least=0, at_most=1, needs="denoiser_run"
    )
    denoiser_steps: int = flag(
        8,
        "steps of its sampler from noise to data; a batch walks a random rest",
        unit="steps",
        at_least=1,
        needs="denoiser_run",
        config_only=True,
    )


@dataclass
class IntervalOptions:
    save_and_sample_every: int = flag(
        5000,
        "steps between samplings with evaluation, each with a checkpoint",
        unit="steps",
        at_least=1,
        may_change="resume",
        published=True,
    )
    sample_every: int | None = flag(
        None, "steps between samplings; unset: --save_and_sample_every", unit="steps", at_least=1
    )
    init_path: str | None = flag(None, "run folder whose weights training starts from, at step 0", published=True)


@dataclass
class DistillationOptions:
    """A student that samples in few steps; see diffusion/ddim_maps and pipelines/steps/distillation."""

    distill_run: str | None = flag(
        None,
        "train a student of this diffusion run: it begins with the run's weights and learns to sample in "
        "--distill_steps network calls, without guidance's second one; layout, latents and corpus are the run's",
        may_change="resume",
    )
    distill_steps: int = flag(
        4, "sampling steps, and network calls, of the student", unit="steps", at_least=1, needs="distill_run"
    )
    distill_substeps: int = flag(
        6,
        "solver steps of the teacher for each step of the student",
        unit="steps",
        at_least=1,
        needs="distill_run",
        config_only=True,
    )
    distill_guidance: float = flag(
        1.0,
        "weight of classifier-free guidance that the teacher samples with, and the student then has in it",
        unit="factor",
        needs="distill_run",
    )


@dataclass
class PretrainingValidationOptions:
    eval_every: int = flag(500, "steps between validations", unit="steps", at_least=1)
    eval_texts: int = flag(500, "held-out texts copied at a validation", unit="texts", at_least=1, may_change="eval")


@dataclass
class EmbeddingLossOptions:
    """What is learned beside the estimate of x0 in a space of token embeddings."""

    decoder_nll_weight: float = flag(
        1.0, "weight of -log p(w | x0), which keeps embeddings apart", unit="factor", config_only=True
    )
    tT_loss_weight: float = flag(
        1.0, "weight of what the noisiest step leaves of x0, which keeps them small", unit="factor", config_only=True
    )


@dataclass
class ClampOptions:
    """Rounding of estimates to token embeddings while sampling; see pipelines/sampling/hooks."""

    clamp: bool = flag(False, "round each estimate to the nearest token embeddings while sampling")
    clamp_from: float = flag(
        1.0, "time from which --clamp rounds; 1: from the first step on", at_least=0, at_most=1, needs="clamp"
    )
    clamp_until: float = flag(
        0.0, "time until which --clamp rounds; 0: to the last step", at_least=0, at_most=1, needs="clamp"
    )
    rejection_rate: float = flag(
        0.0,
        "round each estimate, but leave tokens that did not change unrounded and without noise with this "
        "probability, which falls with t; 0: off",
        at_least=0,
        at_most=1,
    )


@dataclass
class ControlOptions:
    """Samples steered to a label by a classifier of noised latents; see pipelines/sampling/hooks."""

    latent_classifier: str | None = flag(
        None, "run folder of python -m pipelines.train_classifier for this run's latents"
    )
    target_label: str | None = flag(None, "label of --latent_classifier, by name or number")
    classifier_guidance: str = flag(
        "langevin",
        "langevin: gradient steps on the latents after each sampling step, as in Diffusion-LM, with a term for the "
        "prior; x0: one shift of each estimate of x0, which is exact where the classifier is",
        choices=("langevin", "x0"),
        needs="latent_classifier",
    )
    guidance_steps: int = flag(
        3, "gradient steps after each sampling step", unit="steps", at_least=1, needs="latent_classifier"
    )
    guidance_strength: float = flag(1.0, "weight of the label", unit="factor", needs="latent_classifier")
    guidance_prior_weight: float = flag(
        1.0,
        "weight of the diffusion model's own prior in --classifier_guidance langevin; 0 leaves it out",
        unit="factor",
        at_least=0,
        needs="latent_classifier",
        config_only=True,
    )
    guidance_step_size: float = flag(0.5, "size of a gradient step", at_most=1, above=0, needs="latent_classifier")
    langevin_noise: bool = flag(
        False,
        "add noise to the gradient steps of --classifier_guidance langevin: they then sample instead of maximizing",
        needs="latent_classifier",
        config_only=True,
    )


@dataclass
class TrajectoryOptions:
    """Seeing texts come out of noise; see pipelines/sampling/trajectory."""

    trajectory: bool = flag(
        False, "show texts on their way from noise, and write them to trajectory.json of the output folder"
    )
    trajectory_texts: int = flag(
        3, "texts of --trajectory", unit="texts", at_least=1, needs="trajectory", config_only=True
    )
    trajectory_steps: int = flag(
        20, "how often --trajectory looks on the way", unit="views", at_least=1, needs="trajectory", config_only=True
    )


@dataclass
class ClassifierRunOptions:
    """What a classifier of noised latents is trained for."""

    diffusion_run: str | None = flag(None, "run folder whose latents the classifier is to judge", may_change="resume")
    eval_every: int = flag(500, "steps between validations", unit="steps", at_least=1)


@dataclass
class DraftModelRunOptions:
    """What a drafter is trained for."""

    latent_model_path: str | None = flag(
        None,
        "run folder of the trained autoencoder whose texts are to be written sooner; a diffusion run keeps "
        "its own under autoencoder/",
        may_change="resume",
        space="frozen",
    )
    enc_dec_model: str | None = flag(
        None,
        "where the language model is now; unset: where the autoencoder's run says that it was",
        may_change="resume",
    )
    max_latent_noise: float = flag(
        0.4,
        "train on latents noised up to this sigma too, since those of samples are never quite right",
        at_least=0,
        at_most=1,
    )
    latent_noise_prob: float = flag(
        0.5, "share of the texts whose latents are noised", at_least=0, at_most=1, needs="max_latent_noise"
    )
    latent_cache_dir: str | None = flag(
        None,
        "where encoded corpora are kept; unset: latent_cache/ in the run folder",
        may_change="resume",
        space="frozen",
    )
    eval_every: int = flag(500, "steps between validations", unit="steps", at_least=1)


@dataclass
class AbsorbingOptions:
    """The soft absorbing state of DiffuSeq-v2; see diffusion/absorbing."""

    learned_mean_embed: bool = flag(False, "noise drifts to a learned vector instead of zero: a soft absorbing state")
    denoise: bool = flag(
        False,
        "discrete noise: whole tokens are replaced by the absorbing state, in training and while sampling",
        may_change="eval",
    )
    denoise_rate: float = flag(
        0.2,
        "share of --denoise, times the amplitude of the noise",
        at_least=0,
        at_most=1,
        needs="denoise",
        may_change="eval",
    )
    reg_rate: float = flag(
        0.01, "weight of the norm of the absorbing state in the loss", unit="factor", needs="learned_mean_embed"
    )
