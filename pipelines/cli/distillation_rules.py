"""Distillation on the command line: a student inherits its teacher's flags and samples in its own steps.

Each flag declares which of them it follows (`student` of utils.cli.flags.Flag).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.cli.configs import DiffusionConfig
from utils.cli.args_io import read_args, saved_flags
from utils.cli.flags import format_value
from utils.cli.settings import Settings
from utils.errors import UserError


def inherit_teacher_flags(settings: Settings[DiffusionConfig]) -> None:
    """The first rule. A new student gets its teacher's flags; a trained one keeps the steps that it was trained for."""
    options = settings.config.distillation
    if options.distill_run is None:
        return
    guidance = settings.config.sampling.cls_free_guidance
    if options.distill_guidance != 1 and guidance != 1:
        raise UserError(
            f"--cls_free_guidance {guidance:g}: a student's weights already contain the teacher's guidance of "
            f"--distill_guidance {options.distill_guidance:g}: leave it out"
        )
    if settings.checkpoint_args:
        _check_student_flags(settings)
        return
    teacher = Path(options.distill_run)
    saved = read_args(teacher)
    if saved.get("program") != settings.program.name:
        raise UserError(f"--distill_run {teacher} is not a run of {settings.program.name}: name one that is")
    for name in _names(settings, "sampling"):
        if name in settings.explicit:
            raise UserError(
                f"--{name} has no effect on a student of --distill_run: it samples in its --distill_steps; leave it out"
            )
    if settings.config.intervals.init_path is not None:
        raise UserError("--init_path and --distill_run both choose the weights to start from: give one")
    _inherit(settings, saved, teacher)
    if settings.config.process.objective == "pred_noise":
        # noise says nothing of a text at t = 1, where each sample of a student begins: there it predicts x0, and its
        # errors are those of v, so that no step of it has a vanishing loss
        settings.set("objective", "pred_noise_x0")
        if settings.config.process.loss_weighting == "none" and "loss_weighting" not in settings.explicit:
            settings.set("loss_weighting", "v")
    if settings.config.denoiser.learned_variance:
        raise UserError(
            f"--distill_run {teacher} learned the variance of ancestral steps, which a student does not take: name a "
            "run without --learned_variance"
        )
    settings.checkpoint_args = saved  # the parts are found and checked as those of the teacher's run
    settings.set("sampler", "ddim")
    settings.set("ddim_sampling_eta", 0.0)
    settings.set("sampling_timesteps", options.distill_steps)
    if saved.get("distill_run") is not None:
        _distill_student(settings, saved, teacher)


def _names(settings: Settings[DiffusionConfig], *student: str) -> list[str]:
    return [name for name, flag in settings.program.flags.items() if flag.student in student]


def _inherit(settings: Settings[DiffusionConfig], saved: dict[str, Any], teacher: Path) -> None:
    for name in _names(settings, "unused"):
        if name in settings.explicit:
            raise UserError(
                f"--{name} chooses timesteps of training, and --distill_steps sets those of a student: leave it out"
            )
    known = saved_flags(settings.program, saved, teacher)
    other_corpus = bool({"dataset_name", "train_file"} & settings.explicit)
    for name in _names(settings, "inherits", "may_differ"):
        if name not in known:
            continue
        if name in settings.explicit:
            if settings.program.flags[name].student == "inherits" and settings.get(name) != known[name]:
                raise UserError(
                    f"--{name} {format_value(settings.get(name))} differs from {format_value(known[name])}, with which "
                    f"{teacher} was trained: a student has its teacher's layout; leave it out"
                )
        elif not (other_corpus and settings.program.group_of[name] == "data"):
            settings.set(name, known[name], source="saved")
    for name in ("autoencoder", "text_decoder"):  # the student's run folder gets a separate copy
        if (teacher / name / "args.json").is_file():
            settings.set("latent_model_path", str(teacher / name), source="saved")


def _distill_student(settings: Settings[DiffusionConfig], saved: dict[str, Any], teacher: Path) -> None:
    """A student's student: each of its steps spans several of its teacher's steps."""
    steps, teacher_steps = settings.config.distillation.distill_steps, saved["sampling_timesteps"]
    if teacher_steps % steps or teacher_steps == steps:
        raise UserError(
            f"--distill_steps {steps}: {teacher} is a student of {teacher_steps} steps, and each step of its own "
            f"student spans a whole number of them: give a smaller divisor of {teacher_steps}"
        )
    for name in _names(settings, "grid"):
        if name in settings.explicit and settings.get(name) != saved[name]:
            raise UserError(
                f"--{name}: {teacher} is a student, and its own student has the same time grid: leave it out"
            )
        settings.set(name, saved[name], source="saved")
    if "distill_guidance" in settings.explicit and settings.config.distillation.distill_guidance != 1:
        raise UserError(f"--distill_guidance: {teacher} is a student whose weights contain its guidance: leave it out")
    settings.set("distill_substeps", teacher_steps // steps)


def _check_student_flags(settings: Settings[DiffusionConfig]) -> None:
    options = settings.config.distillation
    for name in ("clamp", "rejection_rate"):
        if name in settings.explicit and settings.get(name):
            raise UserError(
                f"--{name} rounds each estimate of x0, and those of a student are estimates at its last step only: "
                f"leave it out, or sample from its teacher, {options.distill_run}"
            )
    for name in (*_names(settings, "sampling", "grid"), "scale"):
        if name in settings.explicit and settings.get(name) != settings.checkpoint_args.get(name):
            raise UserError(
                f"--{name}: this run is a student that was trained for {options.distill_steps} steps only: leave it "
                f"out, or sample from its teacher, {options.distill_run}"
            )
