"""Augmentation of latents by a trained denoiser, for the training of a decoder (--denoiser_run).

A decoder trained only on encoder latents is not robust to sampling errors. Here the latents of a text are noised to a
random step of the sampler and sampled from there. Near the last step the result is the text's own latents plus the
denoiser's errors; from the first step it does not depend on the text. The decoder learns to decode both.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace
from pipelines.sampling.generator import TextGenerator
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError
from utils.records import Latents
from utils.seeding import StepRNG, seeded_generator


class DenoiserAugmentation:
    """(x0, rng, mask) -> latents that a run's sampler makes from noised x0. Both (B, L, D), not normalized.

    mask: (B, L) bool, where texts have different numbers of latents: the result is 0 at padding. None: none has any.
    """

    def __init__(self, generator: TextGenerator, steps: int) -> None:
        """generator: generator of the run. steps: number of steps of its sampler from noise to data; each batch starts
        at a random one of them.
        """
        self.generator, self.times = generator, generator.process.grid(steps)
        generator.denoiser.eval()

    @torch.no_grad()
    def __call__(self, x0: Tensor, rng: StepRNG, mask: Tensor | None = None) -> Tensor:
        space, process = self.generator.space, self.generator.process
        steps = len(self.times) - 1
        # One start for the whole batch; drawn on the CPU, since the host needs the number of steps that follow.
        # Strings are part of the seed: renaming them would change all random numbers.
        start = seeded_generator(rng.seed, rng.step, "imagined_start")
        times = self.times[int(torch.randint(steps, (), generator=start)) :]

        def noise(step: int, like: Tensor) -> Tensor:
            return rng.normal(f"imagined_step_{step}", *like.shape[1:])

        level = process.sampling_schedule(times[0])  # on the CPU, as in a sampler
        valid = torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device) if mask is None else mask
        normalized = space.normalize(Latents(x0.detach().float(), valid)).x0
        z = level.alpha * normalized + level.sigma * rng.normal("imagined", *x0.shape[1:])
        denoise = self.generator.make_denoise_fn(None, mask if space.variable_length else None)
        made = space.denormalize(process.sampler(denoise, process.sampling_schedule, times, z, noise)).to(x0)
        return made if mask is None else made * mask[..., None]


def load_denoiser_augmentation(run: str, space: LatentSpace, steps: int, device: torch.device) -> DenoiserAugmentation:
    """Load the denoiser of a run folder, for a decoder of the latents of `space`, whatever frozen space that is.

    steps: steps of its sampler; a student of --distill_run has a fixed number. Raises UserError if the run needs
    sources or a class, or was trained on other latents.
    """
    pipeline = TextDiffusionPipeline.from_pretrained(Path(run), device=device.type)
    if pipeline.sources is not None:
        raise UserError(f"--denoiser_run {run} was trained with sources: name a run without sources")
    if not pipeline.has_null_class:
        raise UserError(
            f"--denoiser_run {run} cannot sample without a class: name a run that was trained with "
            "--class_unconditional_prob above 0, or without classes"
        )
    check_same_latents(pipeline.generator.space.space, space, run)
    return DenoiserAugmentation(pipeline.generator, pipeline.generator.steps if pipeline.is_student else steps)


def check_same_latents(run_space: LatentSpace, space: LatentSpace, run: str) -> None:
    """UserError unless a run diffuses in the latents of `space`; their decoders may differ."""
    if run_space.learned_with_denoiser:
        raise UserError(
            f"--denoiser_run {run} was trained on token embeddings, which are of that run alone: name a run of the "
            "latents that this decoder reads"
        )
    compressed = isinstance(space, CompressedSpace)
    if compressed and not isinstance(getattr(run_space, "space", run_space), CompressedSpace):
        raise UserError(f"--denoiser_run {run} was not trained on latents of an autoencoder: name a run that was")
    if run_space.encoding_fingerprint() == space.encoding_fingerprint():
        return
    if compressed:
        raise UserError(
            f"--denoiser_run {run} was trained on latents of another autoencoder: name a run of the one in --resume_dir"
        )
    raise UserError(
        f"--denoiser_run {run} was trained on other latents than this decoder reads (another encoder, pooling, scaling "
        "or longest text): name a run of the same ones"
    )
