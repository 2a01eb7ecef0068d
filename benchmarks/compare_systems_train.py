"""Trains the systems that benchmarks/compare_systems.py compares, each within the same wall time, one command a row.

    python benchmarks/compare_systems_train.py --preset synthetic --output_dir runs/compare corpus
    python benchmarks/compare_systems_train.py --preset synthetic --output_dir runs/compare compressed
    python benchmarks/compare_systems_train.py --preset synthetic --output_dir runs/compare table --scorer FOLDER

Rows: compressed (stages 0, 1 and 2), states (stages 0 and 2), embeddings, causal; corpus comes first, table last, and
`all` is everything. Stage 0 is shared by compressed and states, and counts in both. The number of steps of a stage is
its share of the minutes times the rate of a probe of a few seconds, which does not count; the schedule of the learning
rate follows that number. A row that is done is not trained again: delete its folders to repeat it. seconds.json holds
the seconds of each stage. --preset real reads captions, one a line: --train_file, --valid_file.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import probes
from pipelines.probes import PROBE_STEPS
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import ROOT, write_json

PROBE_SECONDS = 12  # of training; shorter where a stage has less than half a minute
STAGES = {  # stage -> program
    "lm": "-m latent_models.pretraining",
    "autoencoder": "train_latent_model.py",
    "compressed": "train_text_diffusion.py",
    "states": "train_text_diffusion.py",
    "embeddings": "train_text_diffusion.py",
    "causal": "-m pipelines.train_causal_lm",
}
ROWS = {  # row -> its stages; the last one is what is sampled
    "compressed": ("lm", "autoencoder", "compressed"),
    "states": ("lm", "states"),
    "embeddings": ("embeddings",),
    "causal": ("causal",),
}
_DENOISER = (
    "--objective pred_v --self_condition --scale_shift --disable_dropout --ema_decay 0.995 --learning_rate 2e-3"
    " --lr_warmup_steps 100 --sampling_timesteps 50 --decoding greedy --num_samples 16 --eval_batch_size 250"
)
_EMBEDDINGS = (
    "--latent_space embeddings --objective pred_x0 --beta_schedule sqrt --timesteps 1000 --padding generated"
    " --self_condition --scale_shift --disable_dropout --ema_decay 0.995 --embedding_dim 64 --learning_rate 1e-3"
    " --lr_warmup_steps 100 --sampler dpmpp --sampling_timesteps 50 --decoding greedy --num_samples 16"
    " --eval_batch_size 250"
)


@dataclass(frozen=True)
class Preset:
    """Flags of each stage, and the shares of the minutes of a row that stages 0 and 1 take."""

    minutes: float
    corpus: str  # flags of the corpus, for all stages and for the table
    length: str
    flags: dict[str, str]
    lm_share: float = 0.2
    autoencoder_share: float = 0.3
    stories: tuple[int, int, int] | None = None  # of the embedded corpus: training, validation, test


_TALES, _OWN = (
    "--dataset_name tales --data_dir {root}/corpus",
    " ".join(f"--{split}_file {{root}}/corpus/{split}.txt" for split in ("train", "valid", "test")),
)
_SMALL = {  # the quickstart's networks
    "lm": "--tokenizer word --d_model 128 --layers 2 --heads 4 --train_batch_size 64 --learning_rate 2e-3"
    " --lr_warmup_steps 50 --eval_texts 200",
    "autoencoder": "--num_encoder_latents 8 --dim_ae 64 --num_layers 2 --l2_normalize_latents --train_batch_size 64"
    " --learning_rate 1.5e-3 --lr_schedule cosine --lr_warmup_steps 30 --eval_texts 200 --eval_batch_size 100"
    " --decoding greedy",
    "compressed": f"{_DENOISER} --tx_dim 192 --tx_depth 4 --train_batch_size 64",
    "states": f"{_DENOISER} --tx_dim 192 --tx_depth 4 --train_batch_size 64 --normalize_latent",
    "embeddings": f"{_EMBEDDINGS} --tx_dim 192 --tx_depth 4 --train_batch_size 64 --vocab word-level",
    "causal": "--tokenizer word --d_model 192 --layers 4 --heads 4 --train_batch_size 64",
}
_REAL = _SMALL | {
    "lm": "--tokenizer bpe --vocab_size 4000 --d_model 192 --layers 2 --heads 4 --train_batch_size 64"
    " --learning_rate 2e-3 --lr_warmup_steps 100 --eval_texts 200",
    "autoencoder": "--num_encoder_latents 12 --dim_ae 64 --num_layers 2 --l2_normalize_latents --train_batch_size 64"
    " --learning_rate 1.5e-3 --lr_schedule cosine --lr_warmup_steps 50 --eval_texts 200 --eval_batch_size 100"
    " --decoding greedy",
    "embeddings": f"{_EMBEDDINGS} --tx_dim 192 --tx_depth 4 --train_batch_size 64 --vocab byte-level --vocab_size 4000",
    "causal": "--tokenizer bpe --vocab_size 4000 --d_model 192 --layers 4 --heads 4 --train_batch_size 64",
}
_LEAST = " --learning_rate 1e-3 --lr_warmup_steps 2"
_TINY = {
    "lm": "--vocab_size 200 --d_model 64 --layers 1 --heads 2 --train_batch_size 8 --eval_texts 8" + _LEAST,
    "autoencoder": "--num_encoder_latents 4 --dim_ae 32 --num_layers 1 --train_batch_size 8 --eval_texts 8"
    " --decoding greedy" + _LEAST,
    **{
        name: flags + " --tx_dim 64 --tx_depth 2 --train_batch_size 8 --eval_batch_size 16 --num_samples 4"
        " --sampling_timesteps 2 --decoding greedy" + _LEAST
        for name, flags in (
            ("compressed", ""),
            ("states", ""),
            ("embeddings", "--latent_space embeddings --vocab word-level --embedding_dim 16"),
        )
    },
    "causal": "--tokenizer word --vocab_size 200 --d_model 32 --layers 1 --heads 2 --train_batch_size 8" + _LEAST,
}
PRESETS = {
    "synthetic": Preset(3.5, _TALES, "--max_seq_len 32", _SMALL, stories=(20_000, 2_000, 2_000)),
    "real": Preset(9, _OWN, "--max_seq_len 40", _REAL),
    "tiny": Preset(0.05, _TALES, "--max_seq_len 40", _TINY, stories=(120, 40, 40)),
}


def parser() -> ArgumentParser:
    made = OneLineParser(
        prog="python benchmarks/compare_systems_train.py",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("rows", nargs="+", choices=("corpus", *ROWS, "table", "all"), metavar="ROW",
        help=f"corpus, {', '.join(ROWS)}, table, or all")  # fmt: skip
    add("--preset", choices=tuple(PRESETS), required=True, help="sizes and minutes")
    add("--minutes", type=float, help="wall time of each row, all its stages together (default: that of the preset)")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="folder of the corpus, the runs and the table")
    add("--train_file", type=Path, help="with --preset real: training texts, one a line")
    add("--max_train_texts", type=int, default=40_000,
        help="with --preset real: use only the first so many training texts (default: %(default)s)")  # fmt: skip
    add("--valid_file", type=Path, help="with --preset real: held-out texts; one half is for validation, one for test")
    add("--scorer", metavar="MODEL", help="of the table: a causal language model, a folder or a hub id")
    add("--mauve_encoder", metavar="MODEL", help="of the table: an encoder of sentences")
    add("--num_samples", type=int, default=1000, help="of the table (default: %(default)s)")
    add("--seeds", type=int, default=5, help="of the table (default: %(default)s)")
    add("--scorer_precision", choices=("fp32", "bf16"), default="fp32", help="of the table (default: %(default)s)")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    preset, rows = PRESETS[args.preset], list(args.rows)
    if "all" in rows:
        rows = ["corpus", *ROWS, "table"]
    if "table" in rows and not args.scorer:
        raise UserError("table needs --scorer: a folder, such as python -m latent_models.pretrained smollm2-135m makes")
    seconds = 60 * (args.minutes or preset.minutes)
    if not seconds > 0:
        raise UserError(f"--minutes {args.minutes:g} is no time: give more than 0")
    for row in rows:
        if row == "corpus":
            make_corpus(args, preset)
        elif row == "table":
            code = make_table(args, preset)
            if code:
                return code
        else:
            train_row(row, args.output_dir, preset, seconds)
    return 0


def make_corpus(args: Namespace, preset: Preset) -> None:
    """The embedded corpus, or copies of the user's files, of which the held-out one is cut into halves."""
    folder = args.output_dir / "corpus"
    if folder.exists():
        print(f"corpus: {folder} is there", flush=True)
    elif preset.stories is not None:
        from dataset_utils import synthetic_stories

        train, valid, test = preset.stories
        synthetic_stories.write(folder, train=train, valid=valid, test=test)
    else:
        if args.train_file is None or args.valid_file is None:
            raise UserError("--preset real needs --train_file and --valid_file: name texts, one a line")
        held_out = args.valid_file.read_text(encoding="utf-8").splitlines()
        half = len(held_out) // 2 // 5 * 5  # captions of one image stand together, five of them
        folder.mkdir(parents=True)
        train = args.train_file.read_text(encoding="utf-8").splitlines()[: args.max_train_texts]
        (folder / "train.txt").write_text("".join(line + "\n" for line in train), encoding="utf-8")
        (folder / "valid.txt").write_text("".join(line + "\n" for line in held_out[:half]), encoding="utf-8")
        (folder / "test.txt").write_text("".join(line + "\n" for line in held_out[half:]), encoding="utf-8")


def train_row(row: str, root: Path, preset: Preset, seconds: float) -> None:
    """Train the stages of a row that are not there yet, within its time."""
    if not (root / "corpus").is_dir():
        raise UserError(f"{root} holds no corpus: run the row corpus first")
    budgets = stage_seconds(row, preset, seconds)
    for stage in ROWS[row]:
        folder, record = root / stage, read_seconds(root)
        if stage in record and folder.is_dir():
            print(f"{row}: {stage} is there, trained in {record[stage]['seconds']:.0f} s", flush=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run, which would not be within the time
        steps, rate = probe(stage, root, preset, budgets[stage])
        print(f"{row}: {stage}, {steps} steps at {rate:.2f} steps/s in {budgets[stage]:.0f} s", flush=True)
        began = time.monotonic()
        flags = f"--num_train_steps {steps} --max_seconds {budgets[stage]:.0f}"
        run(stage, root, preset, folder, flags, steps)
        spent = time.monotonic() - began
        record = read_seconds(root)
        record[stage] = {"seconds": spent, "budget": budgets[stage], "steps": steps, "probe_steps_per_second": rate}
        write_json(root / "seconds.json", record)
        print(f"{row}: {stage} took {spent:.0f} s with its last evaluation", flush=True)


def stage_seconds(row: str, preset: Preset, seconds: float) -> dict[str, float]:
    """Seconds of each stage of a row; they add up to those of the row."""
    shares = {"lm": preset.lm_share, "autoencoder": preset.autoencoder_share}
    *before, last = ROWS[row]
    budgets = {stage: shares[stage] * seconds for stage in before}
    return {**budgets, last: seconds - sum(budgets.values())}


def probe(stage: str, root: Path, preset: Preset, seconds: float) -> tuple[int, float]:
    """Train for a few seconds; returns the steps that fit into the time, and steps per second."""
    folder = root / f"{stage}.probe"
    compiled = "" if stage in ("lm", "causal") else "--compile off "
    words = _words(stage, root, preset, folder, f"{compiled}--num_train_steps {PROBE_STEPS}", 0)
    rate = probes.probe([sys.executable, *words], folder, min(PROBE_SECONDS, seconds / 2), cwd=ROOT)
    return rate.steps(seconds), rate.steps_per_second


def run(stage: str, root: Path, preset: Preset, folder: Path, flags: str, steps: int) -> None:
    """Run the program of a stage. UserError, with its last line, where it fails."""
    words = _words(stage, root, preset, folder, flags, steps)
    print("   " + shlex.join(["python", *words]), flush=True)
    probes.run_logged([sys.executable, *words], folder, cwd=ROOT)


def _words(stage: str, root: Path, preset: Preset, folder: Path, flags: str, steps: int) -> list[str]:
    """The command line of a stage."""
    from utils.distributed import has_bf16

    words = [
        *STAGES[stage].split(),
        *fill(f"{preset.corpus} {preset.length} {preset.flags[stage]} {flags}", root),
        # as often in the probe: a log line comes with validation losses
        *("--output_dir", str(folder), "--log_every", "1" if 0 < steps < 200 else "20"),
    ]
    every = steps or PROBE_STEPS  # no evaluation before the end
    if stage == "causal" and steps:
        every = max(1, steps // 10)  # the best of ten checkpoints
    words += ["--save_and_sample_every" if "diffusion" in STAGES[stage] else "--eval_every", str(every)]
    if stage in ("autoencoder", "states", "compressed"):
        words += ["--enc_dec_model", str(root / "lm")]
    if stage == "compressed":
        words += ["--latent_model_path", str(root / "autoencoder")]
    if "diffusion" in STAGES[stage]:
        words += ["--config", "training_scores=False"]  # the table judges
    if has_bf16():
        words += ["--mixed_precision", "bf16"]
    return words


def fill(flags: str, root: Path) -> list[str]:
    return [word.replace("{root}", str(root)) for word in shlex.split(flags)]


def read_seconds(root: Path) -> dict[str, dict[str, float]]:
    path = root / "seconds.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def make_table(args: Namespace, preset: Preset) -> int:
    """Score the rows that are trained, in one table."""
    from benchmarks.compare_systems import main as compare

    there = [row for row, stages in ROWS.items() if stages[-1] in read_seconds(args.output_dir)]
    words = [
        *fill(preset.corpus, args.output_dir),
        *("--runs", *(f"{row}={args.output_dir / ROWS[row][-1]}" for row in there)),
        *("--scorer", args.scorer, "--num_samples", str(args.num_samples), "--seeds", str(args.seeds)),
        *("--scorer_precision", args.scorer_precision, "--output_dir", str(args.output_dir / "table")),
    ]
    if args.mauve_encoder:
        words += ["--mauve_encoder", args.mauve_encoder]
    return compare(words)


if __name__ == "__main__":
    raise SystemExit(main())
