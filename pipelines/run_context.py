"""One invocation of an entry point: its device, its run folder, its trackers; how training starts, goes on and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Generic, TypeVar

import torch

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from pipelines.cli.configs import TrainingConfig
from pipelines.data.batch_sampler import TrainingSampler, ValidationSampler
from utils import checkpoints, distributed
from utils.cli.args_io import write_args
from utils.cli.settings import Settings
from utils.compile import set_kernels
from utils.distributed import DistContext
from utils.ema import EMA
from utils.errors import UserError
from utils.hooks import Hook, Logger
from utils.locks import release, try_lock
from utils.loop import StepFn, train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions
from utils.run_folder import new_run_folder
from utils.state import State
from utils.trackers import make_trackers

EVALUATIONS = ("eval", "eval_test", "gen_data")  # flags that use a trained run
EVALUATION = "evaluation"  # folder of a run that its evaluations write to

C = TypeVar("C", bound=TrainingConfig, covariant=True)


@dataclass
class RunContext(Generic[C]):
    """What every stage needs beside its own parts."""

    settings: Settings[C]
    dist: DistContext
    folder: Path
    autocast: Callable[[], AbstractContextManager[Any]]
    log: Logger

    @property
    def device(self) -> torch.device:
        return self.dist.device

    @property
    def loop(self) -> LoopOptions:
        return self.settings.config.loop

    @property
    def is_eval(self) -> bool:
        return is_eval_run(self.settings)

    @property
    def quiet(self) -> bool:
        """Only the main process speaks."""
        return not self.dist.is_main

    def batch_sampler(self) -> TrainingSampler:
        loop = self.loop
        return TrainingSampler(
            loop.random_seed,
            loop.train_batch_size,
            loop.gradient_accumulation_steps,
            self.dist.rank,
            self.dist.world_size,
        )

    def validation_sampler(self, n: int) -> ValidationSampler:
        """Of the validation losses. n: texts of the split."""
        return ValidationSampler(
            self.loop.train_batch_size,
            min(self.settings.config.validation_loss.val_loss_examples, n),
            self.dist.rank,
            self.dist.world_size,
        )

    def log(self, text: str) -> None:
        if self.dist.is_main:
            print(text, file=sys.stderr, flush=True)


def setup_run(settings: Settings[C], project: str, title: str, names: Mapping[str, str] | None = None) -> RunContext[C]:
    """Find or make the run folder; refuse one that already holds another run.

    project: the tracker's. title: of the line of progress. names: published names of what the loop logs.
    """
    check_same_program(settings)
    dist = distributed.init_distributed(settings.config.loop.device)
    check_same_batch_size(settings, dist.world_size)
    set_kernels(settings.config.kernels, dist.device)
    folder = _folder(settings, dist)
    if dist.is_main:
        check_writable(folder)
        if not is_eval_run(settings) and not try_lock(folder):
            raise UserError(f"another process is training into {folder}: wait for it, or name another --output_dir")
    trackers = make_trackers(settings, project, folder) if dist.is_main else []
    # The curves of training stay as they are: what an evaluation finds is logged beside them.
    logged = folder / EVALUATION if is_eval_run(settings) else folder
    log = Logger(
        settings.config.loop.log_every,
        logged,
        trackers,
        total=settings.config.loop.num_train_steps,
        title=title,
        names=names,
    )
    return RunContext(settings, dist, folder, distributed.autocast(dist.device, settings.config.loop.mixed_precision), log)


def is_eval_run(settings: Settings[TrainingConfig]) -> bool:
    """Whether a trained run is used, and nothing trained."""
    return any(settings.values.get(mode) for mode in EVALUATIONS)


def check_same_program(settings: Settings[TrainingConfig]) -> None:
    """Of the folder that --resume_dir names."""
    wrote = settings.checkpoint_args.get("program")
    if wrote not in (None, settings.program.name):
        raise UserError(
            f"{settings.config.run.resume_dir} is a run of {wrote}, not of {settings.program.name}: "
            "use that program, or name another folder"
        )


def check_same_batch_size(settings: Settings[TrainingConfig], processes: int) -> None:
    """A run goes on with as many texts a step: with others it would see some of an epoch twice and some never."""
    if not settings.values.get("resume_training"):
        return

    def total(values: Mapping[str, Any], processes: int) -> int:
        return values["train_batch_size"] * values["gradient_accumulation_steps"] * processes

    before = total(
        {**settings.values, **settings.checkpoint_args}, settings.checkpoint_args.get("num_devices", processes)
    )
    now = total(settings.values, processes)
    if before != now:
        raise UserError(
            f"a step of {settings.config.run.resume_dir} is of {before} texts, and here, with {processes} process(es), it would "
            f"be of {now}: give --train_batch_size and --gradient_accumulation_steps whose product is {before} "
            "divided by the processes"
        )


def _folder(settings: Settings[TrainingConfig], dist: DistContext) -> Path:
    given = settings.config.run.output_dir
    if settings.values.get("resume_training"):
        if given and Path(given).resolve() != Path(settings.config.run.resume_dir).resolve():
            raise UserError(
                "--resume_training goes on in --resume_dir: leave --output_dir out, or copy the folder first"
            )
        return Path(settings.config.run.resume_dir)
    if is_eval_run(settings):
        return Path(given or settings.config.run.resume_dir)
    if given:
        if checkpoints.has_checkpoint(given):
            raise UserError(
                f"--output_dir {given} already holds a run: continue it with --resume_training --resume_dir {given}, "
                "or name another folder"
            )
        if (Path(given) / "config.json").exists():
            raise UserError(f"--output_dir {given} already holds a model (config.json): name another folder")
        return Path(given)
    made = [str(new_run_folder(settings.config.run.save_dir, dataset_label(settings)))] if dist.is_main else []
    return Path(distributed.gather_objects(dist, made)[0])


def check_writable(folder: Path) -> None:
    """Make the folder, and see now whether files can be written there: an evaluation does so after hours only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}): name another --output_dir") from None


def save_args(job: RunContext[TrainingConfig], **metadata: Any) -> None:
    """args.json of a run that trains, with what is known of it."""
    if job.dist.is_main:
        write_args(
            job.settings, job.folder, device_name=_device_name(job.device), num_devices=job.dist.world_size, **metadata
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dataset_label(settings: Settings[TrainingConfig]) -> str:
    """What the corpus is called in the names of run folders."""
    return (
        settings.config.data.dataset_name
        or Path(settings.config.data.train_file or settings.config.data.data_dir or "corpus").stem
    )


def load_corpus(job: RunContext[TrainingConfig]) -> Corpus:
    """The corpus of the flags; what was done to it is said once."""
    settings = job.settings
    if not (settings.config.data.dataset_name or settings.config.data.train_file or settings.config.data.data_dir):
        raise UserError("no corpus given: add --dataset_name NAME (see docs/usage.md) or --train_file FILE")
    corpus = registry.load(settings.config.data)
    for note in corpus.notes:
        job.log(f"note: {note}")
    return corpus


def make_train_state(job: RunContext[TrainingConfig], network: torch.nn.Module, ema: EMA | None = None, **fields: Any) -> State:
    """What training changes, at step 0: a network with the optimizer and the schedule of the flags.

    Sharded weights must be in shards already. fields: further ones of State.
    """
    settings, options = job.settings, job.settings.config.optimizer
    optimizer = make_optimizer(network, options)
    schedule = make_lr_schedule(optimizer, options, settings.config.loop.num_train_steps)
    return State(network, optimizer, schedule, ema, seed=settings.config.loop.random_seed, dist=job.dist, **fields)


def fit(
    job: RunContext[TrainingConfig], state: State, step: StepFn, hooks: Sequence[Hook], started: float, **metadata: Any
) -> str:
    """Train until done, late or stopped; save whatever the reason. Returns the reason of utils.loop.train.

    facts: of the checkpoint, beside the state's own.
    """
    settings, loop = job.settings, job.loop
    if state.step >= loop.num_train_steps:
        job.log(f"{job.folder} has already trained its {state.step} steps")
        release(job.folder)
        return "done"
    reason = train(
        state,
        step,
        [job.logger, *hooks],
        loop,
        clip_grad_norm=settings.config.optimizer.clip_grad_norm,
        autocast=job.autocast,
        global_batch=job.batch_sampler().global_batch_size,
        started=started,
    )
    state.save(job.folder, **metadata)
    release(job.folder)
    if reason != "done":
        job.log(
            f"{reason} at step {state.step} of {loop.num_train_steps}; saved. "
            f"Continue with --resume_training --resume_dir {job.folder}"
        )
    return reason
