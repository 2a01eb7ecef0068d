"""Augmentation of latents by a trained denoiser, for the training of a decoder (--denoiser_run).

A decoder trained only on encoder latents is not robust to sampling errors. Here the latents of a text are noised to a
random step of the sampler and sampled from there. Near the last step the result is the text's own latents plus the
denoiser's errors; from the first step it does not depend on the text. The decoder learns to decode both. A run with
sources or classes gets those of the text, as it does when it samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset_utils.corpus import Corpus
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace
from pipelines.sampling.classes import canonical_names
from pipelines.sampling.generator import TextGenerator
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError
from utils.pretrained import WeightsRead
from utils.records import Condition, Latents
from utils.seeding import StepRNG, seeded_generator

Conditions = Callable[[Tensor], Condition]  # rows (B,) of the training split -> their sources and classes


class DenoiserAugmentation:
    """(x0, rng, mask, rows) -> latents that a run's sampler makes from noised x0. Both (B, L, D), not normalized.

    mask: (B, L) bool, where texts have different numbers of latents: the result is 0 at padding. None: none has any.
    rows: (B,), the texts by number; only a run with conditions needs them.
    """

    def __init__(
        self,
        generator: TextGenerator,
        steps: int,
        conditions: Conditions | None = None,
        weights_read: WeightsRead | None = None,
    ) -> None:
        """generator: generator of the run. steps: number of steps of its sampler from noise to data; each batch starts
        at a random one of them. conditions: of the texts; None: the denoiser gets none. weights_read: the checkpoint of
        the run.
        """
        self.generator, self.times, self.conditions = generator, generator.process.grid(steps), conditions
        self.weights_read = weights_read
        generator.denoiser.eval()

    @torch.no_grad()
    def __call__(self, x0: Tensor, rng: StepRNG, mask: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
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
        condition = None
        if self.conditions is not None:
            assert rows is not None, "the sources and classes of unnamed texts"
            condition = self.conditions(rows)
        denoise = self.generator.make_denoise_fn(condition, mask if space.variable_length else None)
        made = space.denormalize(process.sampler(denoise, process.sampling_schedule, times, z, noise)).to(x0)
        return made if mask is None else made * mask[..., None]


def load_denoiser_augmentation(
    run: str,
    space: LatentSpace,
    steps: int,
    device: torch.device,
    corpus: Corpus | None = None,
    checkpoint: str | None = None,
) -> DenoiserAugmentation:
    """Load the denoiser of a run folder, for a decoder of the latents of `space`, whatever frozen space that is.

    steps: steps of its sampler; a student of --distill_run has a fixed number. corpus: whose training texts the decoder
    learns from, for a run with sources or classes. checkpoint: best or newest. Raises UserError if the corpus
    lacks the sources or classes without which the run cannot sample, or if the run was trained on other latents.
    """
    given: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
    pipeline = TextDiffusionPipeline.from_pretrained(Path(run), device=device.type, **given)
    check_same_latents(pipeline.generator.space.space, space, run)
    conditions = conditions_of(pipeline, corpus, run)
    steps = pipeline.generator.steps if pipeline.is_student else steps
    return DenoiserAugmentation(pipeline.generator, steps, conditions, pipeline.run.weights)


def conditions_of(pipeline: TextDiffusionPipeline, corpus: Corpus | None, run: str) -> Conditions | None:
    """The sources and classes of training texts, as the run takes them; None for a run, or texts, without conditions.

    UserError if there are none although the run cannot sample without them.
    """
    sources = None if corpus is None else corpus.train.sources
    labels = None if corpus is None or not pipeline.class_names else _labels(pipeline, corpus, run)
    if pipeline.sources is not None and sources is None:
        raise UserError(
            f"--denoiser_run {run} was trained with sources, and these texts have none: name a corpus of pairs, or a "
            "run without sources"
        )
    if labels is None and not pipeline.has_null_class:
        raise UserError(
            f"--denoiser_run {run} cannot sample without a class: name a corpus with its classes, or a run that was "
            "trained with --class_unconditional_prob above 0, or without classes"
        )
    takes, device = pipeline.sources, pipeline.generator.device
    if takes is None and labels is None:
        return None

    def conditions(rows: Tensor) -> Condition:
        chosen = rows.tolist()
        classes = None if labels is None else labels[rows.to(labels.device)].to(device)
        if takes is None or sources is None:
            return Condition.of(class_id=classes)
        made = takes.make_inputs([sources[i] for i in chosen], 0, classes)(0, len(chosen)).condition
        assert made is not None
        return made

    return conditions


def _labels(pipeline: TextDiffusionPipeline, corpus: Corpus, run: str) -> Tensor | None:
    """The class of each training text, by the numbers of the run; None where the corpus has other classes or none."""
    names = canonical_names(pipeline.class_names)
    if corpus.train.labels is None or not set(corpus.class_names) <= set(names):
        if pipeline.has_null_class:
            print(
                f"note: --denoiser_run {run} was trained on the classes {', '.join(pipeline.class_names)}, which these "
                "texts lack: it samples without a class",
                file=sys.stderr,
            )
        return None
    number = torch.tensor([names.index(name) for name in corpus.class_names])
    return number[torch.tensor(corpus.train.labels)]


def check_same_latents(run_space: LatentSpace, space: LatentSpace, run: str) -> None:
    """UserError unless a run diffuses in the latents of `space`; their decoders may differ."""
    if run_space.learned_with_denoiser and not isinstance(run_space, CompressedSpace):  # not one of --joint_run
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
