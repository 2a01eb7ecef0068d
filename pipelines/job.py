"""One invocation of an entry point: its device, its run folder, its trackers; how training starts, goes on and ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.options import DataOptions
from pipelines.data.batch_sampler import BatchPlan, HeldOutPlan
from utils import checkpoints, distributed, speed
from utils.distributed import Ranks
from utils.ema import EMA
from utils.errors import UserError
from utils.flag_files import write_args
from utils.hooks import Hook, Log
from utils.locks import claim, release
from utils.loop import StepFn, train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import KernelOptions, LoopOptions, OptimizerOptions
from utils.runs import new_run_folder
from utils.settings import Settings
from utils.state import State
from utils.trackers import make_trackers

EVALUATIONS = ("eval", "eval_test", "gen_data")  # flags that use a trained run
EVALUATION = "evaluation"  # folder of a run that its evaluations write to


@dataclass
class Job:
    """What every stage needs beside its own parts."""

    settings: Settings
    ranks: Ranks
    folder: Path
    autocast: Callable[[], AbstractContextManager[Any]]
    log: Log

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    @property
    def loop(self) -> LoopOptions:
        return self.settings.build(LoopOptions)

    @property
    def evaluating(self) -> bool:
        return evaluates(self.settings)

    @property
    def quiet(self) -> bool:
        """Only the main process speaks."""
        return not self.ranks.main

    def plan(self) -> BatchPlan:
        loop = self.loop
        return BatchPlan(
            loop.random_seed, loop.train_batch_size, loop.gradient_accumulation_steps, self.ranks.rank, self.ranks.world
        )

    def held_out_plan(self, n: int) -> HeldOutPlan:
        """Of the validation losses. n: texts of the split."""
        return HeldOutPlan.of(self.plan(), self.settings.val_loss_texts, n)

    def say(self, text: str) -> None:
        if self.ranks.main:
            print(text, file=sys.stderr, flush=True)


def open_job(settings: Settings, project: str, title: str, names: Mapping[str, str] | None = None) -> Job:
    """Find or make the run folder; refuse one that already holds another run.

    project: the tracker's. title: of the line of progress. names: published names of what the loop logs.
    """
    refuse_another_programs_run(settings)
    ranks = distributed.init(settings.device)
    refuse_another_batch(settings, ranks.world)
    speed.use(settings.build(KernelOptions), ranks.device)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # of `accelerate launch`, or of `accelerate config`
    if ranks.main and launched not in ("no", settings.mixed_precision):
        print(
            f"note: accelerate was told {launched}, which has no effect: only --mixed_precision counts, here "
            f"{settings.mixed_precision}",
            file=sys.stderr,
        )
    folder = _folder(settings, ranks)
    if ranks.main:
        refuse_unwritable(folder)
        if not evaluates(settings) and not claim(folder):
            raise UserError(f"another process is training into {folder}: wait for it, or name another --output_dir")
    trackers = make_trackers(settings, project, folder) if ranks.main else []
    # The curves of training stay as they are: what an evaluation finds is logged beside them.
    logged = folder / EVALUATION if evaluates(settings) else folder
    log = Log(settings.log_every, logged, trackers, total=settings.num_train_steps, title=title, names=names)
    return Job(settings, ranks, folder, distributed.autocast(ranks.device, settings.mixed_precision), log)


def evaluates(settings: Settings) -> bool:
    """Whether a trained run is used, and nothing trained."""
    return any(settings.values.get(mode) for mode in EVALUATIONS)


def refuse_another_programs_run(settings: Settings) -> None:
    """Of the folder that --resume_dir names."""
    wrote = settings.saved.get("program")
    if wrote not in (None, settings.program.name):
        raise UserError(
            f"{settings.resume_dir} is a run of {wrote}, not of {settings.program.name}: "
            "use that program, or name another folder"
        )


def refuse_another_batch(settings: Settings, processes: int) -> None:
    """A run goes on with as many texts a step: with others it would see some of an epoch twice and some never."""
    if not settings.values.get("resume_training"):
        return

    def total(values: Mapping[str, Any], processes: int) -> int:
        return values["train_batch_size"] * values["gradient_accumulation_steps"] * processes

    before = total({**settings.values, **settings.saved}, settings.saved.get("num_devices", processes))
    now = total(settings.values, processes)
    if before != now:
        raise UserError(
            f"a step of {settings.resume_dir} is of {before} texts, and here, with {processes} process(es), it would "
            f"be of {now}: give --train_batch_size and --gradient_accumulation_steps whose product is {before} "
            "divided by the processes"
        )


def _folder(settings: Settings, ranks: Ranks) -> Path:
    given = settings.output_dir
    if settings.values.get("resume_training"):
        if given and Path(given).resolve() != Path(settings.resume_dir).resolve():
            raise UserError(
                "--resume_training goes on in --resume_dir: leave --output_dir out, or copy the folder first"
            )
        return Path(settings.resume_dir)
    if evaluates(settings):
        return Path(given or settings.resume_dir)
    if given:
        if checkpoints.has_checkpoint(given):
            raise UserError(
                f"--output_dir {given} already holds a run: continue it with --resume_training --resume_dir {given}, "
                "or name another folder"
            )
        if (Path(given) / "config.json").exists():
            raise UserError(f"--output_dir {given} already holds a model (config.json): name another folder")
        return Path(given)
    made = [str(new_run_folder(settings.save_dir, corpus_title(settings)))] if ranks.main else []
    return Path(distributed.gather_objects(ranks, made)[0])


def refuse_unwritable(folder: Path) -> None:
    """Make the folder, and see now whether files can be written there: an evaluation does so after hours only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}): name another --output_dir") from None


def record_args(job: Job, **facts: Any) -> None:
    """args.json of a run that trains, with what is known of it."""
    if job.ranks.main:
        write_args(job.settings, job.folder, device_name=_device_name(job.device), num_devices=job.ranks.world, **facts)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def corpus_title(settings: Settings) -> str:
    """What the corpus is called in the names of run folders."""
    return settings.dataset_name or Path(settings.train_file or settings.data_dir or "corpus").stem


def load_corpus(job: Job) -> Corpus:
    """The corpus of the flags; what was done to it is said once."""
    settings = job.settings
    if not (settings.dataset_name or settings.train_file or settings.data_dir):
        raise UserError("no corpus given: add --dataset_name NAME (see docs/recipes.md) or --train_file FILE")
    corpus = registry.load(settings.build(DataOptions))
    for note in corpus.notes:
        job.say(f"note: {note}")
    return corpus


def new_state(job: Job, network: torch.nn.Module, ema: EMA | None = None, **more: Any) -> State:
    """What training changes, at step 0: a network with the optimizer and the schedule of the flags.

    Sharded weights must be in pieces already. more: of State.
    """
    settings, options = job.settings, job.settings.build(OptimizerOptions)
    optimizer = make_optimizer(network, options)
    schedule = make_lr_schedule(optimizer, options, settings.num_train_steps)
    return State(network, optimizer, schedule, ema, seed=settings.random_seed, ranks=job.ranks, **more)


def fit(job: Job, state: State, step: StepFn, hooks: Sequence[Hook], started: float, **facts: Any) -> str:
    """Train until done, late or stopped; save whatever the reason. Returns the reason of utils.loop.train.

    facts: of the checkpoint, beside the state's own.
    """
    settings, loop = job.settings, job.loop
    if state.step >= loop.num_train_steps:
        job.say(f"{job.folder} has already trained its {state.step} steps")
        release(job.folder)
        return "done"
    reason = train(
        state,
        step,
        [job.log, *hooks],
        loop,
        clip_grad_norm=settings.clip_grad_norm,
        autocast=job.autocast,
        global_batch=job.plan().total,
        started=started,
    )
    state.save(job.folder, **facts)
    release(job.folder)
    if reason != "done":
        job.say(
            f"{reason} at step {state.step} of {loop.num_train_steps}; saved. "
            f"Continue with --resume_training --resume_dir {job.folder}"
        )
    return reason
