"""Augmentation of latents by a trained denoiser, for the training of a decoder (--denoiser_run).

A decoder trained only on encoder latents is not robust to sampling errors. Here the latents of a text are noised to a
random step of the sampler and sampled from there. Near the last step the result is the text's own latents plus the
denoiser's errors; from the first step it does not depend on the text. The decoder learns to decode both.
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
    """(x0, rng) -> latents that a run's sampler makes from noised x0. Both (B, L, D), not normalized."""

    def __init__(self, generator: TextGenerator, steps: int) -> None:
        """generator: generator of the run. steps: number of steps of its sampler from noise to data; each batch starts
        at a random one of them.
        """
        self.generator, self.times = generator, generator.process.grid(steps)
        generator.denoiser.eval()

    @torch.no_grad()
    def __call__(self, x0: Tensor, rng: StepRNG) -> Tensor:
        space, process = self.generator.space, self.generator.process
        steps = len(self.times) - 1
        # One start for the whole batch; drawn on the CPU, since the host needs the number of steps that follow.
        # Strings are part of the seed: renaming them would change all random numbers.
        start = seeded_generator(rng.seed, rng.step, "imagined_start")
        times = self.times[int(torch.randint(steps, (), generator=start)) :]

        def noise(step: int, like: Tensor) -> Tensor:
            return rng.normal(f"imagined_step_{step}", *like.shape[1:])

        level = process.sampling_schedule(times[0])  # on the CPU, as in a sampler
        mask = torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device)
        normalized = space.normalize(Latents(x0.detach().float(), mask)).x0
        z = level.alpha * normalized + level.sigma * rng.normal("imagined", *x0.shape[1:])
        x = process.sampler(self.generator.make_denoise_fn(None, None), process.sampling_schedule, times, z, noise)
        return space.denormalize(x).to(x0)


def load_denoiser_augmentation(
    run: str, space: CompressedSpace, steps: int, device: torch.device
) -> DenoiserAugmentation:
    """Load the denoiser of a run folder. steps: steps of its sampler; a student of --distill_run has a fixed number.

    Raises UserError if the run needs sources or a class, or was trained on latents of another autoencoder.
    """
    pipeline = TextDiffusionPipeline.from_pretrained(Path(run), device=device.type)
    if pipeline.sources is not None:
        raise UserError(f"--denoiser_run {run} was trained with sources: name a run without sources")
    if not pipeline.has_null_class:
        raise UserError(
            f"--denoiser_run {run} cannot sample without a class: name a run that was trained with "
            "--class_unconditional_prob above 0, or without classes"
        )
    run_space = pipeline.generator.space.space
    if not isinstance(run_space, CompressedSpace):
        raise UserError(f"--denoiser_run {run} was not trained on latents of an autoencoder: name a run that was")
    if run_space.encoding_fingerprint() != space.encoding_fingerprint():
        raise UserError(
            f"--denoiser_run {run} was trained on latents of another autoencoder: name a run of the one in --resume_dir"
        )
    return DenoiserAugmentation(pipeline.generator, pipeline.generator.steps if pipeline.is_student else steps)
