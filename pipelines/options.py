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
        1000,
        "held-out texts reconstructed at a validation; of some of them also two samples of one latent are compared",
        unit="texts",
        at_least=1,
        may_change="eval",
    )
    eval_interpolation: bool = flag(
        False,
        "at --eval and --eval_test also decode the mean of the latents of each held-out text and its nearest neighbor, "
        "and score the texts with --scorer or a small model trained on the corpus: a measure of the latent space's "
        "smoothness",
        may_change="eval",
    )
    eval_recovery: bool = flag(
        False,
        "at --eval and --eval_test also decode noised latents of held-out texts: how much of the texts is recovered, "
        "and how far apart the decoder's two best tokens are",
        may_change="eval",
    )


@dataclass
class DenoiserAugmentationOptions:
    """Training of a decoder on latents that a denoiser produces; see pipelines/steps/denoiser_augmentation."""

    denoiser_run: str | None = flag(
        None,
        "with --lm_mode decoder: train the decoder on latents that the denoiser of this diffusion run produces",
        may_change="resume",
    )
    denoiser_prob: float = flag(
        0.8, "share of the texts whose latents come from --denoiser_run", at_least=0, at_most=1, needs="denoiser_run"
    )
    denoiser_steps: int = flag(
        8,
        "steps of its sampler from noise to data; each batch starts at a random one of them",
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
    training_scores: bool = flag(
        True,
        "compute perplexity and MAUVE of the samples while training; without, no language model scores them until the "
        "run is evaluated",
        may_change="resume",
        config_only=True,
    )
    init_path: str | None = flag(None, "run folder whose weights training starts from, at step 0", published=True)
    init_optimizer: bool = flag(
        False,
        "also start from the averaged weights and from the moments of the optimizer of --init_path, whose newest "
        "checkpoint alone holds them",
    )


@dataclass
class DistillationOptions:
    """A student that samples in few steps; see diffusion/ddim_maps and pipelines/steps/distillation."""

    distill_run: str | None = flag(
        None,
        "train a student of this diffusion run: it starts from the run's weights and learns to sample in "
        "--distill_steps network calls; layout, latents and corpus are those of the run",
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
        "weight of classifier-free guidance with which the teacher samples; the student learns the guided estimate",
        needs="distill_run",
    )


@dataclass
class JointOptions:
    """Training of an autoencoder together with its denoiser; see pipelines/steps/joint."""

    joint_run: str | None = flag(
        None,
        "train autoencoder and denoiser of this diffusion run together, from its weights; layout, latents and corpus "
        "are those of the run, and the language model stays frozen",
        may_change="resume",
        space="frozen",
    )
    joint_warmup_steps: int = flag(
        500,
        "steps of --joint_run in which the loss of the denoiser does not reach the autoencoder",
        unit="steps",
        at_least=0,
        needs="joint_run",
        space="frozen",
    )
    joint_gradient: float = flag(
        1.0,
        "factor on the gradient of the denoiser's loss in the autoencoder after --joint_warmup_steps",
        at_least=0,
        at_most=1,
        needs="joint_run",
        space="frozen",
        config_only=True,
    )
    joint_noise: float = flag(
        0.6,
        "largest sigma of the noise on the latents that the decoder reads; uniform from 0 for each text",
        at_least=0,
        at_most=1,
        needs="joint_run",
        space="frozen",
        config_only=True,
    )
    joint_reconstruction_weight: float = flag(
        1.0,
        "weight of the autoencoder's losses beside that of the denoiser",
        at_least=0,
        needs="joint_run",
        space="frozen",
        config_only=True,
    )
    joint_statistics: str = flag(
        "running",
        "mean and scale of --normalize_latent while latents change; running: follow the latents of each batch; fixed: "
        "those of --joint_run",
        choices=("running", "fixed"),
        needs="joint_run",
        space="frozen",
        config_only=True,
    )


@dataclass
class PretrainingValidationOptions:
    eval_every: int = flag(500, "steps between validations", unit="steps", at_least=1)
    eval_texts: int = flag(500, "held-out texts copied at a validation", unit="texts", at_least=1, may_change="eval")


@dataclass
class BaselineValidationOptions:
    eval_every: int = flag(500, "steps between validations, each with a checkpoint", unit="steps", at_least=1)


@dataclass
class TextDecoderValidationOptions:
    eval_every: int = flag(500, "steps between validations, each with a checkpoint", unit="steps", at_least=1)
    eval_texts: int = flag(
        200,
        "held-out texts that are decoded at a validation, three times each: greedily, and by two samples of one "
        "latent; with --decoding beam also by beams",
        unit="texts",
        at_least=2,
        may_change="eval",
    )


@dataclass
class EmbeddingLossOptions:
    """Losses of a space of token embeddings, added to the loss of the x0 estimate."""

    decoder_nll_weight: float = flag(
        1.0,
        "weight of -log p(w | x0), which keeps the embeddings of different tokens apart",
        config_only=True,
    )
    tT_loss_weight: float = flag(
        1.0,
        "weight of the mean of z_T given x0 (the tT loss of Li et al. 2022), which keeps embeddings small",
        config_only=True,
    )


@dataclass
class ClampOptions:
    """Rounding of estimates to token embeddings while sampling; see pipelines/sampling/hooks."""

    clamp: bool = flag(False, "round each estimate to the nearest token embeddings while sampling")
    clamp_from: float = flag(
        1.0, "largest t at which --clamp rounds; 1: from the first step on", at_least=0, at_most=1, needs="clamp"
    )
    clamp_until: float = flag(
        0.0, "smallest t at which --clamp rounds; 0: to the last step", at_least=0, at_most=1, needs="clamp"
    )
    rejection_rate: float = flag(
        0.0,
        "round each estimate, except at positions whose token did not change since the previous step: with a "
        "probability of this rate times t these are neither rounded nor noised; 0: off",
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
        "langevin: gradient steps on the latents after each sampling step, with a term for the prior (Diffusion-LM); "
        "x0: shift each x0 estimate by the classifier gradient (Dhariwal & Nichol)",
        choices=("langevin", "x0"),
        needs="latent_classifier",
    )
    guidance_steps: int = flag(
        3, "gradient steps after each sampling step", unit="steps", at_least=1, needs="latent_classifier"
    )
    guidance_strength: float = flag(1.0, "factor on the gradient of the classifier", needs="latent_classifier")
    guidance_prior_weight: float = flag(
        1.0,
        "weight of the term for the prior in --classifier_guidance langevin; 0: no such term",
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
    """Decoded intermediate estimates; see pipelines/sampling/trajectory."""

    trajectory: bool = flag(
        False,
        "decode intermediate estimates while sampling, print them, and write them to trajectory.json "
        "in the output folder",
    )
    trajectory_texts: int = flag(
        3, "texts of --trajectory", unit="texts", at_least=1, needs="trajectory", config_only=True
    )
    trajectory_steps: int = flag(
        20,
        "number of sampling steps that --trajectory decodes",
        unit="steps",
        at_least=1,
        needs="trajectory",
        config_only=True,
    )


@dataclass
class ClassifierRunOptions:
    """The run whose latents a classifier is trained on."""

    diffusion_run: str | None = flag(
        None, "folder of the diffusion run on whose latents the classifier is trained", may_change="resume"
    )
    eval_every: int = flag(500, "steps between validations", unit="steps", at_least=1)


@dataclass
class DraftModelRunOptions:
    """The autoencoder whose texts a draft model is trained to draft."""

    latent_model_path: str | None = flag(
        None,
        "run folder of the trained autoencoder; a diffusion run has a copy in autoencoder/",
        may_change="resume",
        space="frozen",
    )
    enc_dec_model: str | None = flag(
        None,
        "folder or hub id of the language model; unset: the one in the autoencoder's args.json",
        may_change="resume",
    )
    max_latent_noise: float = flag(
        0.4,
        "largest sigma of the noise on training latents, which makes the draft model robust to sampling errors",
        at_least=0,
        at_most=1,
    )
    latent_noise_prob: float = flag(
        0.5, "share of the texts whose latents are noised", at_least=0, at_most=1, needs="max_latent_noise"
    )
    latent_cache_dir: str | None = flag(
        None,
        "folder of encoded corpora; unset: encoded/ in --cache_dir",
        may_change="resume",
        space="frozen",
    )
    eval_every: int = flag(500, "steps between validations", unit="steps", at_least=1)


@dataclass
class AbsorbingOptions:
    """The soft absorbing state of DiffuSeq-v2; see diffusion/absorbing."""

    learned_mean_embed: bool = flag(
        False, "noise drifts to a learned vector instead of zero: the soft absorbing state of DiffuSeq-v2"
    )
    denoise: bool = flag(
        False,
        "(published name) discrete noise: whole tokens are replaced by the absorbing state, in training and sampling",
        may_change="eval",
    )
    denoise_rate: float = flag(
        0.2,
        "a token is replaced with the probability rate * sigma_t; in sampling, rate * std of the step's noise",
        at_least=0,
        at_most=1,
        needs="denoise",
        may_change="eval",
    )
    reg_rate: float = flag(0.01, "weight of the norm of the absorbing state in the loss", needs="learned_mean_embed")
