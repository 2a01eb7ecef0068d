"""Control of samples by a classifier of noised latents: --latent_classifier RUN --target_label L.

Two ways: gradient steps after each transition, held back by a fluency term (Li et al. 2022, arXiv:2205.14217), or a
shift of each estimate (Dhariwal & Nichol 2021, arXiv:2105.05233). A classifier is a run of pipelines/train_classifier.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.denoisers import time_value
from diffusion.gradient_guidance import LogProb, control, steered
from latent_models.normalisation import Normalised
from model.classifier import LatentClassifier
from model.options import ClassifierOptions
from pipelines.building.models import options_of
from pipelines.building.process import Process
from pipelines.flags.options import ControlOptions
from pipelines.sampling.classes import class_number
from pipelines.sampling.walk import Walk
from utils import checkpoints
from utils.errors import UserError
from utils.flag_files import read_args
from utils.state import load_weights


class Control:
    """An extra of walks (pipelines/sampling/walk): what they write becomes more probably of a label."""

    def __init__(self, classifier: nn.Module, label: int, process: Process, options: ControlOptions) -> None:
        self.classifier, self.label, self.process, self.options = classifier, label, process, options

    def __call__(self, walk: Walk) -> None:
        o, log_prob = self.options, self.log_prob(walk)
        if o.guidance_kind == "estimate":
            walk.denoise = steered(walk.denoise, log_prob, walk.schedule, o.guidance_strength)
            return
        walk.corrections.append(
            control(
                log_prob,
                walk.schedule,
                strength=o.guidance_strength,
                steps=o.guidance_steps,
                fluency=o.guidance_fluency,
                rate=o.guidance_rate,
                langevin=walk.generator_at("langevin") if o.guidance_langevin else None,
            )
        )

    def log_prob(self, walk: Walk) -> LogProb:
        """log p(label | z_t) of each text, in nats."""

        def log_prob(z: Tensor, t: Tensor) -> Tensor:
            if walk.anchor is not None:
                z = torch.where(walk.anchor.mask[..., None], walk.anchor.value, z)
            time = time_value(walk.schedule, t, self.process.time_input).to(z.dtype)
            return self.classifier(z, time, walk.visible).float().log_softmax(-1)[:, self.label]

        return log_prob


def load_control(options: ControlOptions, space: Normalised, process: Process, device: torch.device) -> Control:
    """From --latent_classifier and --target_label. UserError where either does not belong to this run."""
    if options.latent_classifier is None or options.target_label is None:
        lacking = "target_label" if options.target_label is None else "latent_classifier"
        raise UserError(f"--latent_classifier and --target_label control together: add --{lacking}")
    folder = Path(options.latent_classifier)
    saved = read_args(folder)
    if "space_fingerprint" not in saved:
        raise UserError(f"--latent_classifier {folder} is not a run of python -m pipelines.train_classifier: train one")
    if saved["space_fingerprint"] != space.fingerprint():
        raise UserError(
            f"--latent_classifier {folder} was trained on the latents of another run, or on other weights of this "
            "one: train it again with --diffusion_run"
        )
    names = saved["class_names"]
    label = class_number(options.target_label, names, "--target_label")
    classifier = LatentClassifier(space.dim, space.length, len(names), options_of(ClassifierOptions, saved))
    load_weights(classifier, checkpoints.load(folder))
    return Control(classifier.to(device).requires_grad_(False).eval(), label, process, options)
