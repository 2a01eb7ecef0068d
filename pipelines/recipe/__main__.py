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

import json
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.recipe import plan
from pipelines.recipe.arguments import CORPUS_FLAGS, check_arguments, parser, typed_choices, unused
from pipelines.recipe.models import (
    check_adapters,
    check_judges,
    encoding_speed,
    find_judges,
    find_models,
    parts_that_judge,
)
from pipelines.recipe.plan import Choices, Machine, Steps
from pipelines.recipe.reuse import OtherRecipe
from pipelines.recipe.stages import (
    FOLLOWS,
    NO_SCORER,
    STAGE_ROWS,
    Setting,
    check_stage_flags,
    choices_of_record,
    evaluation_flags,
    make_stage,
    notes,
    setting_of_record,
    shown_command,
    steps_of_record,
)
from utils.errors import UserError, exit_on_user_error
from utils.locks import release, try_lock
from utils.run_folder import write_json
from utils.terminal import aligned

if TYPE_CHECKING:
    from dataset_utils.corpus import Corpus

RECORD = "recipe.json"
LONGEST_PROBE, PROBE_SHARE = 25.0, 0.02  # seconds of training, and share of a stage
MOST_LAST = 120.0  # seconds of a stage for its last evaluation
MOST_START = 15.0  # seconds


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser(__doc__).parse_args(argv)
    check_arguments(args)
    try:
        return Recipe(args).run()
    finally:
        release(args.output_dir)


class Recipe:
    """One folder: what was chosen, which stages are done, and the seconds of each."""

    def __init__(self, args: Namespace) -> None:
        from pipelines.stages import StageTimer

        self.args, self.root = args, args.output_dir
        self.given = typed_choices(args)
        self.other = None if args.reuse is None else OtherRecipe(args.reuse, RECORD)
        self.state = self._read()
        self.clock = StageTimer(self.root / "seconds.json")

    # ---- the record ----------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        """The record of the folder; UserError if other choices were typed then. Empty for a new folder."""
        path = self.root / RECORD
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            before = found["given"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: name another --output_dir, or remove the file") from None
        for name in sorted(before.keys() | self.given.keys()):
            if before.get(name) != self.given.get(name):
                raise UserError(
                    f"{self.root} was begun with {_typed(name, before)} and is now asked for "
                    f"{_typed(name, self.given)}: type the command as it was to go on, or name another --output_dir"
                )
        return found

    def _write(self) -> None:
        if not self.args.dry_run:
            write_json(self.root / RECORD, self.state)

    @property
    def choices(self) -> Choices:
        return choices_of_record(self.state)

    @property
    def setting(self) -> Setting:
        return setting_of_record(self.state)

    def left(self) -> float:
        """Seconds of the budget that are left for trainings."""
        total = 60 * self.args.minutes
        if self.args.count_evaluation:
            total -= plan.EVALUATION_SHARE * total
        spent = {name: self._spent(name) for name in self.state["stages"]} if self.state else {}
        return total - sum({**self.clock.seconds, **spent, "evaluation": 0.0}.values())

    # ---- the way -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        if self.root.is_dir():
            self._claim_folder()
        if self.state:
            _log(f"{self.root / RECORD}: the choices were made before; it goes on")
        elif self.args.dry_run:
            self._choose()
        else:
            self.clock.time("choices", self._choose)
        self._show_choices()
        self._check_stages()
        self._show_stages()
        if self.args.dry_run:
            return 0
        self._write()
        self._make_no_scorer()
        self._reuse_stages()
        for name in plan.shares(self.choices):
            code = self._run_stage(name)
            if code:
                return code
        self._use_adapted_decoder()
        return 0 if self.args.no_evaluation else self._evaluate()

    def _choose(self) -> None:
        """Look at corpus, models and machine, and make every choice but the numbers of steps."""
        from pipelines.recipe.corpus_facts import measure
        from utils.distributed import pick_device

        names = {name: getattr(self.args, name) for name in CORPUS_FLAGS}
        models = find_models(self.given, _log)
        check_adapters(models, self.given)
        corpus = self._corpus()
        for note in corpus.notes:
            _log(f"note: {note}")
        if self.args.condition == "class":
            corpus.require_classes("--condition class")
        if self.args.condition == "source" and corpus.train.sources is None:
            raise UserError(f"--condition source: the texts of {corpus.name} have no sources: leave it out")
        if self.args.way not in (None, *plan.TRAINED_HERE) and models["language_model"] is None:
            raise UserError(f"--way {self.args.way} needs a language model: name one with --language_model")
        if self.args.way == plan.PRETRAINED_WAY and models["encoder_model"] is None:
            raise UserError("--way pretrained needs an encoder: name one with --encoder_model, or give --way states")
        self._claim_folder()
        way = self.args.way or plan.way_of(**models)[0]
        encoder, layer = plan.encoder_of(way, **models)  # of other ways: tokens of an encoder count nothing there
        speed, tokenizer = (0.0, None) if encoder is None else encoding_speed(encoder, corpus.train.texts, layer)
        if self.other is not None:
            # another number of texts would be another decoder
            speed = self.other.encoding_speed(encoder, layer) or speed
        facts = measure(corpus, tokenizer)
        _log(f"{corpus.name}: {facts.describe()}")
        machine = Machine(**models, texts_per_second=speed, has_gpu=pick_device().type == "cuda")
        choices = plan.choose(facts, machine, 60 * self.args.minutes, self.given)
        flags = " ".join(f"--{name} {shlex.quote(value)}" for name, value in names.items() if value is not None)
        self.state = {
            "given": self.given,
            "minutes": self.args.minutes,
            "corpus_flags": flags,
            "corpus": asdict(facts),
            "models": models,
            "encoder_texts_per_second": round(speed, 1),
            "choices": {name: asdict(choice) for name, choice in choices.items()},
            "stages": {},
        }

    def _claim_folder(self) -> None:
        """Make the folder, and keep another process of the same command out: both would count the seconds of both."""
        if self.args.dry_run:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        if not try_lock(self.root):
            raise UserError(f"another recipe is running in {self.root}: wait for it, or name another --output_dir")

    def _show_choices(self) -> None:
        stages = plan.shares(self.choices)
        table = [["choice", "value", "reason"], *plan.rows(self.choices)]
        left = self.left()
        for name in stages:
            seconds = plan.stage_seconds(name, left, stages, ())
            table.append([f"time of {name}", f"{seconds / 60:.1f} min", STAGE_ROWS[name].title])
        print(f"\n== the choices for {self.args.minutes:g} minutes (a flag of that name replaces one)")
        print(aligned(table), flush=True)

    def _check_stages(self) -> None:
        """UserError for a flag that the program of any stage does not know: the last one begins after most minutes."""
        from pipelines.recipe.checks import rules_without_folders
        from utils.cli.parse import check_flags

        check_stage_flags(self.given, plan.shares(self.choices))
        if not self.args.no_evaluation:
            check_judges(vars(self.args))
        stages = sorted(plan.shares(self.choices), key=lambda name: name != "decoder")  # flags of others follow from it
        for name in stages:
            steps = Steps(2, self.setting.batch_size(name), 0, 0.999, 0.0, 0.0)
            try:
                stage = make_stage(name, self.setting, steps)
                check_flags(stage.program, stage.argv(self.root), rules_without_folders(stage.program))
            except UserError as error:
                raise UserError(f"the {name} stage would end at once: {error}") from None

    def _show_stages(self) -> None:
        """The command of every stage, in which some choices stand that are no row of the table."""
        for name in plan.shares(self.choices):
            record = self.state["stages"].get(name)
            steps = None if record is None else steps_of_record(record)
            print(f"flags of {name}: {shown_command(name, self.setting, self.root, steps)}")
        print(f"({FOLLOWS}: by the rate that a probe of the stage tells, which may also halve its batch)")
        for line in [*notes(self.setting), *unused(self.given, self.choices, plan.shares(self.choices))]:
            print(f"note: {line}")
        print(end="", flush=True)

    def _make_no_scorer(self) -> None:
        from pipelines.stages import make_small_scorer

        if not (self.root / NO_SCORER).is_dir():
            texts = self._corpus().train.texts
            self.clock.time("choices", partial(make_small_scorer, texts, self.root / NO_SCORER))

    def _reuse_stages(self) -> None:
        """Take over the first stages of --reuse, as long as they are the same; their time counts as spent."""
        if self.other is None:
            return
        for name in plan.shares(self.choices):
            if name in self.state["stages"]:
                continue
            why = self.other.difference(name, self.setting, self.args.minutes)
            if why is not None:
                _log(f"{name}: is trained here, since {why}")
                return
            record, seconds = self.other.take(name, self.root)
            for part, spent in seconds.items():
                self.clock.add(part, spent)
            self.state["stages"][name] = record
            self._write()
            _log(f"{name}: taken over from {self.args.reuse}")

    def _corpus(self) -> Corpus:
        from dataset_utils import registry
        from dataset_utils.options import DataOptions

        return registry.load(DataOptions(**{name: getattr(self.args, name) for name in CORPUS_FLAGS}))

    def _run_stage(self, name: str) -> int:
        from pipelines.stages import run_stage

        record = self.state["stages"].get(name)
        if record is not None and "done" in record:
            _log(f"{name}: already done ({record['done']['step']:,} of {record['steps']:,} steps)")
            return 0
        if record is None:
            record = self.clock.time(f"probe of {name}", partial(self._plan_stage, name))
            self.state["stages"][name] = record
            self._write()
        steps = steps_of_record(record)
        stage = make_stage(name, self.setting, steps)
        limit = max(1.0, record["max_seconds"] - self._spent(name))
        self._show_time(name, steps)
        code: int = self.clock.time(name, partial(run_stage, stage, self.root, ["--max_seconds", f"{limit:.0f}"]))
        if code:
            return code
        from utils import checkpoints

        newest = checkpoints.newest(self.root / name) or {}
        record["done"] = {"step": newest.get("step", 0)}
        self._write()
        if record["done"]["step"] < record["steps"]:
            _log(f"note: {name} ended by its time after {record['done']['step']:,} of {record['steps']:,} steps")
        return 0

    def _spent(self, name: str) -> float:
        """Seconds that a stage has taken; after a kill at least those of its log."""
        from pipelines.probes import logged_steps

        logged = logged_steps(self.root / name)
        return max(self.clock.seconds.get(name, 0.0), logged[-1][1] if logged else 0.0)

    def _plan_stage(self, name: str) -> dict[str, Any]:
        """Probe a stage, and fix its steps."""
        from pipelines.probes import PROBE_STEPS, Rate, command_of, probe, uncompiled
        from utils.preemption import exit_on_termination

        stages, setting, row = plan.shares(self.choices), self.setting, STAGE_ROWS[name]
        seconds = plan.stage_seconds(name, self.left(), stages, [*self.state["stages"]])
        batch, typed = setting.batch_size(name), self.given.get(row.steps_flag)
        began = time.monotonic()
        if typed is None:
            asked = Steps(PROBE_STEPS, batch, 0, 0.999, 0.0, 0.0)
            stage = make_stage(name, setting, asked)
            folder = self.root / f"{name}.probe"
            flags = ["--log_every", "1", "--config", "val_loss_examples=1", "--output_dir", str(folder)]
            command = command_of(stage.program, [*uncompiled(stage.program), *stage.argv(self.root), *flags])
            length = min(LONGEST_PROBE, max(1.0, PROBE_SHARE * seconds))
            _log(f"\n{name}: a probe of {length:.0f} s tells its rate")
            with exit_on_termination():  # which ends the probe, too
                rate = probe(command, folder, length)
        else:
            rate = Rate(0.0, 0.0)
        left = self.left() - (time.monotonic() - began)  # the clock gets the seconds of the probe later
        seconds = plan.stage_seconds(name, left, stages, [*self.state["stages"]])
        last = min(MOST_LAST, plan.LAST_SHARE * seconds)
        start = min(MOST_START, rate.started)  # of the stage itself: in this process, with what its probe has encoded
        steps = plan.choose_steps(
            seconds - last,
            rate.steps_per_second,
            start,
            batch,
            fewest=row.fewest,
            least_batch=row.smallest_batch,
            half_batch=row.half_batch,
            steps=typed,
            fixed_batch=bool(row.batch_size and self.choices[row.batch_size].given),
        )
        if typed is None and steps.steps < row.fewest and row.with_fewer:
            self._note_few_steps(name, steps, start, left)
        # however small the budget, the least number of steps is made; typed steps are made whatever they take
        least = start + steps.steps / max(1e-9, steps.steps_per_second)
        limit = 86400.0 * 365 if typed is not None else max(seconds - last, least)
        return {**steps.record(), "max_seconds": round(limit, 1), "started": round(rate.started, 1)}

    def _note_few_steps(self, name: str, steps: Steps, started: float, left: float) -> None:
        """Say that the budget is too small, and which one would do.

        started: seconds until the first step. left: seconds of the budget after the probe.
        """
        row, stages = STAGE_ROWS[name], plan.shares(self.choices)
        share = stages[name] / sum(part for other, part in stages.items() if other not in self.state["stages"])
        counts = self.args.count_evaluation
        spent = 60 * self.args.minutes * (1 - plan.EVALUATION_SHARE if counts else 1) - left
        needed = plan.minutes_needed(row.fewest, steps.steps_per_second, started, share, spent, with_evaluation=counts)
        _log(
            f"note: {self.args.minutes:g} minutes allow {steps.steps:,} steps of the {name}; below about {row.fewest} "
            f"steps {row.with_fewer}: give --minutes {needed} or more"
        )

    def _show_time(self, name: str, steps: Steps) -> None:
        left, stages = self.left(), plan.shares(self.choices)
        after = [other for other in list(stages)[list(stages).index(name) + 1 :]]
        at = time.strftime("%H:%M", time.localtime(time.time() + max(0.0, left)))
        rate = f" at {steps.steps_per_second:.2f} steps/s" if steps.steps_per_second else ""
        _log(
            f"{name}: {steps.steps:,} steps of {steps.batch_size} texts{rate}, {steps.seconds / 60:.1f} min; "
            + (f"then {', '.join(after)}; " if after else "")
            + f"{max(0.0, left) / 60:.1f} min are left for training, to about {at}"
        )

    def _use_adapted_decoder(self) -> None:
        """Let samples be decoded by the adapted decoder, where there is one, in every program."""
        record = self.state["stages"].get("adapted")
        if record is None or "used_by" in record:
            return
        from pipelines.builders.adapted import use_adapted_decoder

        run = self.setting.denoiser
        use_adapted_decoder(self.root / run, self.root / "adapted")
        record["used_by"] = run
        self._write()
        _log(f"{run}: its samples are decoded by the adapted decoder from now on")

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def _num_samples(self, scorer: str | None) -> int:
        """The texts to sample: the number that was typed, else as many as take their part of the time."""
        if self.args.num_samples is not None:
            return int(self.args.num_samples)
        if "num_samples" not in self.state:
            self.state["num_samples"] = self.clock.time("evaluation", partial(self._affordable_samples, scorer))
            self._write()
        return int(self.state["num_samples"])

    def _affordable_samples(self, scorer: str | None) -> int:
        from pipelines.recipe.sample_count import WANTED, affordable, seconds_of_a_text, texts_of_a_class

        if "evaluation" in self.state:  # of an earlier release
            return WANTED
        condition, classes = self.choices["condition"].value, (0, 0)
        sources = None
        if condition == "source":
            sources = self._corpus().valid.sources
        elif condition == "class":
            corpus = self._corpus()
            classes = (corpus.num_classes, texts_of_a_class(corpus))
        seconds = seconds_of_a_text(self.root / self.setting.denoiser, self.setting.decoding, sources, scorer)
        share = plan.EVALUATION_SHARE if self.args.count_evaluation else plan.MOST_EVALUATION
        number = affordable(seconds, 60 * self.args.minutes * share, *classes)
        if number < WANTED:
            what, more = "a text", f"; MAUVE needs {WANTED:,}"
            if sources is not None:
                what, more = "a source, with all its texts,", ""
            _log(
                f"note: {what} takes {seconds:.2g} s to sample and judge, so that {number} are sampled{more}: give "
                f"--num_samples {WANTED}, or more --minutes"
            )
        return number

    def _evaluate(self) -> int:
        from pipelines.cli.programs import DIFFUSION
        from pipelines.stages import banner, fill, run_program, show_page

        stages, sampled = plan.shares(self.choices), self.root / self.setting.denoiser
        result = sampled / "evaluation" / "eval-valid.json"
        judges = find_judges(vars(self.args), self.state["models"])
        number = self._num_samples(judges["scorer"])
        flags = evaluation_flags(self.setting, number, judges)
        argv = fill(flags, root=self.root)
        parts = parts_that_judge(judges, self.setting.parts)
        if result.is_file() and self.state.get("evaluation", {}).get("flags") == flags:
            _log("evaluation: already done")
        else:
            (self.root / "report.html").unlink(missing_ok=True)
            banner("evaluation", f"{number} samples against held-out texts", DIFFUSION, argv)
            for line in parts:
                _log(f"note: {line}")
            code: int = self.clock.time("evaluation", lambda: run_program(DIFFUSION, argv))
            if code:
                return code
            self.state["evaluation"] = {
                "flags": flags,
                "judges": judges,
                "notes": parts,
                "file": str(result.relative_to(self.root)),
            }
        self.state["seconds"] = self.clock.with_total()
        self._write()
        runs = [name for name in reversed(stages) if STAGE_ROWS[name].program.name == DIFFUSION.name]
        show_page(self.root, [self.root / name for name in runs])
        seconds = self.state["seconds"]
        took = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if name != "total")
        _log(f"{seconds['total']:.0f} seconds in all: {took}")
        words = ["python", "-m", "pipelines.sample", str(sampled), "-n", "10"]
        words += ["--source", "TEXT"] if self.choices["condition"].value == "source" else []
        _log(f"more texts: {shlex.join(words)}\nthe choices: {self.root / RECORD}")
        return 0


def _typed(name: str, given: dict[str, Any]) -> str:
    value = given.get(name)
    return f"no --{name}" if value in (None, False) else f"--{name}" if value is True else f"--{name} {value}"


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
