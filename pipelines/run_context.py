"""One invocation of a program: settings, device, processes, run folder, logger. Also the checks before a run starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Generic, TypeVar

import torch

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.user_files import corpus_name
from pipelines.cli.configs import TrainingConfig
from pipelines.corpus_record import ENTRY as CORPUS_ENTRY
from pipelines.corpus_record import OWN, CorpusRecord, compare_corpus, find_moved_corpus
from pipelines.data.batch_sampler import TrainingSampler, ValidationSampler
from pipelines.recorded_models import ENTRY as MODELS_ENTRY
from pipelines.recorded_models import find_moved_models, model_places
from utils import checkpoints, distributed
from utils.cli.args_io import PRECISION_CHOSEN, write_args
from utils.cli.settings import Settings
from utils.distributed import DistContext
from utils.ema import EMA
from utils.errors import UserError, user_message
from utils.hooks import Logger
from utils.kernels import set_kernels
from utils.locks import release, try_lock
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions
from utils.precision import is_chosen, resolve_precision
from utils.pretrained import WeightsRead
from utils.run_folder import new_run_folder, write_json
from utils.state import State
from utils.terminal import printable
from utils.trackers import MetricsFile, check_trackers, make_trackers

EVAL_FLAGS = ("eval", "eval_test", "gen_data")  # flags that use a trained run
ARGS_FILE = "args.json"
PARAMETERS_FILE = "parameters.json"
EVALUATION = "evaluation"  # folder below a run folder; evaluations write their results there
WEIGHTS_ENTRY = "weights_read"  # of args.json: flag that names another run -> the weights that were read of it

C = TypeVar("C", bound=TrainingConfig, covariant=True)


@dataclass
class RunContext(Generic[C]):
    """Settings, processes, run folder and logger: all that a program needs in addition to its own components."""

    settings: Settings[C]
    dist: DistContext
    folder: Path
    autocast: Callable[[], AbstractContextManager[Any]]
    logger: Logger
    title: str = ""  # what the program trains, for messages
    _files: list[Callable[[], Any]] = field(default_factory=list)  # write what a run needs besides its checkpoints
    _said: set[str] = field(default_factory=set)
    corpus: Corpus | None = None  # read and checked before the folder was made
    corpus_record: CorpusRecord | None = None  # of this corpus, compared with that of the run that is used
    weights: WeightsRead | None = None  # those that an evaluation uses
    weights_of_others: dict[str, WeightsRead] = field(default_factory=dict)  # of other runs, by the flag that names one

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
        """Whether this process prints nothing: only rank 0 prints."""
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
        """The sampler of the validation losses. n: number of texts in the split."""
        return ValidationSampler(
            self.loop.train_batch_size,
            min(self.settings.config.validation_loss.val_loss_examples, n),
            self.dist.rank,
            self.dist.world_size,
        )

    def log(self, text: str) -> None:
        """Print a line on stderr, on rank 0 only."""
        if self.dist.is_main:
            print(printable(text), file=sys.stderr, flush=True)

    def log_once(self, text: str, subject: str = "") -> None:
        """As log, once in this process for a subject; without one, once for a text."""
        if (subject or text) not in self._said:
            self.log(text)
        self._said.add(subject or text)

    def weights_metadata(self) -> dict[str, Any]:
        """Entries of the protocol of an evaluation: the checkpoint that it reads, and its step."""
        return {} if self.weights is None else self.weights._asdict()

    def record_weights(self, flag: str, weights: WeightsRead | None) -> None:
        """Record which weights of another run were read, for save_args. flag: names that run; None: unknown weights."""
        before = recorded_weights(self.settings, flag)
        if weights is None:
            return
        if before is not None and before.step != weights.step:
            self.log(
                f"note: the weights of --{flag} are those of step {weights.step} now, and were those of step "
                f"{before.step} before: the steps that follow differ from those of a run that was not interrupted"
            )
        self.weights_of_others[flag] = weights

    def write_files(self, write: Callable[[], Any], *, now: bool = True) -> None:
        """On rank 0, write files without which the run cannot be loaded: now, and again if its folder was removed.

        now: False for a resumed run, which has them.
        """
        if self.dist.is_main:
            if now:
                write()
            self._files.append(write)

    def restore_folder(self) -> None:
        """On rank 0, before a checkpoint is saved: if the run folder was removed or moved, write its files again.

        Without them nobody could load the run, and training would go on for nothing.
        """
        if not self.dist.is_main or not self._files or (self.folder / ARGS_FILE).is_file():
            return
        release(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        try_lock(self.folder)
        self.log(
            f"warning: {self.folder} was removed or moved while it trained; the run is written there again, without "
            "its earlier files"
        )
        for write in self._files:
            try:
                write()
            except (OSError, UserError) as error:  # weights without such a file are worth more than none
                self.log(f"warning: a file of {self.folder} cannot be written again ({user_message(error)})")


def setup_run(
    settings: Settings[C],
    project: str,
    title: str,
    names: Mapping[str, str] | None = None,
    check_corpus: Callable[[Corpus], None] = lambda corpus: None,
) -> RunContext[C]:
    """Read the corpus, then set up processes, device, kernels, run folder, lock, trackers and logger.

    project: name of the project in the trackers. title: what the program trains, for the progress bar and messages.
    names: published names of values that the loop logs. check_corpus: raises UserError for a corpus that the program
    cannot use; no folder and no tracker exists by then. Raises UserError if the run folder cannot be written,
    belongs to another program or run, or another process trains into it.
    """
    check_same_program(settings)
    check_length(settings)
    check_trackers(settings)
    dist = distributed.init_distributed(settings.config.loop.device)
    check_same_batch_size(settings, dist.world_size)
    set_kernels(settings.config.kernels, dist.device)
    resolve_precision(settings, dist.device)
    corpus = _read_corpus(settings)
    check_corpus(corpus)
    record = compare_corpus(settings, corpus)
    folder = _run_folder(settings, dist)
    if dist.is_main:
        check_writable(folder, "resume_dir" if settings.values.get("resume_training") else "output_dir")
        if not is_eval_run(settings) and not try_lock(folder):
            raise UserError(f"another process is training into {folder}: wait for it, or name another --output_dir")
        if not is_eval_run(settings):
            checkpoints.sweep(folder)
            if not settings.values.get("resume_training"):
                MetricsFile(folder, step=-1)  # lines of a run that was killed before its first checkpoint
    trackers = make_trackers(settings, project, folder) if dist.is_main else []
    # An evaluation logs to a separate folder, so that the training curves of the run do not change.
    log_folder = folder / EVALUATION if is_eval_run(settings) else folder
    logger = Logger(
        settings.config.loop.log_every,
        log_folder,
        trackers,
        total=settings.config.loop.num_train_steps,
        title=title,
        names=names,
    )
    if is_eval_run(settings):
        logger.trained_steps = (checkpoints.newest(settings.path("resume_dir")) or {}).get("step")
        logger.configuration(settings.as_dict(), settings.mode or "")
    autocast = distributed.autocast(dist.device, settings.config.loop.mixed_precision)
    return RunContext(settings, dist, folder, autocast, logger, title, corpus=corpus, corpus_record=record)


def is_eval_run(settings: Settings[TrainingConfig]) -> bool:
    """Whether this invocation evaluates or samples from a trained run instead of training."""
    return any(settings.values.get(mode) for mode in EVAL_FLAGS)


def check_same_program(settings: Settings[TrainingConfig]) -> None:
    """UserError if --resume_dir is the run folder of another program."""
    program = settings.checkpoint_args.get("program")
    if program not in (None, settings.program.name):
        raise UserError(
            f"{settings.config.run.resume_dir} is a run of {program}, not of {settings.program.name}: "
            "use that program, or name another folder"
        )


def check_length(settings: Settings[TrainingConfig]) -> None:
    """UserError if a run is resumed with fewer --num_train_steps than it was started with; more of them extend it."""
    before, now = settings.checkpoint_args.get("num_train_steps"), settings.config.loop.num_train_steps
    if settings.values.get("resume_training") and isinstance(before, int) and now < before:
        raise UserError(
            f"--num_train_steps {now} is less than the {before} steps of {settings.config.run.resume_dir}, and a run "
            f"cannot be shortened: leave it out, give more than {before} to extend the run, or stop it sooner with "
            "--max_seconds"
        )


def check_same_batch_size(settings: Settings[TrainingConfig], processes: int) -> None:
    """UserError if a resumed run would use another global batch size: the epoch's order of texts depends on it."""
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
            f"{settings.config.run.resume_dir} trains with a global batch of {before} texts, and {processes} "
            f"process(es) with these flags make it {now}: set --train_batch_size and --gradient_accumulation_steps so "
            f"that their product is {before} divided by the number of processes"
        )


def _run_folder(settings: Settings[TrainingConfig], dist: DistContext) -> Path:
    """The folder that this invocation writes to; a new one if no flag names it."""
    given = settings.config.run.output_dir
    if settings.values.get("resume_training"):
        if given and Path(given).resolve() != settings.path("resume_dir").resolve():
            raise UserError(
                "--resume_training writes to --resume_dir: leave --output_dir out, or copy the folder first"
            )
        return settings.path("resume_dir")
    if is_eval_run(settings):
        return Path(given) if given else settings.path("resume_dir")
    if given:
        if checkpoints.has_checkpoint(given):
            raise UserError(
                f"--output_dir {given} already holds a run: continue it with --resume_training --resume_dir {given}, "
                "or name another folder"
            )
        if os.path.exists(Path(given) / "config.json"):  # false, too, if the name is too long: reported by mkdir
            raise UserError(f"--output_dir {given} already holds a model (config.json): name another folder")
        return Path(given)
    made = [str(new_run_folder(settings.config.run.save_dir, dataset_label(settings)))] if dist.is_main else []
    return Path(distributed.gather_objects(dist, made)[0])


def check_writable(folder: Path, flag: str = "output_dir") -> None:
    """Make the folder, and check that files can be written there: an evaluation would find out only after hours.

    flag: the flag that names it. Raises UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = {
            "output_dir": "name another --output_dir",
            "resume_dir": "make it writable, or copy it and resume the copy with --resume_dir",
        }[flag]
        raise UserError(f"cannot write to {folder} ({error.strerror}): {advice}") from None


def save_args(run: RunContext[TrainingConfig], *, parts: Mapping[str, torch.nn.Module], **metadata: Any) -> None:
    """Write args.json of a training run: the settings, the device, and metadata of the trained components.

    parts: components by name, whose numbers of parameters are written to parameters.json.
    """
    run.write_files(lambda: write_json(run.folder / PARAMETERS_FILE, {"parts": count_parameters(parts)}))
    facts = {"device_name": _device_name(run.device), "num_devices": run.dist.world_size, **metadata}
    facts[PRECISION_CHOSEN] = is_chosen(run.settings)
    facts[MODELS_ENTRY] = model_places(run.settings, run.folder)
    read = {flag: weights._asdict() for flag, weights in run.weights_of_others.items()}
    if read := {**_recorded(run.settings), **read}:
        facts[WEIGHTS_ENTRY] = read
    record = run.corpus_record
    if record is not None:
        facts[CORPUS_ENTRY] = record.facts(run.folder)
        run.write_files(lambda: record.write_hashes(run.folder), now=record.status != OWN)
    run.write_files(lambda: write_args(run.settings, run.folder, **facts))
    run.logger.configuration({**run.settings.as_dict(), **facts})


def recorded_weights(settings: Settings[TrainingConfig], flag: str) -> WeightsRead | None:
    """The weights of the run of a flag that a resumed run has read so far; None for another run, or an older one."""
    found = _recorded(settings).get(flag)
    if not isinstance(found, Mapping) or not found.keys() >= {"checkpoint", "step"}:
        return None
    return WeightsRead(found["checkpoint"], found["step"])


def _recorded(settings: Settings[TrainingConfig]) -> Mapping[str, Any]:
    # settings.checkpoint_args of a new student are those of its teacher
    if settings.mode != "resume_training":
        return {}
    found: Mapping[str, Any] = settings.checkpoint_args.get(WEIGHTS_ENTRY, {})
    return found


def count_parameters(parts: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, int]]:
    """Numbers of parameters of each part: all of them, and those that are trained."""
    return {
        name: {
            "total": sum(p.numel() for p in part.parameters()),
            "trained": sum(p.numel() for p in part.parameters() if p.requires_grad),
        }
        for name, part in parts.items()
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dataset_label(settings: Settings[TrainingConfig]) -> str:
    """Name of the corpus in run folder names and messages."""
    data = settings.config.data
    if data.train_file and not data.dataset_name:
        return corpus_name(Path(data.train_file))
    return data.dataset_name or Path(data.data_dir or "corpus").stem


def load_corpus(run: RunContext[TrainingConfig]) -> Corpus:
    """The corpus of the flags; logs its notes."""
    corpus, record = run.corpus or _read_corpus(run.settings), run.corpus_record
    for note in corpus.notes:
        run.log(f"note: {note}")
    if record is not None and record.is_another:
        run.log(record.warning(run.settings.path("resume_dir")))
    return corpus


def _read_corpus(settings: Settings[TrainingConfig]) -> Corpus:
    if not (settings.config.data.dataset_name or settings.config.data.train_file or settings.config.data.data_dir):
        raise UserError(
            "no corpus given: add --dataset_name NAME (see docs/usage.md) or --train_file FILE (see docs/own-data.md)"
        )
    notes = find_moved_corpus(settings) + find_moved_models(settings)
    corpus = registry.load(settings.config.data)
    corpus.notes[:0] = notes
    _check_references(settings, corpus)
    return corpus


def _check_references(settings: Settings[TrainingConfig], corpus: Corpus) -> None:
    """UserError for a split of sources alone, unless an evaluation writes texts for them."""
    alone = next((name for name, split in corpus.splits.items() if not split.has_texts), None)
    writes = settings.mode in ("eval", "eval_test") and "seq2seq_candidates" in settings.program.flags
    if alone is None or (writes and settings.checkpoint_args.get("seq2seq", True)):
        return
    raise UserError(
        f"{corpus.files.get(alone, alone)} holds sources without references (no column {corpus.columns['text']!r}), "
        "for which only --eval and --eval_test of a run on pairs write texts: add the references, or name another file"
    )


def make_train_state(
    run: RunContext[TrainingConfig], network: torch.nn.Module, ema: EMA | None = None, **fields: Any
) -> State:
    """Training state at step 0: the network, with the optimizer and the learning-rate schedule of the flags.

    Shard the weights first, since the optimizer holds references to them. fields: further fields of State.
    """
    settings, options = run.settings, run.settings.config.optimizer
    optimizer = make_optimizer(network, options)
    schedule = make_lr_schedule(optimizer, options, settings.config.loop.num_train_steps)
    return State(network, optimizer, schedule, ema, seed=settings.config.loop.random_seed, dist=run.dist, **fields)
