"""The whole method on ROCStories without any pretrained model: stages 0, 1 and 2 and the evaluation, in one command.

The last stage trains only the decoder, on latents that the denoiser makes from those of the stories.

    python benchmarks/rocstories.py --data_dir FOLDER --output_dir runs/roc [--size cpu|gpu] [--max_seconds S]

FOLDER holds ROCstory/roc_train.json and roc_valid.json. If it also holds ag_news, sst, e2e_data or qqp, stage 0 trains
on them, too: it learns to copy, which takes varied texts. Every stage is evaluated on held-out stories. A second call
continues an interrupted one. --max_seconds is shared among the stages; a stage that runs out of time is saved and
evaluated as it is. Writes the runs, and record.json with the figures, samples.txt and curves as PNG, for
benchmarks/records/. How long: on the CPU its stages, run one by one, took about two and a half hours of one busy core.
Neither size has been run from end to end as this one command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from dataset_utils import registry
from dataset_utils.options import DataOptions
from pipelines.cli.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from pipelines.stages import (
    ROBUST_AUTOENCODER,
    Stage,
    StageTimer,
    adapt_decoder_stage,
    banner,
    fill,
    run_program,
    run_stage,
    scale_steps,
)
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text


@dataclass(frozen=True)
class Size:
    """Flags of each stage, and its share of --max_seconds."""

    lm: str
    autoencoder: str
    diffusion: str
    decoder: str
    shares: tuple[float, float, float, float]
    steps: int  # of the sampler at the evaluation
    samples: int  # of each seed at the evaluation; fewer than 1,000 are marked in the result


SIZES = {
    "cpu": Size(
        lm="--vocab_size 2000 --d_model 192 --layers 2 --heads 4 --num_train_steps 500 --train_batch_size 48"
        " --learning_rate 2e-3 --lr_warmup_steps 150 --eval_every 250 --eval_texts 200",
        autoencoder="--num_train_steps 1500 --train_batch_size 32 --learning_rate 1e-3 --lr_warmup_steps 50"
        " --lr_schedule cosine --eval_every 500 --eval_texts 100 --eval_batch_size 100 --decoding greedy"
        + ROBUST_AUTOENCODER,
        diffusion="--tx_dim 192 --tx_depth 5 --num_train_steps 1500 --train_batch_size 64 --learning_rate 2e-3"
        " --lr_warmup_steps 50 --disable_dropout --ema_decay 0.995 --save_and_sample_every 500 --eval_batch_size 50",
        decoder="--num_train_steps 2700 --train_batch_size 32 --learning_rate 1e-3 --lr_warmup_steps 50"
        " --lr_schedule cosine --eval_every 900 --eval_texts 100",
        shares=(0.13, 0.3, 0.13, 0.44),
        steps=30,
        samples=400,
    ),
    "gpu": Size(
        lm="--vocab_size 4000 --d_model 512 --layers 4 --heads 8 --num_train_steps 6000 --train_batch_size 128"
        " --learning_rate 5e-4 --lr_warmup_steps 500 --eval_every 1000 --eval_texts 200 --mixed_precision bf16",
        autoencoder="--num_train_steps 6000 --train_batch_size 128 --learning_rate 5e-4 --lr_warmup_steps 300"
        " --lr_schedule cosine --eval_every 2000 --eval_texts 200 --eval_batch_size 100 --decoding greedy"
        " --mixed_precision bf16" + ROBUST_AUTOENCODER,
        diffusion="--tx_dim 768 --tx_depth 12 --num_train_steps 12000 --train_batch_size 128 --learning_rate 2e-4"
        " --lr_warmup_steps 1000 --save_and_sample_every 4000 --eval_batch_size 250 --mixed_precision bf16",
        decoder="--num_train_steps 3000 --train_batch_size 128 --learning_rate 5e-4 --lr_warmup_steps 100"
        " --lr_schedule cosine --eval_every 1500 --eval_texts 200 --mixed_precision bf16",
        shares=(0.15, 0.25, 0.45, 0.15),
        steps=250,
        samples=1000,
    ),
}


def stages(size: Size, data: str) -> list[Stage]:
    """The stages, in {root}, which holds the files of `write_texts`."""
    texts = " ".join(f"--{split}_file {{root}}/texts/{split}.jsonl" for split in ("train", "valid", "test"))
    all_texts = f"{texts} --max_seq_len 112 --log_every 50 "
    stories = all_texts.replace("texts/train", "texts/stories")
    model = "--enc_dec_model {root}/lm "
    return [
        Stage("lm", PRETRAIN, "a small BART on the texts of all corpora", "validation.json",
              all_texts + "--tokenizer bpe --config pos_init=sinusoidal --config random_token_prob=0.3"
              " --mask_prob 0.1 --config uncorrupted_prob=0.6 " + size.lm),
        Stage("autoencoder", AUTOENCODER, "the autoencoder on the stories", "validation.json",
              stories + model + size.autoencoder),
        Stage("diffusion", DIFFUSION, "the denoiser on the stories' latents", "metrics.json",
              f"--dataset_name roc --data_dir {shlex.quote(data)} --max_seq_len 112 --log_every 50 "
              "--latent_model_path {root}/autoencoder --objective pred_v --self_condition --scale_shift"
              " --num_samples 50 --sampling_timesteps 30 --decoding greedy " + size.diffusion),
        adapt_decoder_stage(stories + model + size.autoencoder, size.decoder),
    ]  # fmt: skip


def write_texts(data: str, names: str, folder: Path) -> None:
    """Write train.jsonl with the training texts of all corpora, the other files with stories alone."""
    if (folder / "test.jsonl").is_file():
        return
    joined = registry.load(DataOptions(dataset_name=names, data_dir=data))
    stories = registry.load(DataOptions(dataset_name="roc", data_dir=data))
    for split, texts in (
        ("train", joined.train.texts),
        ("stories", stories.train.texts),
        ("valid", stories.valid.texts),
        ("test", stories.splits["test"].texts),
    ):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        write_text(folder / f"{split}.jsonl", lines)


def run(data: Path, root: Path, size: Size, factor: float, max_seconds: float | None, device: str) -> int:
    folders = {"ag_news": "ag_news", "sst": "sst", "e2e": "e2e_data", "qqp": "qqp"}
    names = "+".join(["roc", *(name for name, folder in folders.items() if (data / folder).is_dir())])
    root.mkdir(parents=True, exist_ok=True)
    write_texts(str(data), names, root / "texts")
    clock = StageTimer(root / "seconds.json")
    began = time.monotonic()
    for stage, share in zip(stages(size, str(data)), size.shares, strict=True):
        limit = [] if max_seconds is None else ["--max_seconds", str(round(share * max_seconds))]
        code = clock.time(
            stage.name, partial(run_stage, scale_steps(stage, factor), root, [*limit, "--device", device])
        )
        if code:
            return code
    evaluation = fill(
        "--eval_test --resume_dir {root}/diffusion --latent_model_path {root}/decoder --data_dir {data} "
        f"--num_samples {size.samples} "
        f"--sampling_timesteps {size.steps} --eval_batch_size {min(size.samples, 250)} --device {device}",
        root=root,
        data=data,
    )
    banner("evaluation", f"{size.samples} samples of each of five seeds against test stories", DIFFUSION, evaluation)
    code = clock.time("evaluation", lambda: run_program(DIFFUSION, evaluation))
    if code:
        return code
    record(root, clock.with_total(), round(time.monotonic() - began, 1))
    return 0


def record(root: Path, seconds: dict[str, float], this_call: float) -> None:
    """Write record.json, samples.txt and the curves."""
    from evaluation import plots

    reconstruction = json.loads((root / "decoder/validation.json").read_text())
    evaluation = json.loads((root / "diffusion/evaluation/eval-test.json").read_text())
    args = json.loads((root / "diffusion/args.json").read_text())
    metrics: dict[str, Any] = {k: v for k, v in evaluation.items() if isinstance(v, dict) and "mean" in v}
    metadata = {
        "device": args["device_name"],
        "git_commit": args["git_commit"],
        "package_versions": args["package_versions"],
        "seconds": seconds,
        "seconds_of_last_call": this_call,
        "reconstruction": {k: v for k, v in reconstruction.items() if k != "protocol"},
        "evaluation": metrics,
        "protocol": evaluation["protocol"]["runs"][0],
    }
    write_json(root / "record.json", metadata)
    texts = json.loads((root / "diffusion/evaluation/eval-test-seed42-greedy-samples.json").read_text())
    write_text(root / "samples.txt", "".join(text + "\n" for text in texts[:100]))
    for name in ("lm", "autoencoder", "diffusion", "decoder"):
        plots.plot_run(root / name)
    print(f"figures in {root / 'record.json'}, samples in {root / 'samples.txt'}")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default=None, help="default: gpu where CUDA is, else cpu")
    parser.add_argument("--max_seconds", type=float, default=None)
    parser.add_argument("--steps_factor", type=float, default=1.0, help="factor on the training steps of every stage")
    args = parser.parse_args(argv)
    if not (args.data_dir / "ROCstory").is_dir():
        raise UserError(f"{args.data_dir} holds no ROCstory folder: docs/usage.md names its source")
    from utils.distributed import pick_device

    device = pick_device()
    size = SIZES[args.size or ("gpu" if device.type == "cuda" else "cpu")]
    return run(args.data_dir, args.output_dir, size, args.steps_factor, args.max_seconds, device.type)


if __name__ == "__main__":
    raise SystemExit(main())
