"""The training step of a classifier of noised latents: latents, noised as for the denoiser, to a cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.absorbing import AbsorbingNoise
from diffusion.denoisers import get_time_input
from diffusion.loss import corrupt
from diffusion.schedules import broadcast_level
from pipelines.components import Components
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.cached_latents import EncodedSplit
from pipelines.steps.describe import describe_rows, describe_times
from pipelines.steps.diffusion import QUARTERS, split_by_quarter
from utils.records import to_device

METRICS = ("accuracy", *(f"accuracy_q{q}" for q in QUARTERS))


class ClassifierStep:
    """(step, micro) -> losses (B,) in nats, and values (B,) to log: accuracy, also by quarter of the noise range (q0 is
    the cleanest).

    All noise levels have the same weight, the clean end included, since guidance uses the classifier at every level.
    """

    def __init__(
        self, classifier: nn.Module, texts: EncodedSplit, components: Components, batch_sampler: BatchSampler
    ) -> None:
        self.classifier, self.texts, self.components, self.batch_sampler = classifier, texts, components, batch_sampler

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        texts = describe_rows(self.batch_sampler, len(self.texts.tokens), step, micro, positions)
        draw = self.components.process.make_time_sampler(step, 1)
        return f"{texts}; {describe_times(self.batch_sampler, draw, step, micro, positions, self.texts.device)}"

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        space, process = self.components.space, self.components.process
        rows = self.batch_sampler.rows(step, micro, len(self.texts.tokens))
        draws = self.batch_sampler.rng(step, micro, self.texts.device)
        clean = space.normalize(self.texts(rows))
        all_labels = self.texts.tokens.split.labels
        assert all_labels is not None, "the corpus has no labels"
        labels = to_device(torch.tensor([all_labels[row] for row in rows.tolist()]), self.texts.device)
        t, _ = draws.sample_global(process.make_time_sampler(step, 1), "time")
        x0 = clean.x0
        if clean.mean is not None:
            # "spread" is part of the seed: renaming it would change the noise
            x0 = clean.mean + sigma_0(space) * draws.normal("spread", *x0.shape[1:]) * clean.mask[..., None]
        level = broadcast_level(process.train_schedule, t, x0)
        state = self.components.model.absorbing
        absorbing = None if state is None else AbsorbingNoise.of(state.detach())
        z_t = corrupt(x0, draws.normal("noise", *x0.shape[1:]), level, absorbing)
        time = get_time_input(process.train_schedule, t, process.time_input)
        logits = self.classifier(z_t, time, clean.mask if space.variable_length else None).float()
        correct = (logits.argmax(-1) == labels).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses, {"accuracy": correct, **split_by_quarter("accuracy", correct, t, 1.0)}


def sigma_0(space: nn.Module) -> float:
    """Standard deviation of x0 around its embedding."""
    return getattr(space.space, "sigma_0", 0.0)
