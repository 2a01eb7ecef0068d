"""Several programs in a row in one process: stages, each the ordinary program with ordinary flags, timed and resumable.

A stage that is done is not done again; one that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.cli.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from utils.cli.parse import parse
from utils.cli.settings import Program
from utils.run_folder import write_json


@dataclass(frozen=True)
class Stage:
    """One program with its flags; {root} in them is the folder of the whole recipe."""

    name: str  # of its folder
    program: Program
    title: str
    done: str  # a file in its folder, written last
    flags: str

    def argv(self, root: Path) -> list[str]:
        return [part.format(root=root) for part in self.flags.split()]


# Few latents, disturbed in nine texts of ten by up to nothing but noise: the decoder then writes sentences from any
# latents. Nearly a latent for each token instead copies texts far better, and samples word salad (ROCStories on a CPU:
# reconstruction BLEU 92 with 96 latents, 28 with these).
ROBUST_AUTOENCODER = (
    " --num_encoder_latents 16 --dim_ae 32 --num_layers 2 --l2_normalize_latents --lm_mode ft --max_latent_noise 1.0"
    " --latent_noise_prob 0.9"
)


def adapt_decoder_stage(autoencoder: str, more: str, folder: str = "{root}/autoencoder") -> Stage:
    """The decoder of an autoencoder trained on for {root}/diffusion. autoencoder: its flags; folder: its run."""
    return Stage(
        "decoder",
        AUTOENCODER,
        "what writes texts, for what the denoiser makes",
        "validation.json",
        f"{autoencoder} --lm_mode decoder --resume_dir {folder} --denoiser_run {{root}}/diffusion --denoiser_prob 0.7"
        f" --max_latent_noise 0 {more}",
    )


class StageTimer:
    """Seconds per stage, kept on disk, so that an interrupted and continued recipe still adds up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        write_json(self.path, self.seconds)

    def time(self, name: str, deed: Callable[[], int]) -> int:
        began = time.monotonic()
        try:
            return deed()
        finally:
            self.add(name, time.monotonic() - began)

    def with_total(self) -> dict[str, float]:
        return {**self.seconds, "total": round(sum(self.seconds.values()), 1)}


STEP_FLAGS = ("--num_train_steps", "--lr_warmup_steps", "--eval_every", "--save_and_sample_every")


def scale_steps(stage: Stage, factor: float) -> Stage:
    """The stage with fewer (or more) steps, at least one; warm-up and intervals in proportion."""
    words = stage.flags.split()
    for i, word in enumerate(words[:-1]):
        if word in STEP_FLAGS:
            words[i + 1] = str(max(1, round(factor * int(words[i + 1]))))
    return replace(stage, flags=" ".join(words))


def run_stage(stage: Stage, root: Path, extra: Sequence[str] = ()) -> int:
    """Start, continue or pass over a stage. extra: more flags. Returns its exit code."""
    from utils.checkpoints import has_checkpoint

    folder = root / stage.name
    if (folder / stage.done).is_file():
        print(f"{stage.name}: done already", flush=True)
        return 0
    if has_checkpoint(folder):
        argv = ["--resume_training", "--resume_dir", str(folder), *extra]
    else:
        argv = [*stage.argv(root), "--output_dir", str(folder), *extra]
    banner(stage.name, stage.title, stage.program, argv)
    return run_program(stage.program, argv)


def run_program(program: Program, argv: Sequence[str]) -> int:
    """One of the three programs in this process, which has loaded torch already."""
    settings = parse(program, list(argv))
    from pipelines import pretrain, train_autoencoder, train_diffusion

    runs = {PRETRAIN.name: pretrain.train, AUTOENCODER.name: train_autoencoder.train, DIFFUSION.name: train_diffusion.train}
    return runs[program.name](settings)


def banner(name: str, title: str, program: Program | None = None, argv: Sequence[str] = ()) -> None:
    """What begins now, and the command that does the same by itself."""
    print(f"\n== {name}: {title}", flush=True)
    if program is not None:
        print(f"   {program.name} {' '.join(argv)}", flush=True)
