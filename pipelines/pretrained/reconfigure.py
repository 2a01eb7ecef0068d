"""Other sampling flags for a loaded run: its settings and its process as if it had been loaded with them."""

from __future__ import annotations

from copy import copy
from typing import Any

from pipelines.builders.diffusion_process import DiffusionProcess, make_process
from pipelines.cli import rules
from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.distillation_rules import inherit_teacher_flags
from pipelines.pretrained.arguments import REPLACES
from utils.cli.settings import Settings
from utils.errors import UserError

# The rules between sampling flags, in the order of the program.
_RULES = (
    inherit_teacher_flags, rules.reset_grid_shift, rules.resolve_schedule_flags, rules.resolve_respacing
)  # fmt: skip


def with_flags(settings: Settings[DiffusionConfig], **flags: Any) -> tuple[Settings[DiffusionConfig], DiffusionProcess]:
    """A copy of the settings with these sampling flags, and the process that they make.

    Values that belong to the previous value of a flag, such as eta to a sampler, go back to those of the run. UserError
    for values that the command line would refuse.
    """
    changed = copy(settings)
    changed.config, changed.origins = copy(settings.config), dict(settings.origins)
    for name in flags:
        for other in REPLACES.get(name, ()):
            default = settings.program.flags[other].default
            changed.set(other, settings.checkpoint_args.get(other, default), source="saved")
    for name, value in flags.items():
        changed.set(name, value, source="flag")
    for rule in _RULES:
        rule(changed)
    config = changed.config
    try:
        process = make_process(
            config.process,
            config.sampling,
            config.denoiser.denoiser_variant,
            changed.checkpoint_args.get("scale"),
            student=config.distillation.distill_run is not None,
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{', '.join(f'--{name} {value}' for name, value in flags.items())}: {error}") from error
    return changed, process
