"""Joint training on the command line: --joint_run gives a new run the layout, latents, corpus and sampler of a run."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli.configs import DiffusionConfig
from utils.cli.args_io import read_args, saved_flags
from utils.cli.flags import format_value
from utils.cli.settings import Settings
from utils.errors import UserError

FREE = ("sampling", "clamp")  # groups that are inherited, too, and may differ from those of the run


def inherit_joint_flags(settings: Settings[DiffusionConfig]) -> None:
    """A rule. A new run gets the flags of its --joint_run; those that determine its layout may not differ."""
    options = settings.config.joint
    if options.joint_run is None:
        return
    if settings.config.distillation.distill_run is not None:
        raise UserError("--joint_run and --distill_run both choose the weights to start from: give one")
    if settings.config.intervals.init_path is not None:
        raise UserError("--joint_run and --init_path both choose the weights to start from: give one")
    if not settings.checkpoint_args:
        _inherit(settings, Path(options.joint_run))
    if settings.config.context.train_context_encoder:
        raise UserError(
            "--joint_run trains an autoencoder, and --train_context_encoder an encoder of sources: give one"
        )


def _inherit(settings: Settings[DiffusionConfig], run: Path) -> None:
    saved, program = read_args(run), settings.program
    if saved.get("program") != program.name:
        raise UserError(f"--joint_run {run} is not a run of {program.name}: name one that is")
    if (run / "text_decoder" / "args.json").is_file():
        raise UserError(
            f"--joint_run {run}: a --decoder_model decodes its latents, and was trained on them as they are: "
            "name a run whose --latent_model_path is an autoencoder of train_latent_model.py"
        )
    if not (run / "autoencoder" / "args.json").is_file():
        raise UserError(
            f"--joint_run {run} does not diffuse latents of an autoencoder: name a run with --latent_space compressed"
        )
    if saved.get("distill_run") is not None:
        raise UserError(f"--joint_run {run} is a student, which samples in its own steps: name its teacher")
    known = saved_flags(program, saved, run)
    other_corpus = bool({"dataset_name", "train_file"} & settings.explicit)
    for name, value in known.items():
        group, fixed = program.group_of[name], program.flags[name].student == "inherits"
        if group not in FREE and program.flags[name].student is None:
            continue
        if name not in settings.explicit:
            if not (other_corpus and group == "data"):
                settings.set(name, value, source="saved")
        elif fixed and group not in FREE and settings.get(name) != value:
            raise UserError(
                f"--{name} {format_value(settings.get(name))} differs from {format_value(value)}, with which {run} was "
                "trained: joint training goes on from its weights; leave it out"
            )
    settings.set("latent_model_path", str(run / "autoencoder"), source="saved")
