"""Texts and minutes to a model that writes such texts: the whole method in one command.

    python -m pipelines.recipe --train_file captions.txt --minutes 60 --output_dir runs/captions

It looks at the texts and at the machine, and chooses the latent space, the networks and the length of each stage so
that all of them fit into the minutes; a table states each choice with its reason, and a flag replaces it. Then it
trains, evaluates and writes report.html. The same command again goes on where an interrupted one ended.

With a pretrained language model and a sentence encoder (unpacked by python -m latent_models.pretrained, or named here)
latents are sentence embeddings, and the language model writes texts from them. Without, everything is trained on the
texts. docs/real-text.md describes all ways, the choices, and how to read the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from pipelines.recipe import first_choices, plan
from pipelines.recipe.arguments import check_arguments, parser, unused
from pipelines.recipe.evaluation import evaluate
from pipelines.recipe.folder import RECORD, RecipeFolder, log
from pipelines.recipe.lengths import fix_length, show_length
from pipelines.recipe.models import check_judges
from pipelines.recipe.plan import Steps
from pipelines.recipe.reuse import OtherRecipe
from pipelines.recipe.stages import (
    FOLLOWS,
    STAGE_ROWS,
    check_own_flags,
    check_stage_flags,
    make_stage,
    notes,
    shown_command,
    steps_of_record,
)
from pipelines.stages import run_stage
from utils.errors import UserError, exit_on_user_error
from utils.locks import release
from utils.terminal import aligned


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser(__doc__).parse_args(argv)
    check_arguments(args)
    try:
        folder = RecipeFolder(args)
        return run(folder, None if args.reuse is None else OtherRecipe(args.reuse))
    finally:
        release(args.output_dir)


def run(folder: RecipeFolder, other: OtherRecipe | None) -> int:
    """Choose, train what is missing, and evaluate. other: a folder whose first stages are taken over. Returns the code
    of the program that failed, or 0.
    """
    args = folder.args
    if folder.root.is_dir():
        folder.claim()
    if folder.state:
        log(f"{folder.root / RECORD}: the choices were made before; it goes on")
    else:
        began = time.monotonic()
        first_choices.choose(folder, other)
        folder.clock.count("choices", time.monotonic() - began)  # saved below: refused choices take no time
    _show_choices(folder)
    _check_stages(folder)
    _show_stages(folder)
    if args.dry_run:
        return 0
    folder.write()
    folder.clock.save()
    if other is not None:
        _take_over(folder, other)
    for name in folder.stages:
        code = _run_stage(folder, name)
        if code:
            return code
    _use_adapted_decoder(folder)
    return 0 if args.no_evaluation else evaluate(folder)


# ---- what is shown and checked before the first stage ------------------------------------------------------------


def _show_choices(folder: RecipeFolder) -> None:
    table = [["choice", "value", "reason"], *plan.rows(folder.choices)]
    for name, seconds in folder.times().items():
        table.append([f"time of {name}", f"{seconds / 60:.1f} min", STAGE_ROWS[name].title])
    print(f"\n== the choices for {folder.args.minutes:g} minutes (a flag of that name replaces one)")
    print(aligned(table), flush=True)


def _check_stages(folder: RecipeFolder) -> None:
    """UserError for a flag that the program of any stage does not know: the last one begins after most minutes."""
    from pipelines.recipe.checks import rules_without_folders
    from utils.cli.parse import check_flags

    check_stage_flags(folder.given, folder.stages)
    if not folder.args.no_evaluation:
        check_judges(vars(folder.args))
    setting = folder.setting
    for name in sorted(folder.stages, key=lambda name: name != "decoder"):  # flags of others follow from it
        steps = Steps(2, setting.batch_size(name), 0, 0.999, 0.0, 0.0)
        try:
            stage = make_stage(name, setting, steps)
            check_flags(stage.program, stage.argv(folder.root), rules_without_folders(stage.program))
        except UserError as error:
            raise UserError(f"the {name} stage would end at once: {error}") from None
        check_own_flags(name, setting)


def _show_stages(folder: RecipeFolder) -> None:
    """The command of every stage, in which some choices stand that are no row of the table."""
    for name in folder.stages:
        record = folder.state["stages"].get(name)
        steps = None if record is None else steps_of_record(record)
        print(f"flags of {name}: {shown_command(name, folder.setting, folder.root, steps)}")
    print(f"({FOLLOWS}: by the rate that a probe of the stage tells, which may also halve its batch)")
    setting = folder.setting
    for line in [*notes(setting), *unused(folder.given, folder.choices, folder.stages, setting.parts)]:
        print(f"note: {line}")
    print(end="", flush=True)


# ---- the stages --------------------------------------------------------------------------------------------------


def _take_over(folder: RecipeFolder, other: OtherRecipe) -> None:
    """Take over the first stages of --reuse, as long as they are the same; their time counts as spent."""
    for name in folder.stages:
        if name in folder.state["stages"]:
            continue
        why = other.difference(name, folder.setting, folder.args.minutes)
        if why is not None:
            log(f"{name}: is trained here, since {why}")
            return
        record, seconds = other.take(name, folder.root)
        for part, spent in seconds.items():
            folder.clock.add(part, spent)
        folder.state["stages"][name] = record
        folder.write()
        log(f"{name}: taken over from {other.folder}")


def _run_stage(folder: RecipeFolder, name: str) -> int:
    record = folder.state["stages"].get(name)
    if record is not None and "done" in record:
        log(f"{name}: already done ({record['done']['step']:,} of {record['steps']:,} steps)")
        return 0
    if record is None:
        record = folder.clock.time(f"probe of {name}", partial(fix_length, folder, name))
        folder.state["stages"][name] = record
        folder.write()
    folder.begin(name)
    steps = steps_of_record(record)
    stage = make_stage(name, folder.setting, steps)
    limit = max(1.0, record["max_seconds"] - folder.spent(name))
    show_length(folder, name, steps)
    code: int = folder.clock.time(name, partial(run_stage, stage, folder.root, ["--max_seconds", f"{limit:.0f}"]))
    if code:
        return code
    from utils import checkpoints

    newest = checkpoints.newest(folder.root / name) or {}
    record["done"] = {"step": newest.get("step", 0)}
    folder.write()
    if record["done"]["step"] < record["steps"]:
        log(f"note: {name} ended by its time after {record['done']['step']:,} of {record['steps']:,} steps")
    return 0


def _use_adapted_decoder(folder: RecipeFolder) -> None:
    """Let samples be decoded by the adapted decoder, where there is one, in every program."""
    record = folder.state["stages"].get("adapted")
    if record is None or "used_by" in record:
        return
    from pipelines.builders.adapted import use_adapted_decoder

    denoiser = folder.setting.denoiser
    use_adapted_decoder(folder.root / denoiser, folder.root / "adapted")
    record["used_by"] = denoiser
    folder.write()
    log(f"{denoiser}: its samples are decoded by the adapted decoder from now on")


if __name__ == "__main__":
    raise SystemExit(main())
