"""The teacher of a distillation: a trained run that samples from one time of its student's grid to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.guidance import with_known_positions
from diffusion.samplers import Sampler, make_sampler
from diffusion.schedules import Schedule, broadcast_level, num_timesteps
from pipelines.best_checkpoint import given_checkpoint
from pipelines.cli.configs import DiffusionConfig
from pipelines.components import Components, make_generator
from pipelines.data.context_encoder import DenoiserWithContext
from pipelines.load_run import load_run
from pipelines.sampling.generator import TextGenerator
from utils.cli.settings import Settings
from utils.distributed import autocast, keep_casts
from utils.errors import UserError
from utils.pretrained import WeightsRead, relative_path
from utils.records import Condition, KnownPositions

TEACHER = "teacher_relative"  # entry of args.json


class Teacher:
    """(z, k, mask, condition, x0_prev) -> z at the end of the student's step k, by smaller, deterministic steps."""

    def __init__(
        self,
        generator: TextGenerator,
        sub_grids: Sequence[Tensor],
        *,
        extra_estimate: bool,
        sampler: Sampler,
        weights: Mapping[str, Tensor] | None = None,
        weights_read: WeightsRead | None = None,
    ) -> None:
        """generator: generator of the teacher's run, with the guidance that the student learns.
        sub_grids: falling times of the teacher for each step of the student.
        extra_estimate: do one more forward pass at the first time, to initialize self-conditioning.
        sampler: a deterministic sampler, called once for each step of the student.
        weights: weights of the run's DiffusionModel, from which a new student starts.
        weights_read: the checkpoint that holds them.
        """
        self.generator, self.sub_grids, self.sampler = generator, sub_grids, sampler
        self.extra_estimate = extra_estimate
        self.weights = dict(weights or {})
        self.weights_read = weights_read
        generator.denoiser.eval()

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        k: int,
        mask: Tensor | None,
        condition: Condition | None,
        x0_prev: Tensor | None,
        known: KnownPositions | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """z: (B, L, D), at the start of step k. x0_prev: the student's estimate at step k - 1; None at the first.

        known: positions that stay clean. shift: (B, L, D), towards an absorbing state; z is alpha x0 + sigma eps all
        the same, without it.
        """
        denoise = self.generator.make_denoise_fn(condition, mask, shift, known=known)
        if known is not None:
            denoise = with_known_positions(denoise, known.value, known.mask)
        if shift is not None:
            denoise = with_shifted_input(denoise, self.generator.process.sampling_schedule, shift)
        times, first = self.sub_grids[k], x0_prev

        def with_initial_estimate(z: Tensor, t: Tensor, x0_prev: Tensor | None) -> Tensor:
            return denoise(z, t, first if x0_prev is None else x0_prev)

        with keep_casts(self.generator.denoiser, self.generator.autocast, z.device):
            if self.extra_estimate:
                time = torch.full((1,), float(times[0]), device=z.device, dtype=z.dtype)
                first = denoise(z, time, x0_prev)
            return self.sampler(with_initial_estimate, self.generator.process.sampling_schedule, times, z)


def with_shifted_input(denoise: Denoise, schedule: Schedule, shift: Tensor) -> Denoise:
    """A Denoise of z = alpha x0 + sigma eps, given one of the z that an absorbing state shifts (diffusion/absorbing).

    The steps of a sampler are the same in both coordinates.
    """

    def shifted(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        level = broadcast_level(schedule, t, z)
        return denoise(z + (1 - level.alpha).to(z) * shift, t, x0_prev)

    return shifted


def informed_start(schedule: Schedule, first: float, second: float) -> float:
    """The time at which a teacher that predicts noise begins, for a student that begins at pure noise.

    Its x0 is its noise over alpha, which is nearly 0 at t = 1: an error of the noise would be up to a thousand times as
    large in the next z. At the time with a quarter of the signal of the next one it is at most four times as large, and
    z still is noise but for that quarter. first, second: the first times of the teacher. Returns `first` if there is
    no such time between them.
    """
    wanted = float(schedule(torch.tensor(second, dtype=torch.float64)).alpha) / 4
    chain, between = num_timesteps(schedule), 1000
    grid = torch.arange(1, chain) / chain if chain else torch.linspace(second, first, between)[1:-1]
    times = grid[(grid > second + 1e-9) & (grid < first - 1e-9)].double()
    enough = times[schedule(times).alpha >= wanted]
    return float(enough.max()) if len(enough) else first


def split_grid(times: Tensor, fine: Tensor) -> list[Tensor]:
    """For each pair of neighboring times: both of them, and the times of a finer grid between them."""
    ends = zip(times[:-1], times[1:], strict=True)
    return [torch.cat([t[None], fine[(fine < t - 1e-9) & (fine > s + 1e-9)], s[None]]) for t, s in ends]


def load_teacher(
    settings: Settings[DiffusionConfig], run: Path, grid: Callable[[int], Tensor], device: torch.device
) -> Teacher:
    """Load the run of --distill_run.

    run: the student's folder, which records a relative path to the teacher. grid: steps -> times.
    UserError if the teacher is missing, its latents have changed since the student started, or it cannot be guided.
    """
    try:
        trained = load_run(
            find_teacher(settings, run),
            device=device.type,
            cls_free_guidance=settings.config.distillation.distill_guidance,
            mixed_precision=settings.config.loop.mixed_precision or "no",  # that of the student
            **given_checkpoint(settings, "distill_run"),
        )
    except UserError as error:
        raise UserError(str(error).replace("--cls_free_guidance", "--distill_guidance")) from error
    of_student, process = trained.settings.config.distillation.distill_run is not None, trained.components.process
    # the training schedule, so that teacher and student use the same noise levels
    trained.components.process = replace(process, sampling_schedule=process.train_schedule)
    generator = make_generator(
        trained.settings,
        trained.components,
        trained.device,
        autocast(trained.device, trained.settings.config.loop.mixed_precision),
    )
    generator.denoiser = network_of(trained.components)
    steps = settings.config.distillation.distill_steps
    sub_grids = split_grid(grid(steps), grid(steps * settings.config.distillation.distill_substeps))
    if process.options.objective == "pred_noise":
        begin = informed_start(process.train_schedule, float(sub_grids[0][0]), float(sub_grids[0][1]))
        sub_grids[0] = torch.cat([sub_grids[0].new_tensor([begin]), sub_grids[0][1:]])
    return Teacher(
        generator,
        sub_grids,
        extra_estimate=trained.settings.config.denoiser.self_condition and not of_student,
        sampler=generator.process.sampler if of_student else make_sampler("dpmpp"),
        weights=trained.components.model.state_dict(),
        weights_read=trained.weights,
    )


def network_of(components: Components) -> torch.nn.Module:
    """The denoiser of a run, with the context encoder if it is trained, too."""
    context = components.context
    return (
        DenoiserWithContext(components.model.denoiser, context.states)
        if context and context.trained
        else components.model.denoiser
    )


def find_teacher(settings: Settings[DiffusionConfig], run: Path) -> Path:
    """The folder of the teacher: --distill_run, else the path relative to the student's folder."""
    folder, recorded = settings.path("distill_run"), settings.checkpoint_args.get(TEACHER)
    if (folder / "args.json").is_file() or recorded is None or "distill_run" in settings.explicit:
        return folder
    if not (run / recorded / "args.json").is_file():
        raise UserError(f"the teacher of {run}, {folder}, was not found: pass its folder as --distill_run")
    return run / recorded


def teacher_facts(settings: Settings[DiffusionConfig], run: Path) -> dict[str, str | None]:
    """Entries of args.json of a student."""
    return (
        {}
        if settings.config.distillation.distill_run is None
        else {TEACHER: relative_path(str(find_teacher(settings, run)), run)}
    )
