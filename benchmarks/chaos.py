"""Kill trainings by SIGKILL at random moments and inside every step of a save, restart them, and compare the weights.

    python benchmarks/chaos.py --kills 600 --seed 0 --output_dir runs/chaos

Trains a tiny language model, an autoencoder, a denoiser on its latents (which it caches) and a denoiser of token
embeddings on pairs (which keeps a best checkpoint), each first without a kill. Then each of them is killed again and
again: at every call of the operating system of a save, once; at random calls of the whole program; at random moments.
After every kill, no checkpoint may be damaged, the newest may not be older than before, and the best one may not be
gone. At the end the weights, the averaged weights, the optimizer, the best checkpoint and the logged metrics must be
those of the run without a kill, bit for bit, and no file of a killed process may be left.

A latent cache and a scorer are then built by two processes at once, of which one or both are killed.

One process trains at a time; it is forked from this one, which has imported everything, so that a kill costs about a
second. Writes chaos.json and chaos.log. Exit code 1 if anything differs. How long: 600 kills take about ten minutes on
one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory
os.environ |= {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch

from benchmarks.chaos_crashes import Crash
from utils import checkpoint_folder, checkpoints
from utils.array_cache import Layout, open_or_build
from utils.checkpoints import fingerprint
from utils.errors import UserError, exit_on_user_error
from utils.progress import ProgressBar
from utils.run_folder import git_commit, package_versions, write_json
from utils.trackers import read_metrics

COMMON = "--device cpu --no_wandb --log_every 1 --lr_warmup_steps 2 --max_seq_len 24 --random_seed 5"
SAMPLED = " --num_samples 4 --eval_batch_size 4 --sampling_timesteps 2 --decoding greedy --scorer {parts}/scorer"
DENOISER = " --tx_dim 64 --tx_depth 1 --train_batch_size 8 --num_train_steps 24 --save_every 2" + SAMPLED
STORIES = " --train_file {parts}/train.jsonl --valid_file {parts}/valid.jsonl --test_file {parts}/test.jsonl"
PAIRS = " --train_file {parts}/pairs.jsonl --valid_file {parts}/pairs-valid.jsonl"
LANGUAGE_MODEL = " --vocab_size 200 --d_model 64 --layers 1 --heads 2 --train_batch_size 8 --eval_texts 4"
TRAININGS = {  # name -> (program, flags)
    "language_model": (
        "pretrain",
        COMMON + STORIES + LANGUAGE_MODEL + " --num_train_steps 12 --save_every 2 --eval_every 4",
    ),
    "autoencoder": (
        "autoencoder",
        COMMON + STORIES + " --enc_dec_model {parts}/language_model --num_encoder_latents 4 --dim_ae 64"
        " --num_layers 1 --num_train_steps 24 --save_every 2 --eval_every 8 --train_batch_size 8 --eval_texts 4"
        " --decoding greedy",
    ),
    "denoiser": (
        "diffusion",
        COMMON + STORIES + " --latent_model_path {parts}/autoencoder --self_condition --save_and_sample_every 8"
        " --config val_loss_examples=8" + DENOISER,
    ),
    "embeddings": (
        "diffusion",
        COMMON + PAIRS + " --latent_space embeddings --embedding_dim 8 --timesteps 20 --save_and_sample_every 4"
        " --learning_rate 1e-2 --config val_loss_examples=8" + DENOISER,
    ),
}
PROGRAMS = {  # name -> module
    "pretrain": "pipelines.pretrain",
    "autoencoder": "pipelines.train_autoencoder",
    "diffusion": "pipelines.train_diffusion",
}
IMPORTED = ("evaluation.scorers", "transformers.models.gpt2.modeling_gpt2")  # by every attack, besides the programs
NEEDED = {"language_model": {"autoencoder", "denoiser"}, "autoencoder": {"denoiser"}}  # training -> those that need it
SCORER = {"steps": 4, "width": 32, "layers": 1, "heads": 2, "vocab_size": 300, "max_length": 64}
LEFT_BY_KILLS = ("*.partial", "*.partial.npz", "*.replaced", "*.removed*", "shards", "plan.json")
SHARE = 0.5  # random kills fall into this part of a whole run: a restarted one is shorter
LONGEST = 300  # seconds that a child may take


# ------------------------------------------------------------------------------------------------------------ children


@dataclass
class Child:
    """A forked process that runs a function; its output goes to a file."""

    pid: int
    log: Path

    def ended(self) -> int | None:
        """Exit code, -9 for SIGKILL; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self) -> int:
        limit = time.monotonic() + LONGEST
        while (code := self.ended()) is None:
            if time.monotonic() > limit:
                self.kill()
                raise SystemExit(f"a child takes longer than {LONGEST} s; its output is in {self.log}")
            time.sleep(0.005)
        return code

    def wait_or_kill(self, seconds: float) -> int:
        """Kill it after some seconds unless it has ended."""
        limit = time.monotonic() + seconds
        while (code := self.ended()) is None:
            if time.monotonic() > limit:
                self.kill()
                return self.wait()
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def start(function: Callable[[], int | None], log: Path, crash: Crash | None = None) -> Child:
    """Fork a child that calls the function and exits with what it returns."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1), os.dup2(handle, 2)
        if crash is not None:
            crash.install()
        code = function() or 0
        if crash is not None and crash.call == 0:
            crash.write_note(json.dumps({**crash.most, "all": crash.seen}))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def with_its_imports(function: Callable[[], int | None], log: Path) -> int:
    """Run a function in a child, then import here what it imported: later children need not. Returns the exit code."""
    names = log.with_suffix(".modules")

    def run() -> int | None:
        code = function()
        names.write_text("\n".join(sys.modules))
        return code

    code = start(run, log).wait()
    for name in names.read_text().splitlines() if code == 0 else []:
        if name not in sys.modules and not name.startswith("__"):
            with suppress(Exception):
                import_module(name)
    return code


def run_program(program: str, flags: list[str]) -> int:
    """A training program, as its command line runs it."""
    from pipelines.cli import programs
    from utils.cli.parse import parse

    train = import_module(PROGRAMS[program]).train
    return exit_on_user_error(lambda: train(parse(getattr(programs, program.upper()), flags)))()


# ------------------------------------------------------------------------------------------------------------- reports


@dataclass
class Report:
    """What was killed where, and what went wrong."""

    folder: Path
    wanted: int
    kills: Counter[str] = field(default_factory=Counter)  # "denoiser, call of a save" -> kills
    calls: Counter[str] = field(default_factory=Counter)  # call at which a process died -> kills
    problems: list[str] = field(default_factory=list)
    finished: Counter[str] = field(default_factory=Counter)  # runs that were compared
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.bar = ProgressBar("kills", self.wanted, unit="kill")

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def killed(self, what: str, how: str, call: str | None = None) -> None:
        self.kills[f"{what}, {how}"] += 1
        self.calls[call or "a moment"] += 1
        self.bar.advance_to(min(self.total, self.wanted), f"{len(self.problems)} problems")

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self.log(f"PROBLEM: {text}")

    def log(self, text: str) -> None:
        with (self.folder / "chaos.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - self.started:7.1f} s  {text}\n")

    def write(self, arguments: dict[str, Any], calls_of_saves: dict[str, Any]) -> None:
        seconds = time.monotonic() - self.started
        write_json(
            self.folder / "chaos.json",
            {
                "command": f"python benchmarks/chaos.py --kills {arguments['kills']} --seed {arguments['seed']} "
                f"--trainings {' '.join(arguments['trainings'])} --output_dir OUT",
                "commit": git_commit(),
                "versions": package_versions(),
                "kills": self.total,
                "seconds": round(seconds, 1),
                "kills_by_kind": dict(sorted(self.kills.items())),
                "kills_by_call": dict(self.calls.most_common()),
                "calls_of_a_save": calls_of_saves,
                "runs_compared": dict(self.finished),
                "problems": self.problems,
            },
        )
        self.log(f"{self.total} kills in {seconds:.0f} s, {len(self.problems)} problems")
        self.bar.close()


# ----------------------------------------------------------------------------------------------------------- trainings


def content(run: Path) -> dict[str, Any]:
    """Hashes of the newest and of the best checkpoint, and the logged metrics but for those of speed."""
    newest = checkpoints.load(run)
    found: dict[str, Any] = {name: fingerprint(tensors) for name, tensors in newest.tensors.items()}
    found["step"] = newest.step
    if checkpoints.has_best(run):
        best = checkpoints.load_best(run)
        found |= {f"best: {name}": fingerprint(tensors) for name, tensors in best.tensors.items()}
        found["best: step"] = best.step
    found["metrics"] = [{name: x for name, x in line.items() if "second" not in name} for line in read_metrics(run)]
    return found


def first_difference(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """The first lines of two logs that differ, for a person."""
    for one, other in ((a or {}, b or {}) for a, b in zip_longest(wanted, found)):
        if one != other:
            names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            values = ", ".join(f"{name} {one.get(name)} | {other.get(name)}" for name in names[:5])
            return f"steps {one.get('step')} | {other.get('step')}: {values}"
    return "the logs are equal"


class Training:
    """One training, killed again and again, and compared with the same training without a kill."""

    def __init__(self, name: str, folder: Path, report: Report) -> None:
        self.name, self.report = name, report
        self.program, flags = TRAININGS[name]
        self.flags = flags.format(parts=folder / "parts").split()
        self.whole, self.run, self.log = folder / f"{name}-whole", folder / name, folder / f"{name}.txt"
        self.note = folder / f"{name}.note"

    def train_whole(self) -> None:
        """Train without a kill, twice: the second also counts the calls. Both must be equal."""
        failed = with_its_imports(lambda: run_program(self.program, self._flags(self.whole)), self.log)
        begin = time.monotonic()
        if failed or self._start(self.run, Crash(0, None, self.note)).wait():
            raise SystemExit(f"{self.name} fails without a kill: {self.log.read_text()[-3000:]}")
        self.seconds = time.monotonic() - begin
        counts = json.loads(self.note.read_text())
        self.num_calls = counts.pop("all")
        self.save_calls: dict[str, int] = counts
        self.wanted = content(self.whole)
        if (again := content(self.run)) != self.wanted:
            where = first_difference(self.wanted["metrics"], again["metrics"])
            self.report.problem(f"{self.name}: two runs without a kill differ; {where}")
        shutil.rmtree(self.run)
        self.report.log(
            f"{self.name}: {self.seconds:.1f} s without a kill, {self.num_calls} calls, of a save at most "
            + ", ".join(f"{n} ({name})" for name, n in counts.items())
        )

    def targets(self, draw: random.Random) -> Iterator[tuple[str, str | None, float]]:
        """Endless: (how, save, call or seconds). Every call of a save comes once before any comes again."""
        while True:
            steps = [(name, n) for name, most in self.save_calls.items() for n in range(1, most + 1)]
            draw.shuffle(steps)
            for i, (name, n) in enumerate(steps):
                yield "call of a save", name, n
                if i % 2:
                    yield "random call", None, draw.randint(1, max(1, round(SHARE * self.num_calls)))
                else:
                    yield "random moment", None, draw.uniform(0, SHARE * self.seconds)

    def kill_once(self, target: tuple[str, str | None, float]) -> bool:
        """Start or restart, and kill. Returns whether the training ended before it was killed."""
        how, save, at = target
        before = self._state()
        self.note.unlink(missing_ok=True)
        if how == "random moment":
            code = self._start(self.run, None).wait_or_kill(at)
        else:
            code = self._start(self.run, Crash(int(at), save, self.note)).wait()
        if code == -signal.SIGKILL:
            call = self.note.read_text() if self.note.exists() else None
            self.report.killed(self.name, how, call)
            self._check(before, f"killed at {call or 'a moment'} ({how}, {at:.4g})")
        elif code:
            tail = self.log.read_text().strip().splitlines()[-1:]
            self.report.problem(f"{self.name} ends with {code} after kills: {tail}")
            shutil.rmtree(self.run, ignore_errors=True)
        return code == 0

    def finish(self) -> None:
        """Restart without a kill, compare, and remove the run."""
        code = self._start(self.run, None).wait()
        problem = self._difference() if code == 0 else f"it ends with {code}: {self.log.read_text()[-500:]}"
        if problem is None:
            self.report.log(f"{self.name}: {self.report.total} kills so far; the run equals the one without a kill")
        else:
            self.report.problem(f"{self.name}, after kills: {problem}")
        self.report.finished[self.name] += 1
        shutil.rmtree(self.run, ignore_errors=True)

    def _difference(self) -> str | None:
        """What differs between this run and the one without a kill, or is left in its folder."""
        found = content(self.run)
        different = [name for name in {**self.wanted, **found} if found.get(name) != self.wanted.get(name)]
        if different:
            return f"{', '.join(different)} differ; {first_difference(self.wanted['metrics'], found['metrics'])}"
        left = [str(path.relative_to(self.run)) for name in LEFT_BY_KILLS for path in self.run.rglob(name)]
        return f"left behind: {', '.join(left)}" if left else None

    def _flags(self, run: Path) -> list[str]:
        if checkpoints.has_checkpoint(run):
            return ["--resume_training", "--resume_dir", str(run), "--no_wandb"]
        return [*self.flags, "--output_dir", str(run)]

    def _start(self, run: Path, crash: Crash | None) -> Child:
        return start(lambda: run_program(self.program, self._flags(run)), self.log, crash)

    def _state(self) -> tuple[int, int]:
        """Steps of the newest and of the best good checkpoint, -1 without one. Reports damaged ones."""
        for _, path in checkpoints._candidates(self.run / "checkpoints"):
            try:
                checkpoint_folder.verify(path)
            except checkpoint_folder.DamagedError as damage:
                self.report.problem(f"{self.name}: {path.name} is damaged: {damage}")
        try:
            newest = checkpoints.load(self.run).step if checkpoints.has_checkpoint(self.run) else -1
            best = checkpoints.load_best(self.run).step if checkpoints.has_best(self.run) else -1
        except UserError as error:
            self.report.problem(f"{self.name}: {error}")
            return -1, -1
        return newest, best

    def _check(self, before: tuple[int, int], what: str) -> None:
        now = self._state()
        if now[0] < before[0]:
            self.report.problem(f"{self.name}, {what}: the newest checkpoint was {before[0]}, and is {now[0]}")
        if before[1] >= 0 and now[1] < 0:
            self.report.problem(f"{self.name}, {what}: the best checkpoint is gone")


# ------------------------------------------------------------------------------------------ two processes at once


def build_cache(folder: Path) -> None:
    """A cache of 60 rows in shards of four, slow enough to be killed in between."""
    from utils import array_cache

    array_cache.SHARD_ROWS = 4
    lengths = np.arange(60) % 5

    def encode(first: int, last: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for i in range(first, last):
            time.sleep(0.001)
            row = np.arange(12, dtype=np.float32).reshape(1, 3, 4) + i
            yield np.array([i]), {"x0": row, "source": np.full((1, 5, 2), i, np.float32)}

    open_or_build(folder, "key", 60, {"x0": Layout((3, 4)), "source": Layout((2,), "float32", lengths)}, encode)


def train_scorer(folder: Path, texts: list[str]) -> None:
    from evaluation import scorers

    scorers.load(None, texts=texts, folder=folder, **SCORER)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    """Visible files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


class Shared:
    """A folder that two processes make at once: they are killed, one or both; the last two finish it."""

    def __init__(self, name: str, folder: Path, build: Callable[[Path], None], report: Report) -> None:
        self.name, self.report, self.build = name, report, build
        self.place, self.log, self.note = folder / name, folder / f"{name}.txt", folder / f"{name}.note"

    def make_whole(self) -> None:
        begin = time.monotonic()
        if self._start(Crash(0, None, self.note)).wait():
            raise SystemExit(f"{self.name} fails without a kill: {self.log.read_text()[-3000:]}")
        self.seconds = time.monotonic() - begin
        self.num_calls = json.loads(self.note.read_text())["all"]
        self.wanted = tree(self.place)
        shutil.rmtree(self.place)
        self.report.log(f"{self.name}: {self.seconds:.2f} s without a kill, {self.num_calls} calls")

    def round(self, draw: random.Random) -> None:
        """Three times two processes, of which the first is killed at a call or both at moments; then two finish."""
        for _ in range(3):
            at_call = draw.random() < 0.5
            crash = Crash(draw.randint(1, self.num_calls), None, self.note) if at_call else None
            self.note.unlink(missing_ok=True)
            pair = [self._start(crash), self._start(None)]
            if at_call:
                codes = [pair[0].wait(), pair[1].wait_or_kill(draw.uniform(0, 2 * self.seconds))]
            else:
                codes = [child.wait_or_kill(draw.uniform(0, self.seconds)) for child in pair]
            for child, code in zip(("first", "second"), codes, strict=True):
                call = self.note.read_text() if child == "first" and self.note.exists() else None
                if code == -signal.SIGKILL:
                    self.report.killed(self.name, "two at once", call)
                elif code:
                    self.report.problem(f"{self.name}: the {child} of two ends with {code}: {self._tail()}")
        pair = [self._start(None), self._start(None)]
        codes = [child.wait() for child in pair]
        if any(codes):
            self.report.problem(f"{self.name}: two after kills end with {codes}: {self._tail()}")
        elif (found := tree(self.place)) != self.wanted:
            different = sorted(name for name in {*found, *self.wanted} if found.get(name) != self.wanted.get(name))
            self.report.problem(f"{self.name}: {', '.join(different)} after kills differ")
        self.report.finished[self.name] += 1
        shutil.rmtree(self.place, ignore_errors=True)

    def _start(self, crash: Crash | None) -> Child:
        return start(lambda: self.build(self.place), self.log, crash)

    def _tail(self) -> str:
        return self.log.read_text()[-300:]


# ---------------------------------------------------------------------------------------------------------------- main


def prepare(folder: Path, trainings: list[str]) -> list[str]:
    """Write the corpora, and train what the trainings need. Returns the texts."""
    from dataset_utils import synthetic_stories

    parts = folder / "parts"
    synthetic_stories.write(parts, train=60, valid=12, test=12)
    texts = [json.loads(line)["text"] for line in (parts / "train.jsonl").read_text().splitlines()]
    for file, count in (("pairs.jsonl", 60), ("pairs-valid.jsonl", 8)):
        pairs = [{"source": text.split(".")[0], "target": text.split(".")[1].strip()} for text in texts[:count]]
        (parts / file).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    if with_its_imports(lambda: train_scorer(parts / "scorer", texts), folder / "parts.txt"):
        raise SystemExit((folder / "parts.txt").read_text()[-3000:])
    for name, needed_by in NEEDED.items():
        if not needed_by & set(trainings):
            continue
        program, flags = TRAININGS[name]
        words = [*flags.format(parts=parts).split(), "--output_dir", str(parts / name)]
        if with_its_imports(partial(run_program, program, words), folder / "parts.txt"):
            raise SystemExit((folder / "parts.txt").read_text()[-3000:])
    return texts


def attack(folder: Path, kills: int, seed: int, trainings: list[str]) -> Report:
    """Kill trainings and shared folders until the number of kills is reached. Returns the report, written."""
    torch.set_num_threads(1)  # a fork copies no threads; and sums have one order
    folder.mkdir(parents=True, exist_ok=True)
    report, draw = Report(folder, kills), random.Random(seed)
    for name in (*IMPORTED, *(PROGRAMS[TRAININGS[training][0]] for training in trainings)):
        import_module(name)
    git_commit()  # remembered: else each child would call git
    texts = prepare(folder, trainings)
    killed = [Training(name, folder, report) for name in trainings]
    shared = [
        Shared("latent_cache", folder, build_cache, report),
        Shared("scorer", folder, lambda place: train_scorer(place / "scorer", texts), report),
    ]
    for training in killed:
        training.train_whole()
    for part in shared:
        part.make_whole()
    endless = [training.targets(draw) for training in killed]
    lives = dict.fromkeys(trainings, 0)
    while report.total < kills:
        for training, targets in zip(killed, endless, strict=True):
            for _ in range(max(2, min(8, kills // 8))):
                if report.total >= kills:
                    break
                lives[training.name] += 1
                if training.kill_once(next(targets)) or lives[training.name] % 30 == 0:
                    training.finish()
        for part in shared:
            if report.total < kills:
                part.round(draw)
    for training in killed:
        training.finish()
    report.write(
        {"kills": kills, "seed": seed, "trainings": trainings},
        {training.name: training.save_calls for training in killed},
    )
    return report


@exit_on_user_error
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="empty or absent; it gets chaos.json and chaos.log"
    )
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    given = parser.parse_args()
    if given.output_dir.exists() and any(given.output_dir.iterdir()):
        raise UserError(f"--output_dir {given.output_dir} is not empty: name another folder")
    report = attack(given.output_dir.resolve(), given.kills, given.seed, given.trainings)
    print((given.output_dir / "chaos.log").read_text().splitlines()[-1])
    return int(bool(report.problems))


if __name__ == "__main__":
    raise SystemExit(main())
