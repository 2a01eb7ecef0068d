"""Training losses with caching, compilation, bfloat16, accumulation and two processes, next to those of a plain run.

    python benchmarks/loss_tables.py --output_dir runs/loss_tables [--steps 20] [--batch 16]
        [--stages denoiser,autoencoder] [--columns plain,cached,...]

It writes a corpus of embedded stories, trains a small language model, and then trains the same autoencoder and the same
denoiser once for each column of the table, from the same weights and with the same random numbers, without dropout.
Writes losses.json and table.txt: a row for each step, and the largest relative difference from the first column. About
5 CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
FLOAT32 = "--mixed_precision no"  # of every column but bf16, whatever the machine computes fast
OFF = f"--compile off {FLOAT32}"
# column -> flags, processes, micro-batches; a batch is divided among processes and micro-batches
COLUMNS: dict[str, tuple[str, int, int]] = {
    "plain": (OFF, 1, 1),
    "cached": (f"{OFF} CACHED=float32", 1, 1),
    "cached float16": (f"{OFF} CACHED=float16", 1, 1),
    "cached bfloat16": (f"{OFF} CACHED=bfloat16", 1, 1),
    "compiled": (f"--compile on {FLOAT32}", 1, 1),
    "bf16": ("--compile off --mixed_precision bf16", 1, 1),
    "accumulated": (OFF, 1, 2),
    "two processes": (OFF, 2, 1),
}
CACHE = {  # stage -> flags without a cache; the flag that takes the dtype of one
    "denoiser": ("--no_latent_cache", "--latent_cache_dtype"),
    "autoencoder": ("--cache_encoder_states no", "--cache_encoder_states"),
}
ENTRIES = {"denoiser": "train_text_diffusion.py", "autoencoder": "train_latent_model.py"}
LOSS = {"denoiser": "loss", "autoencoder": "train/loss"}


class Runs:
    """One folder of runs on one small corpus."""

    def __init__(self, folder: Path, steps: int, batch: int) -> None:
        from dataset_utils import synthetic_stories

        self.folder, self.steps, self.batch = folder, steps, batch
        self.place = shlex.quote(str(folder))  # in flags
        if not (folder / "corpus" / "test.jsonl").is_file():
            synthetic_stories.write(folder / "corpus", train=2000, valid=100, test=100)

    def prepare(self) -> None:
        """Train the language model and the autoencoder of all runs."""
        if not (self.folder / "lm" / "config.json").is_file():
            self._start(
                "-m latent_models.pretraining",
                "--d_model 64 --layers 1 --heads 2 --num_train_steps 60 --train_batch_size 32 --learning_rate 3e-3 "
                "--eval_texts 8 --log_every 20 --lr_warmup_steps 5 --max_seq_len 40 --vocab_size 300",
                "lm",
            )
        if not (self.folder / "ae" / "best").is_dir():
            self._start(
                ENTRIES["autoencoder"],
                f"{self._stage('autoencoder')} --num_train_steps 60 --train_batch_size 32 --log_every 20",
                "ae",
            )

    def _stage(self, stage: str) -> str:
        common = "--max_seq_len 40 --lr_warmup_steps 5 --no_wandb --decoding greedy "
        if stage == "autoencoder":
            return common + (
                f"--enc_dec_model {self.place}/lm --num_encoder_latents 8 --dim_ae 32 --num_layers 1 "
                "--learning_rate 1e-3 --eval_texts 8 --eval_every 100000"
            )
        return common + (
            f"--latent_model_path {self.place}/ae --tx_dim 64 --tx_depth 2 --disable_dropout --self_condition "
            "--normalize_latent --config normalize_batches=4 --save_and_sample_every 100000 --num_samples 4 "
            f"--sampling_timesteps 2 --eval_batch_size 4 --learning_rate 1e-3 --scorer {self.place}/scorer"
        )

    def losses(self, stage: str, column: str) -> list[float]:
        """The training loss of every step."""
        from utils.trackers import read_metrics

        flags, processes, micros = COLUMNS[column]
        without, cached = CACHE[stage]
        flags = flags.replace("CACHED=", f"{cached} ") if "CACHED" in flags else f"{flags} {without}"
        micro_batch = self.batch // (processes * micros)
        name = f"{stage}-{column.replace(' ', '-')}"
        own = (
            f"{self._stage(stage)} {flags} --num_train_steps {self.steps} --log_every 1 "
            f"--train_batch_size {micro_batch} --gradient_accumulation_steps {micros}"
        )
        self._start(ENTRIES[stage], own, name, processes)
        lines = [line for line in read_metrics(self.folder / name) if LOSS[stage] in line]
        return [line[LOSS[stage]] for line in lines]

    def scorer(self) -> None:
        """Train a tiny scorer, which the evaluation at the end of each run needs; its results are not used."""
        from evaluation import local_lm

        if not (self.folder / "scorer").is_dir():
            lines = (self.folder / "corpus" / "train.jsonl").read_text().splitlines()
            texts = [json.loads(line)["text"] for line in lines]
            local_lm.train_local(
                texts, self.folder / "scorer", steps=10, width=32, layers=1, heads=2, vocab_size=300, max_length=64
            )

    def _start(self, entry: str, flags: str, name: str, processes: int = 1) -> None:
        print(f"{name}: {processes} process{'es' if processes > 1 else ''}", file=sys.stderr, flush=True)
        corpus = " ".join(f"--{s}_file {self.place}/corpus/{s}.jsonl" for s in ("train", "valid", "test"))
        launch = f"-m torch.distributed.run --standalone --nproc_per_node {processes}" if processes > 1 else ""
        argv = shlex.split(f"{launch} {entry} {corpus} --device cpu {flags} --output_dir")
        argv.append(str(self.folder / name))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "LATENT_DIFFUSION_CACHE": str(self.folder / "caches")}
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")


def differences(columns: dict[str, list[float]]) -> dict[str, float]:
    """Largest relative difference of each column from the first."""
    first, *others = columns
    base = columns[first]
    return {
        name: max(abs(a - b) / abs(b) for a, b in zip(columns[name], base, strict=True))
        for name in others
        if len(columns[name]) == len(base)
    }


def table(stage: str, columns: dict[str, list[float]]) -> str:
    names, found = list(columns), differences(columns)
    lines = [f"{stage}: training loss", f"{'step':<22}" + "".join(f"{name:>16}" for name in names)]
    for step, row in enumerate(zip(*columns.values(), strict=True), 1):
        lines.append(f"{step:<22}" + "".join(f"{loss:>16.8f}" for loss in row))
    cells = [f"{found[name]:>16.1e}" if name in found else " " * 16 for name in names]
    return "\n".join([*lines, f"{'largest difference':<22}" + "".join(cells)]) + "\n"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--stages", default="denoiser,autoencoder")
    parser.add_argument("--columns", default=",".join(COLUMNS))
    args = parser.parse_args(argv)
    stages, names = args.stages.split(","), args.columns.split(",")
    unknown = [x for x in stages if x not in ENTRIES] + [x for x in names if x not in COLUMNS]
    if unknown:
        raise UserError(f"{unknown[0]!r} is neither a stage ({', '.join(ENTRIES)}) nor a column ({', '.join(COLUMNS)})")
    if args.batch % 2:
        raise UserError(f"--batch {args.batch} cannot be halved: give an even number")
    runs = Runs(args.output_dir.resolve(), args.steps, args.batch)
    runs.prepare()
    runs.scorer()
    found = {stage: {name: runs.losses(stage, name) for name in names} for stage in stages}
    text = "\n".join(table(stage, columns) for stage, columns in found.items())
    result: dict[str, Any] = {
        "losses": found,
        "largest_differences": {stage: differences(columns) for stage, columns in found.items()},
        "steps": args.steps,
        "batch": args.batch,
        "versions": dict(package_versions()),
        "git_commit": git_commit(),
    }
    write_json(args.output_dir / "losses.json", result)
    write_text(args.output_dir / "table.txt", text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
