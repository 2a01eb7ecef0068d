"""Runs several training programs one after another, in one process: the stages of quickstart and of experiments.

A stage is a program with its flags. A finished stage is skipped, an interrupted one is resumed, and all are timed.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from pipelines.cli.programs import AUTOENCODER, CAUSAL_LM, DIFFUSION, PRETRAIN, SEQ2SEQ, TEXT_DECODER
from utils.cli.parse import check_flags, parse
from utils.cli.settings import Program, Settings
from utils.cli.words import as_words
from utils.errors import exit_on_user_error
from utils.run_folder import write_json

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A program with its flags, in which {root} is replaced by the folder of all stages."""

    name: str  # name of the stage and of its folder
    program: Program
    title: str
    done_file: str  # file that the program writes at its last evaluation
    flags: str  # as in a shell; a path of the caller in it is quoted by shlex.quote

    def argv(self, root: Path) -> list[str]:
        return fill(self.flags, root=root)


def fill(flags: str, **places: object) -> list[str]:
    """The words of flags, as a shell splits them, in which {name} is replaced by its place, such as {root}.

    A place may hold blanks, quotes and braces: it is put in after the flags are split.
    """
    return [
        re.sub(r"\{(\w+)\}", lambda found: str(places.get(found[1], found[0])), word) for word in shlex.split(flags)
    ]


# An autoencoder whose decoder is robust to sampling errors: few latents, and noise of up to sigma = 1 on nine texts of
# ten. Nearly one latent per token reconstructs far better, but samples of the denoiser then decode to nonsense
# (ROCStories on a CPU: reconstruction BLEU 92 with 96 latents, 28 with these).
ROBUST_AUTOENCODER = (
    " --num_encoder_latents 16 --dim_ae 32 --num_layers 2 --l2_normalize_latents --lm_mode ft --max_latent_noise 1.0"
    " --latent_noise_prob 0.9"
)


def adapt_decoder_stage(autoencoder: str, more: str, folder: str = "{root}/autoencoder") -> Stage:
    """Fine-tune the decoder of an autoencoder on latents of the denoiser in {root}/diffusion.

    autoencoder: flags of the autoencoder. more: further flags. folder: run folder of the autoencoder.
    """
    return Stage(
        "decoder",
        AUTOENCODER,
        "the decoder, fine-tuned on latents of the denoiser",
        "validation.json",
        f"{autoencoder} --lm_mode decoder --resume_dir {folder} --denoiser_run {{root}}/diffusion --denoiser_prob 0.7"
        f" --max_latent_noise 0 {more}",
    )


class StageTimer:
    """Seconds per stage, saved to a file, so that they add up over interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, name: str, seconds: float) -> None:
        self.count(name, seconds)
        self.save()

    def count(self, name: str, seconds: float) -> None:
        """Add seconds without saving them."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)

    def save(self) -> None:
        write_json(self.path, self.seconds)

    def time(self, name: str, fn: Callable[[], T]) -> T:
        """Call fn, and add its seconds, also where it raises."""
        began = time.monotonic()
        try:
            return fn()
        finally:
            self.add(name, time.monotonic() - began)

    def with_total(self) -> dict[str, float]:
        return {**self.seconds, "total": round(sum(self.seconds.values()), 1)}


# flags of a call that run_stage gives itself, or that are read from args.json
OF_RESUMING = ("output_dir", "save_dir", "resume_dir", "resume_training", "config", "checkpoint", "max_seconds")
LATENT_CACHE_FLAG = "--latent_cache_dir"
STEP_FLAGS = ("--num_train_steps", "--lr_warmup_steps", "--eval_every", "--save_and_sample_every")


def scale_steps(stage: Stage, factor: float) -> Stage:
    """Multiply the number of steps, warm-up and intervals of a stage by a factor; each is at least 1."""
    words = shlex.split(stage.flags)
    for i, word in enumerate(words[:-1]):
        if word in STEP_FLAGS:
            words[i + 1] = str(max(1, round(factor * int(words[i + 1]))))
    return replace(stage, flags=shlex.join(words))


def run_stage(stage: Stage, root: Path, extra: Sequence[str] = ()) -> int:
    """Start, resume or skip a stage. extra: more flags. Returns the exit code of the program.

    Done is a stage whose last checkpoint is of its last step with nothing pending after it, and that has written its
    done_file: an interrupted one has such a file, too, of its last evaluation.
    """
    from pipelines.training import is_finished
    from utils.checkpoints import has_checkpoint

    folder = root / stage.name
    if (folder / stage.done_file).is_file() and is_finished(folder):
        print(f"{stage.name}: already done", flush=True)
        return 0
    if has_checkpoint(folder):
        typed = stage.argv(root)
        argv = ["--resume_training", "--resume_dir", str(folder), *_of_each_call(stage.program, typed)]
        argv += [*_latent_cache(typed), *extra]
    else:
        argv = [*stage.argv(root), "--output_dir", str(folder), *extra]
    banner(stage.name, stage.title, stage.program, argv)
    return run_program(stage.program, argv)


def _of_each_call(program: Program[Any], argv: Sequence[str]) -> list[str]:
    """The flags of a stage that hold for one call of its program alone, such as those of trackers and the device; all
    others are in args.json.
    """
    settings = check_flags(program, argv)
    names = [name for name in sorted(settings.explicit) if program.flags[name].may_change == "invocation"]
    return [word for name in names if name not in OF_RESUMING for word in as_words(program, name, settings.get(name))]


def _latent_cache(argv: Sequence[str]) -> list[str]:
    """The flag of the latent cache among those of a stage, which a resumed one needs: a relative path in its args.json
    is one from the folder in which the stage was begun.
    """
    found: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == LATENT_CACHE_FLAG:
            found = [name, value if equals else following]  # the last one counts
    return found


MODULES = {  # program -> the module whose function `train` runs it
    PRETRAIN.name: "pipelines.pretrain",
    AUTOENCODER.name: "pipelines.train_autoencoder",
    DIFFUSION.name: "pipelines.train_diffusion",
    CAUSAL_LM.name: "pipelines.train_causal_lm",
    SEQ2SEQ.name: "pipelines.train_seq2seq",
    TEXT_DECODER.name: "pipelines.train_text_decoder",
}
PROGRAMS = (PRETRAIN, AUTOENCODER, DIFFUSION, CAUSAL_LM, SEQ2SEQ, TEXT_DECODER)


def run_program(program: Program, argv: Sequence[str]) -> int:
    """Run a program in this process, so that torch is imported only once; then release the memory of the GPU, which a
    program in a process of its own may need next.
    """
    from utils.device_memory import release_device_memory

    settings = parse(program, list(argv))
    train: Callable[[Settings[Any]], int] = import_module(MODULES[program.name]).train
    try:
        return train(settings)
    finally:
        release_device_memory()


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """python -m pipelines.stages NAME FLAGS: run the program of that name, from any folder."""
    name, *rest = sys.argv[1:] if argv is None else argv
    return run_program(next(program for program in PROGRAMS if program.name == name), rest)


def show_page(root: Path, runs: Sequence[Path]) -> None:
    """Write root/report.html of runs, unless it is there, and print where."""
    from evaluation.optional import MissingPackage
    from evaluation.report.page import write_page
    from evaluation.report.run_files import read_runs

    page = root / "report.html"
    if not page.is_file():
        try:
            write_page(read_runs(runs), page)
        except MissingPackage as error:  # an environment of the user's
            print(f"note: no page: {error}")
            return
    again = shlex.join(["python", "-m", "evaluation.report", *map(str, runs), "--output", str(page)])
    print(f"page: {page} (open it in a browser; {again} writes it again)")


def banner(name: str, title: str, program: Program | None = None, argv: Sequence[str] = ()) -> None:
    """Print the title of a stage, and the command that runs it alone."""
    print(f"\n== {name}: {title}", flush=True)
    if program is not None:
        print(f"   {program.name} {shlex.join(argv)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
