"""The whole way on the embedded corpus: text -> language model -> latents -> diffusion -> text again, measured.

Every stage is the ordinary program with ordinary flags, printed before it runs, so that this file can be read as a
tutorial. A stage that is done is not done again; one that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from utils.config import Program, parse
from utils.errors import UserError, one_line
from utils.runs import write_json

SAMPLES = 1000  # texts sampled, and as many held-out ones beside them: fewer make MAUVE a matter of luck
SHOWN = 12


@dataclass(frozen=True)
class Stage:
    """One program with its flags. done: a file, in the stage's folder, that is written last."""

    name: str
    program: Program
    title: str
    done: str
    flags: str

    def argv(self, root: Path) -> list[str]:
        return [part.format(root=root) for part in self.flags.split()]


CORPUS = "--dataset_name tales --data_dir {root}/corpus --max_seq_len 32"
STAGES = (
    Stage(
        "lm", PRETRAIN, "a small BART, pretrained by denoising", "validation.json",
        CORPUS + " --tokenizer word --d_model 128 --layers 2 --heads 4 --num_train_steps 400 --train_batch_size 64"
        " --learning_rate 2e-3 --lr_warmup_steps 50 --eval_every 200 --save_every 100 --log_every 20",
    ),
    Stage(
        "autoencoder", AUTOENCODER, "the Perceiver autoencoder around the frozen BART", "validation.json",
        CORPUS + " --enc_dec_model {root}/lm --num_encoder_latents 8 --dim_ae 64 --num_layers 2 --l2_normalize_latents"
        " --num_train_steps 450 --train_batch_size 64 --learning_rate 1.5e-3 --lr_schedule cosine --lr_warmup_steps 30"
        " --eval_every 450 --save_every 100 --eval_texts 1000 --eval_batch_size 250 --decoding greedy --log_every 20",
    ),
    Stage(
        "diffusion", DIFFUSION, "the denoiser on cached latents", "metrics.json",
        CORPUS + " --enc_dec_model {root}/lm --latent_model_path {root}/autoencoder --objective pred_v --self_condition"
        " --scale_shift --disable_dropout --tx_dim 192 --tx_depth 4 --num_train_steps 1200 --train_batch_size 128"
        " --learning_rate 1e-3 --lr_warmup_steps 100 --save_and_sample_every 600 --save_every 200 --num_samples 16"
        " --sampling_timesteps 50 --decoding greedy --log_every 20",
    ),
)  # fmt: skip
EVALUATION = (
    "--eval --resume_dir {root}/diffusion --data_dir {root}/corpus --num_samples %d --eval_batch_size 250 "
    "--scorer {root}/diffusion/scorer" % SAMPLES
)
REPORTED = ("mauve", "perplexity", "diversity", "memorization")


class Clock:
    """Seconds per stage, kept on disk, so that an interrupted and resumed quickstart still adds up."""

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


def run(root: Path, install_seconds: float = 0.0) -> int:
    """All stages into root, then the report. Returns the exit code of the stage that stopped, or 0."""
    report_path = root / "report.json"
    if report_path.is_file():
        print(f"{root} is done: here is its report. Delete the folder to start anew.")
        show(root, json.loads(report_path.read_text()))
        return 0
    root.mkdir(parents=True, exist_ok=True)
    clock = Clock(root / "seconds.json")
    if install_seconds:
        clock.add("install", install_seconds)

    from utils.distributed import has_bf16

    precision = ["--mixed_precision", "bf16"] if has_bf16() else []
    if not (root / "corpus" / "pairs_test.jsonl").is_file():
        from dataset_utils import tales

        banner("corpus", "20,000 training stories, 2,000 for validation and 2,000 for the test", [])
        clock.time("corpus", lambda: int(not tales.write(root / "corpus")))
    for stage in STAGES:
        folder = root / stage.name
        if (folder / stage.done).is_file():
            print(f"{stage.name}: done already")
            continue
        code = clock.time(stage.name, lambda stage=stage: run_stage(stage, root, precision))
        if code:
            return code
    banner("evaluation", f"{SAMPLES} samples against as many held-out stories", EVALUATION.format(root=root).split())
    code = clock.time("evaluation", lambda: run_program(DIFFUSION, EVALUATION.format(root=root).split() + precision))
    if code:
        return code
    result = make_report(root, clock.seconds)
    write_json(report_path, result)
    show(root, result)
    return 0


def run_stage(stage: Stage, root: Path, precision: Sequence[str]) -> int:
    from utils.checkpoints import has_checkpoint

    folder = root / stage.name
    if has_checkpoint(folder):
        argv = ["--resume_training", "--resume_dir", str(folder)]
    else:
        argv = [*stage.argv(root), "--output_dir", str(folder), *precision]
    banner(stage.name, stage.title, argv, stage.program.name)
    return run_program(stage.program, argv)


def run_program(program: Program, argv: Sequence[str]) -> int:
    """One of the three programs in this process, which has loaded torch already."""
    settings = parse(program, list(argv))
    from pipelines import pretrain, train_autoencoder, train_diffusion

    runs = {PRETRAIN.name: pretrain.run, AUTOENCODER.name: train_autoencoder.run, DIFFUSION.name: train_diffusion.run}
    return runs[program.name](settings)


def banner(name: str, title: str, argv: Sequence[str], program: str = "") -> None:
    print(f"\n== {name}: {title}", flush=True)
    if argv:
        print(f"   {program or DIFFUSION.name} {' '.join(argv)}", flush=True)


def make_report(root: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """The flat report: what the grammar says of the samples, and what the metrics say."""
    from dataset_utils import tales

    texts = json.loads((root / "diffusion/evaluation/eval-valid-seed42-greedy-samples.json").read_text())
    metrics = json.loads((root / "diffusion/evaluation/eval-valid.json").read_text())
    copied = json.loads((root / "autoencoder/validation.json").read_text())
    training = {json.loads(line)["text"] for line in (root / "corpus/train.jsonl").open(encoding="utf-8")}
    judged = tales.judge(texts, training)
    ours, real = "model/greedy/", "reference/"
    numbers = {
        "mauve": metrics[ours + "home_val_mauve"],
        **{name: metrics[ours + name] for name in ("perplexity", "diversity", "memorization", "exact_copy")},
        "empty": metrics[ours + "empty_replaced"],
        "reference_mauve": metrics[real + "home_train_val_mauve"],
        **{f"reference_{name}": metrics[f"{real}val_{name}"] for name in ("perplexity", "diversity", "memorization")},
    }
    return {
        "reconstruction_exact": copied["autoencoder/greedy/exact_match"],
        "reconstruction_bleu": copied["autoencoder/greedy/bleu"],
        **{key: judged[key] for key in ("grammatical", "agreement", "coherent", "novel", "distinct")},
        **numbers,
        "n": len(texts),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "scorer": "a small causal LM trained on this corpus: its perplexity and MAUVE compare with nothing published",
        "protocol": metrics["protocol"],
        "cores": os.cpu_count(),
    }


def show(root: Path, result: dict[str, Any]) -> None:
    """A dozen samples beside the metrics."""
    from evaluation import report

    texts = json.loads((root / "diffusion/evaluation/eval-valid-seed42-greedy-samples.json").read_text())
    print(f"\n== {SHOWN} of the {len(texts)} samples\n" + report.show(texts, SHOWN))
    rows = {
        "reconstructed exactly": (result["reconstruction_exact"], None),
        "grammatical": (result["grammatical"], None),
        "pronouns agree": (result["agreement"], None),
        "not in the training set": (result["novel"], None),
        **{name: (result[name], result[f"reference_{name}"]) for name in REPORTED},
    }
    print(f"\n{'':<26}{'samples':>10}{'held-out':>10}")
    for name, (value, reference) in rows.items():
        print(f"{name:<26}{_number(value):>10}{_number(reference):>10}")
    print("(perplexity and MAUVE by a small scorer trained on this corpus: they compare with nothing published)")
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if name != "total")
    print(f"\n{seconds['total']:.0f} seconds in all: {parts}\nreport: {root / 'report.json'}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bash scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir} is a file: name a folder")
    return run(args.output_dir, float(os.environ.get("QUICKSTART_INSTALL_SECONDS", "0")))


if __name__ == "__main__":
    raise SystemExit(main())
