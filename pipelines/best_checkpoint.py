"""The best checkpoint of a run by a validation metric, and an early end by patience. Both survive interruptions.

A program with validations needs three lines:

    check_best_metric(run.settings, KNOWN, default="val_loss")     # before hours of training
    score = best_score(run, metrics, default="val_loss")           # after each validation; metrics: as they are logged
    save_if_best(run, state, score)                                # every rank calls it

--patience then works by itself (pipelines.training). --checkpoint chooses the checkpoint that is read (checkpoint_of).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.options import OVERLAPS
from evaluation.report.metric_names import HIGHER, LOWER, find
from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext, recorded_weights
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.cli.settings import Settings
from utils.distributed import gather_objects
from utils.errors import UserError, did_you_mean
from utils.pretrained import read_checkpoint
from utils.state import State

# Ends of the keys of metrics that validations of several programs log, for check_best_metric.
LOSSES = ("val_ema_loss", "val_loss")
SAMPLE_METRICS = ("mauve", "perplexity", "diversity", "memorization", "linear_auc", "train_copy_rate")
SCORER_METRICS = ("mauve", "perplexity")  # those that need a language model, or an encoder
CLASS_METRICS = ("label_accuracy", "mean_class_accuracy")
PAIR_METRICS = (
    *OVERLAPS, *(f"mbr_{name}" for name in OVERLAPS), "diffuseq_bleu", "perplexity", "diversity", "linear_auc",
)  # fmt: skip
# beside those of NAMES
_LARGER = ("diversity", "unique_wordcount", "accuracy", "match", "recovery", "similarity", "share_of_latents", "margin")


class Score(NamedTuple):
    """A value of the metric that selects the best checkpoint."""

    metric: str  # as --best_metric names it
    value: float
    key: str = ""  # its key in metrics.jsonl, if another

    def is_better_than(self, other: float) -> bool:
        return self.value > other if larger_is_better(self.key or self.metric) else self.value < other


def larger_is_better(metric: str) -> bool:
    """Whether larger values of a metric are better: of MAUVE, overlaps and accuracies; not of losses, perplexities,
    memorization, repetitions and numbers of empty texts."""
    # without the quarter of the noise levels, or the noise, that a number is of
    last = re.sub(r"_(q\d|[\d.]+(e-\d+)?)$", "", metric.rpartition("/")[2])
    end, name = find(last)
    return name.good == HIGHER if name.good in (HIGHER, LOWER) else (end or last).endswith(_LARGER)


def metric_name(settings: Settings[TrainingConfig], default: str | None) -> str | None:
    """The metric of --best_metric, else the default of the program; None: the run keeps no best checkpoint."""
    return settings.config.best.best_metric or default


def check_best_metric(settings: Settings[TrainingConfig], known: Collection[str], default: str | None = None) -> None:
    """UserError if --best_metric names no metric of this kind of run, or --patience has no metric to watch.

    known: ends of the metrics' keys. A name with a slash is a key, and is looked for when there are metrics.
    """
    best = settings.config.best
    if settings.mode not in (None, "resume_training"):
        return
    if best.patience is not None and metric_name(settings, default) is None:
        raise UserError(f"--patience {best.patience} watches a metric: name it with --best_metric, or leave it out")
    name = best.best_metric
    if name is None or "/" in name or any(_fits(name, key) for key in known):
        return
    raise UserError(
        f"--best_metric {name} is no validation metric of this run{did_you_mean(name, known)}: choose one of "
        f"{', '.join(known)}, or a key of metrics.jsonl"
    )


def best_score(
    run: RunContext[Any], metrics: Mapping[str, Any] | None, default: str | None, *, only: str = ""
) -> Score | None:
    """The score of a validation by --best_metric, else by the metric `default`; None if it is nan or there is none.

    metrics: what was measured, by its key in metrics.jsonl; None on ranks that have no metrics. only: if a key of that
    beginning fits, no other is taken. Raises UserError if there is no such metric: nothing is lost, as a checkpoint
    precedes each validation.
    """
    name = metric_name(run.settings, default)
    if name is None or metrics is None:
        return None
    numbers = {key: float(x) for key, x in metrics.items() if isinstance(x, int | float) and not isinstance(x, bool)}
    key = find_metric(name, numbers, only)
    if key is None:
        raise UserError(
            f"--best_metric {name} is not among the metrics of a validation of this run{did_you_mean(name, numbers)}: "
            f"choose one of {', '.join(sorted(numbers))}, and go on with --resume_training"
        )
    return None if math.isnan(numbers[key]) else Score(name, numbers[key], key)


def find_metric(name: str, metrics: Mapping[str, Any], only: str = "") -> str | None:
    """The key that a name means: the key itself, else one that ends like it; None if there is none.

    "mauve" means model/greedy/gpt2_val_mauve rather than ..._train_mauve, "rougeL" rather one sample's than that of the
    chosen candidates, and "midpoints/perplexity" means midpoints/greedy/perplexity.
    """
    if name in metrics:
        return name
    fitting = [key for key in metrics if _fits(name, key)]
    preferred = [key for key in fitting if key.startswith(only)]

    def distance(key: str) -> tuple[bool, int]:
        last = key.rpartition("/")[2]
        return key.startswith("reference/") or "train_" in last, len(re.split("[_/]", last))

    return min(preferred or fitting, key=distance, default=None)  # of equal ones the first


def _fits(name: str, key: str) -> bool:
    *places, end = name.split("/")
    *parts, last = key.split("/")
    remaining = iter(parts)
    return (last == end or last.endswith(f"_{end}")) and all(place in remaining for place in places)


def save_if_best(
    run: RunContext[Any], state: State, score: Score | None, *, always: bool = False, **metadata: Any
) -> None:
    """Save weights and averaged weights to best/ if the score is better than all earlier ones. Every rank must call it.

    score: that of rank 0 counts; if it is None there, nothing is saved. always: save whatever the score is. metadata:
    entries of the checkpoint in best/.
    """
    found = gather_objects(run.dist, [score])[0]
    if found is None:
        return
    name, value = found.metric, found.value
    if not always and state.best.get("metric") == name and not found.is_better_than(state.best["value"]):
        if value == state.best["value"]:
            run.log_once(
                f"note: {name} is {value:.4g} at step {state.step} as at step {state.best['step']}: of equal steps "
                "best/ holds the first; if that goes on, select by another metric with --best_metric, or evaluate the "
                "newest checkpoint with --checkpoint newest",
                "tie of the best",
            )
        return
    state.best = {"metric": name, "value": value, "step": state.step}
    state.save_best(run.folder, **metadata)
    run.log(f"new best {name}: {value:.4g} at step {state.step}")


def load_best_score(folder: Path, from_checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The score of best/, which is saved after the checkpoint. {} if best/ is gone or cannot be used.

    The next evaluation is then the best so far, whatever the checkpoint says: a score without weights helps nobody.
    """
    if not from_checkpoint and not checkpoints.has_best(folder):
        return {}
    try:
        return dict(checkpoints.load_best(folder).metadata["best"])
    except UserError as error:
        print(f"note: {error}; the next evaluation becomes the best", file=sys.stderr)
        return {}


def validations_since_best(state: State, interval: int) -> int:
    """Validations after the one that gave the best checkpoint; 0 if there is none yet. interval: steps between them."""
    return state.step // interval - state.best["step"] // interval if "step" in state.best else 0


def is_out_of_patience(settings: Settings[TrainingConfig], state: State, interval: int) -> bool:
    """Whether --patience validations in a row were no better than the best."""
    patience = settings.config.best.patience
    return patience is not None and validations_since_best(state, interval) >= patience


def uses_best(settings: Settings[Any], saved: Mapping[str, Any], *, default: bool = False) -> bool:
    """Whether a trained run is read from its best checkpoint: by --checkpoint; unset: if the run was trained with a
    --best_metric, else by `default`, the habit of that kind of run. saved: args.json of the run."""
    chosen = settings.config.best.checkpoint
    if settings.values.get("newest_checkpoint"):
        return False
    if chosen is None:
        return default or saved.get("best_metric") is not None
    return chosen == "best"


def checkpoint_of(folder: Path, settings: Settings[Any], *, default: bool = False) -> checkpoints.Checkpoint:
    """The checkpoint of the run folder of an evaluation that --checkpoint chooses, see uses_best.

    Raises UserError if the folder has no best checkpoint and --checkpoint best asks for it.
    """
    best = uses_best(settings, settings.checkpoint_args, default=default)
    return read_checkpoint(folder, best, settings.config.best.checkpoint == "best")


def checkpoint_of_denoiser(folder: Path, settings: Settings[Any]) -> checkpoints.Checkpoint:
    """The checkpoint of another denoiser's run that --checkpoint chooses; unset: that which its evaluations read."""
    saved = read_args(folder)
    best = uses_best(settings, saved, default=bool(saved.get("seq2seq")))
    return read_checkpoint(folder, best, settings.config.best.checkpoint == "best")


def checkpoint_to_train_on(settings: Settings[Any]) -> checkpoints.Checkpoint:
    """The checkpoint in --resume_dir of an autoencoder or decoder that is trained on; unset: the best.

    The copy in the run folder of a denoiser holds best/ alone. It is read then, as --checkpoint chooses the weights of
    that denoiser.
    """
    folder = settings.path("resume_dir")
    if checkpoints.has_best(folder) and not checkpoints.has_checkpoint(folder):
        return checkpoints.load_best(folder)
    return read_checkpoint(folder, uses_best(settings, {}, default=True), settings.config.best.checkpoint == "best")


def given_checkpoint(settings: Settings[Any], flag: str) -> dict[str, str]:
    """--checkpoint as an argument of load_run, for the run that another flag names: none if it is not given.

    A resumed run reads the same checkpoint of that run as before, so that it goes on as if it had not stopped.
    UserError if another one is asked for.
    """
    typed, before = settings.config.best.checkpoint, recorded_weights(settings, flag)
    if before is None or before.checkpoint is None:
        return {} if typed is None else {"checkpoint": typed}
    if typed not in (None, before.checkpoint):
        raise UserError(
            f"--checkpoint {typed}: {settings.config.run.resume_dir} reads the {before.checkpoint} checkpoint of its "
            f"--{flag} since its first step: leave --checkpoint out"
        )
    return {"checkpoint": before.checkpoint}
