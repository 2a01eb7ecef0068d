"""A classifier of noised latents: latents, noised as the denoiser sees them, to the loss of naming their label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.denoisers import time_value
from diffusion.loss import diffuse
from diffusion.schedules import level_at
from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.cached_latents import Encoded
from pipelines.parts import Parts
from utils.transfer import moved

LOGGED = ("accuracy", *(f"accuracy_q{q}" for q in (1, 2, 3, 4)))


class ClassifierStep:
    """(step, micro) -> losses (B,) in nats, and values to log: accuracy by quarter of the noise range, q1 the cleanest.

    All noise levels count alike, the clean end included, since guidance asks at every one of them.
    """

    def __init__(self, classifier: nn.Module, texts: Encoded, parts: Parts, plan: BatchPlan) -> None:
        self.classifier, self.texts, self.parts, self.plan = classifier, texts, parts, plan

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        space, process = self.parts.space, self.parts.process
        rows = self.plan.rows(step, micro, len(self.texts.data))
        draws = self.plan.draws(step, micro, self.texts.device)
        clean = space.normalise(self.texts(rows))
        labels = self.texts.data.split.labels
        assert labels is not None, "a classifier trains on labels"
        wanted = moved(torch.tensor([labels[row] for row in rows.tolist()]), self.texts.device)
        t, _ = draws.rows(process.draw_times(step, 1), "time")
        x0 = clean.x0
        if clean.mean is not None:
            x0 = clean.mean + sigma_0(space) * draws.normal("spread", *x0.shape[1:]) * clean.mask[..., None]
        level = level_at(process.train_schedule, t, x0)
        z_t = diffuse(x0, draws.normal("noise", *x0.shape[1:]), level)
        if self.parts.model.absorbing is not None:
            z_t = z_t + (1 - level.alpha) * self.parts.model.absorbing.detach()
        time = time_value(process.train_schedule, t, process.time_input)
        logits = self.classifier(z_t, time, clean.mask if space.masked else None).float()
        right = (logits.argmax(-1) == wanted).float()
        quarter = (4 * t).ceil().clamp(1, 4)
        # times are stratified: a quarter of the batch lies in each quarter of the range
        by_quarter = {f"accuracy_q{q}": 4 * right * (quarter == q) for q in (1, 2, 3, 4)}
        return F.cross_entropy(logits, wanted, reduction="none"), {"accuracy": right, **by_quarter}


def sigma_0(space: nn.Module) -> float:
    """Noise that x0 carries around its embedding."""
    return getattr(space.space, "sigma_0", 0.0)
