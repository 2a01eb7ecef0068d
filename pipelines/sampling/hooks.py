"""Hooks that change a sampler call (pipelines/sampling/sampler_call): classifier control, rounding, remasking.

Classifier control steers samples to a label: --latent_classifier RUN --target_label L. There are two ways: gradient
steps after each sampler step, with a fluency term (Li et al. 2022, arXiv:2205.14217), or a shift of each estimate
(Dhariwal & Nichol 2021, arXiv:2105.05233). The classifier of noised latents is a run of pipelines/train_classifier.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.absorbing import remask_hook
from diffusion.classifier_guidance import LogProb, classifier_guidance_hook, classifier_guided
from diffusion.denoisers import clamp_x0
from diffusion.token_rejection import StableTokenRejection
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import NormalizedSpace
from model.classifier import LatentClassifier
from model.options import ClassifierOptions
from pipelines.builders.diffusion_process import DiffusionProcess
from pipelines.options import ClampOptions, ControlOptions
from pipelines.sampling.classes import class_index
from pipelines.sampling.sampler_call import SamplerCall
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.pretrained import options_from, read_checkpoint
from utils.state import load_weights


class ClassifierControl:
    """Raises the probability that a classifier gives to one label."""

    def __init__(self, classifier: nn.Module, label: int, process: DiffusionProcess, options: ControlOptions) -> None:
        """classifier: (z (B, L, D), time (B,), mask) -> logits (B, labels)."""
        self.classifier, self.label, self.process, self.options = classifier, label, process, options

    def __call__(self, call: SamplerCall) -> None:
        o, log_prob = self.options, self.log_prob(call)
        if o.classifier_guidance == "x0":
            call.denoise = classifier_guided(call.denoise, log_prob, call.schedule, o.guidance_strength)
            return
        call.step_hooks.append(
            classifier_guidance_hook(
                log_prob,
                call.schedule,
                strength=o.guidance_strength,
                steps=o.guidance_steps,
                fluency=o.guidance_prior_weight,
                rate=o.guidance_step_size,
                langevin=call.step_generator("langevin", of_latents=True) if o.langevin_noise else None,
            )
        )

    def log_prob(self, call: SamplerCall) -> LogProb:
        """(z, t) -> log p(label | z_t) of each text (B,), in nats."""

        def log_prob(z: Tensor, t: Tensor) -> Tensor:
            if call.known is not None:
                z = torch.where(call.known.mask[..., None], call.known.value, z)
            time = self.process.sampling_time_input(t).to(z.dtype)
            return self.classifier(z, time, call.attention_mask).float().log_softmax(-1)[:, self.label]

        return log_prob


def load_classifier_control(
    options: ControlOptions, space: NormalizedSpace, process: DiffusionProcess, device: torch.device
) -> ClassifierControl:
    """Load the classifier of --latent_classifier, with the label of --target_label.

    UserError if one flag is missing, the folder is not the run of a classifier or belongs to other latents, or the
    label is unknown.
    """
    if options.latent_classifier is None or options.target_label is None:
        missing = "target_label" if options.target_label is None else "latent_classifier"
        raise UserError(f"--latent_classifier and --target_label are used together: add --{missing}")
    folder = Path(options.latent_classifier)
    saved = read_args(folder)
    if "space_fingerprint" not in saved:
        raise UserError(f"--latent_classifier {folder} is not a run of python -m pipelines.train_classifier: train one")
    if saved["space_fingerprint"] != space.fingerprint():
        raise UserError(
            f"--latent_classifier {folder} was trained on the latents of another run, or on other weights of this "
            "run: train it again with --diffusion_run"
        )
    names = saved["class_names"]
    label = class_index(options.target_label, names, "--target_label")
    classifier = LatentClassifier(space.dim, space.length, len(names), options_from(ClassifierOptions, saved))
    load_weights(classifier, read_checkpoint(folder, saved.get("best_metric") is not None))
    return ClassifierControl(classifier.to(device).requires_grad_(False).eval(), label, process, options)


class RoundingHook:
    """Rounds estimates to the nearest token embeddings: --clamp, or --rejection_rate, which skips stable tokens.

    The `project` method of the space returns the nearest embedding.
    """

    def __init__(self, options: ClampOptions, space: LatentSpace) -> None:
        self.options, self.space = options, space

    def __call__(self, call: SamplerCall) -> None:
        o = self.options
        if o.rejection_rate:
            stability = StableTokenRejection(o.rejection_rate, call.step_generator("rejection"))
            call.denoise = stability.clamp_x0(call.denoise, self.space.project)
            call.step_hooks.append(stability.step_hook)
        elif o.clamp:
            call.denoise = clamp_x0(call.denoise, self.space.project, from_t=o.clamp_from, until_t=o.clamp_until)


class RemaskHook:
    """Discrete noise: after each step, replaces random positions by the absorbing state (--denoise)."""

    def __init__(self, state: Tensor, rate: float) -> None:
        """state: (D,). rate: --denoise_rate."""
        self.state, self.rate = state, rate

    def __call__(self, call: SamplerCall) -> None:
        state = self.state.detach()
        call.step_hooks.append(remask_hook(state, self.rate, call.step_generator("remasking"), call.generated_mask))
