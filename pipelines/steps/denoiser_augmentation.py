"""Latents as a trained denoiser would have them, for a decoder that is to read what diffusion writes.

A decoder that has only seen the latents of texts trusts every latent it is given, and those of a sample are never quite
right. Here the latents of a text are noised to some step of a sampler's way and sampled from there on: near the end
they are the text's own but for the denoiser's errors, from the start they know nothing of the text, and the decoder
learns to make the best of either.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from latent_models.spaces.compressed import CompressedSpace
from pipelines.sampling.generator import TextGenerator
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError
from utils.records import Latents
from utils.seeding import StepRNG, seeded_generator


class DenoiserAugmentation:
    """(x0, draws) -> what the sampler of a run makes of x0, both (B, L, D) and not normalised."""

    def __init__(self, generator: TextGenerator, steps: int) -> None:
        """generator: of the run. steps: of its sampler on the whole way, of which a batch walks a random rest."""
        self.generator, self.times = generator, generator.process.grid(steps)
        generator.denoiser.eval()

    @torch.no_grad()
    def __call__(self, x0: Tensor, draws: StepRNG) -> Tensor:
        space, process = self.generator.space, self.generator.process
        steps = len(self.times) - 1
        # drawn on the CPU, where the number of steps that follow is decided; one start for the whole batch
        drawn = seeded_generator(draws.seed, draws.step, "imagined_start")
        times = self.times[int(torch.randint(steps, (), generator=drawn)) :]

        def noise(step: int, like: Tensor) -> Tensor:
            return draws.normal(f"imagined_step_{step}", *like.shape[1:])

        level = process.sampling_schedule(times[0])  # on the CPU, as in a sampler
        inner = space.normalize(
            Latents(x0.detach().float(), torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device))
        ).x0
        z = level.alpha * inner + level.sigma * draws.normal("imagined", *x0.shape[1:])
        x = process.sampler(self.generator.make_denoise_fn(None, None), process.sampling_schedule, times, z, noise)
        return space.denormalize(x).to(x0)


def load_denoiser_augmentation(run: str, space: CompressedSpace, steps: int, device: torch.device) -> DenoiserAugmentation:
    """The denoiser of a run on latents of this very space. UserError where it is of other latents.

    steps: of its sampler; a student of --distill_run has its own.
    """
    pipeline = TextDiffusionPipeline.from_run(Path(run), device=device.type)
    if pipeline.sources is not None:
        raise UserError(f"--denoiser_run {run} was trained with sources, and here are none: name a run without")
    if not pipeline.has_null_class:
        raise UserError(f"--denoiser_run {run} never learned to do without a class: name one that did")
    known = pipeline.generator.space.space
    if not isinstance(known, CompressedSpace):
        raise UserError(f"--denoiser_run {run} diffuses no latents of an autoencoder: name a run that does")
    if known.encoding_fingerprint() != space.encoding_fingerprint():
        raise UserError(
            f"--denoiser_run {run} was trained on latents of another autoencoder: name a run of the one in --resume_dir"
        )
    return DenoiserAugmentation(pipeline.generator, pipeline.generator.steps if pipeline.is_student else steps)
