"""The teacher of a distillation: a trained run that walks from one time of its student's grid to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.samplers import Sampler, make_sampler
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.context_encoder import DenoiserWithContext
from pipelines.load_run import load_run
from pipelines.builders.components import Components, make_generator
from pipelines.sampling.generator import TextGenerator
from utils.cli.settings import Settings
from utils.distributed import autocast
from utils.errors import UserError
from utils.pretrained import relative_path
from utils.records import Condition

TEACHER = "teacher_relative"  # fact of args.json


class Teacher:
    """(z, k, mask, condition, x0_prev) -> z at the end of the student's step k, by small steps of its own, no noise."""

    def __init__(
        self,
        generator: TextGenerator,
        walks: Sequence[Tensor],
        *,
        looks: bool,
        sampler: Sampler,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """generator: of the run, guided as the student will be. walks: for each of the student's steps falling times.

        looks: estimate twice at the start of a walk, so that a network with self-conditioning begins with an estimate.
        weights: of the run's DiffusionModel, which a new student begins with.
        """
        self.generator, self.walks, self.looks, self.sampler = generator, walks, looks, sampler
        self.weights = dict(weights or {})
        generator.denoiser.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(
        self, z: Tensor, k: int, mask: Tensor | None, condition: Condition | None, x0_prev: Tensor | None
    ) -> Tensor:
        """z: (B, L, D), where step k begins. x0_prev: what the student said at the step before; None: nothing yet."""
        denoise, times, first = self.generator.make_denoise_fn(condition, mask), self.walks[k], x0_prev
        if self.looks:
            first = denoise(z, torch.full((1,), float(times[0]), device=z.device, dtype=z.dtype), x0_prev)

        def begun(z: Tensor, t: Tensor, x0_prev: Tensor | None) -> Tensor:
            return denoise(z, t, first if x0_prev is None else x0_prev)

        return self.sampler(begun, self.generator.process.sampling_schedule, times, z)


def split_grid(times: Tensor, fine: Tensor) -> list[Tensor]:
    """For each pair of neighbouring times the two of them with what lies between in a finer grid."""
    ends = zip(times[:-1], times[1:], strict=True)
    return [torch.cat([t[None], fine[(fine < t - 1e-9) & (fine > s + 1e-9)], s[None]]) for t, s in ends]


def load_teacher(
    settings: Settings[DiffusionConfig], run: Path, grid: Callable[[int], Tensor], device: torch.device
) -> Teacher:
    """The run of --distill_run. run: the student's folder, which remembers where that one was. grid: steps -> times.

    UserError where it is gone, is of other latents than when the student began, or cannot be guided.
    """
    try:
        trained = load_run(
            find_teacher(settings, run),
            device=device.type,
            cls_free_guidance=settings.config.distillation.distill_guidance,
        )
    except UserError as error:
        raise UserError(str(error).replace("--cls_free_guidance", "--distill_guidance")) from error
    of_student, process = trained.settings.config.distillation.distill_run is not None, trained.parts.process
    # whatever it samples with by itself: student and teacher have to speak of the same noise
    trained.parts.process = replace(process, sampling_schedule=process.train_schedule)
    generator = make_generator(
        trained.settings, trained.parts, trained.device, autocast(trained.device, settings.config.loop.mixed_precision)
    )
    generator.denoiser = network_of(trained.parts)
    steps = settings.config.distillation.distill_steps
    return Teacher(
        generator,
        split_grid(grid(steps), grid(steps * settings.config.distillation.distill_substeps)),
        looks=trained.settings.config.denoiser.self_condition and not of_student,
        sampler=generator.process.sampler if of_student else make_sampler("dpmpp"),
        weights=trained.parts.model.state_dict(),
    )


def network_of(parts: Components) -> torch.nn.Module:
    """The denoiser of a run, with what reads its sources where that trains along."""
    context = parts.context
    return (
        DenoiserWithContext(parts.model.denoiser, context.states)
        if context and context.trained
        else parts.model.denoiser
    )


def find_teacher(settings: Settings[DiffusionConfig], run: Path) -> Path:
    """Where the teacher is now: as given, else relative to the student's folder."""
    given, recorded = Path(settings.config.distillation.distill_run), settings.checkpoint_args.get(TEACHER)
    if (given / "args.json").is_file() or recorded is None or "distill_run" in settings.explicit:
        return given
    if not (run / recorded / "args.json").is_file():
        raise UserError(f"the teacher of {run}, {given}, is gone: say with --distill_run where it is now")
    return run / recorded


def teacher_facts(settings: Settings[DiffusionConfig], run: Path) -> dict[str, str | None]:
    """What args.json of a student keeps."""
    return (
        {}
        if settings.config.distillation.distill_run is None
        else {TEACHER: relative_path(str(find_teacher(settings, run)), run)}
    )
