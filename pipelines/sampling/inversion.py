"""The noise of texts: DDIM inversion of clean latents."""

from __future__ import annotations

import torch

from diffusion.ddim_maps import invert_ddim
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.sdedit import ITERATIONS, check_invertible
from utils.records import Latents
from utils.train_eval import eval_mode


@torch.no_grad()
def invert(generator: TextGenerator, clean: Latents) -> Latents:
    """The noise (n, L, D) from which deterministic DDIM samples the clean latents (n, L, D), up to the error of the
    inversion.

    Source: Song et al. 2021, arXiv:2010.02502, section 5.4. UserError as ddim_inversion_path.
    """
    check_invertible(generator)
    schedule, times = generator.process.sampling_schedule, generator.process.grid(generator.steps)
    found = []
    with eval_mode(generator.denoiser):
        for first in range(0, len(clean), generator.batch_size):
            part = clean[first : first + generator.batch_size]
            mask = part.mask if generator.space.variable_length else None
            denoise = generator.make_denoise_fn(None, mask, full_batch=False)  # as the sampler calls it
            found.append(invert_ddim(denoise, schedule, times, part.x0, ITERATIONS))
    return Latents(torch.cat(found), clean.mask)
