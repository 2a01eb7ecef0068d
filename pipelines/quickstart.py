"""The quickstart: all stages on a synthetic corpus, from raw text to evaluated samples, on a CPU in minutes.

Each stage is an ordinary program with its flags, and its command is printed before it runs: the file is a tutorial.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.cli.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from pipelines.stages import Stage, StageTimer, banner, fill, run_program, run_stage, show_page
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import ROOT, write_json

NUM_SAMPLES = 1000  # and as many held-out texts: MAUVE is too noisy with fewer
NUM_SHOWN = 12


CORPUS = "--dataset_name tales --data_dir {root}/corpus --max_seq_len 32"
DENOISER = (
    " --objective pred_v --self_condition --scale_shift --disable_dropout --tx_dim 192 --tx_depth 4"
    " --train_batch_size 64 --learning_rate 2e-3 --lr_warmup_steps 100 --decoding greedy"
)


def stages_before_diffusion(corpus: str, lm: str = "{root}/lm") -> tuple[Stage, Stage]:
    """Stages 0 and 1 on tales. corpus: flags of the corpus. lm: folder of the language model of the autoencoder."""
    return (
        Stage(
            "lm", PRETRAIN, "a small BART, pretrained by denoising", "validation.json",
            corpus + " --tokenizer word --d_model 128 --layers 2 --heads 4 --num_train_steps 400 --train_batch_size 64"
            " --learning_rate 2e-3 --lr_warmup_steps 50 --eval_every 200 --save_every 100",
        ),
        Stage(
            "autoencoder", AUTOENCODER, "the Perceiver autoencoder around the frozen BART", "validation.json",
            corpus + f" --enc_dec_model {lm} --num_encoder_latents 8 --dim_ae 64 --num_layers 2 --l2_normalize_latents"
            " --num_train_steps 450 --train_batch_size 64 --learning_rate 1.5e-3 --lr_schedule cosine"
            " --lr_warmup_steps 30 --eval_every 450 --save_every 100 --eval_texts 1000 --eval_batch_size 250"
            " --decoding greedy",
        ),
    )  # fmt: skip


STAGES = (
    *stages_before_diffusion(CORPUS + " --log_every 20"),
    Stage(
        "diffusion", DIFFUSION, "the denoiser on cached latents", "metrics.json",
        CORPUS + " --enc_dec_model {root}/lm --latent_model_path {root}/autoencoder --num_train_steps 2000"
        " --save_and_sample_every 1000 --save_every 250 --num_samples 16 --sampling_timesteps 50 --log_every 50"
        + DENOISER,
    ),
)  # fmt: skip
EVALUATION = (
    f"--eval --resume_dir {{root}}/diffusion --data_dir {{root}}/corpus --num_samples {NUM_SAMPLES} "
    "--eval_batch_size 250 "
    "--scorer {root}/diffusion/scorer"
)
REPORTED = ("mauve", "perplexity", "diversity", "memorization")


def run(root: Path, install_seconds: float = 0.0) -> int:
    """Run all stages into root, and write the report. Returns 0, or the exit code of the stage that stopped."""
    report_path = root / "report.json"
    if report_path.is_file():
        print(f"{root} is finished: its report follows. Delete the folder to run it again.")
        show(root, json.loads(report_path.read_text()))
        show_page(root, [root / "diffusion"])
        return 0
    root.mkdir(parents=True, exist_ok=True)
    clock = StageTimer(root / "seconds.json")
    if install_seconds:
        clock.add("install", install_seconds)

    if not (root / "corpus" / "pairs_test.jsonl").is_file():
        from dataset_utils import synthetic_stories

        banner("corpus", "20,000 training stories, 2,000 for validation and 2,000 for the test")
        clock.time("corpus", lambda: int(not synthetic_stories.write(root / "corpus")))
    for stage in STAGES:
        code = clock.time(stage.name, partial(run_stage, stage, root))
        if code:
            return code
    evaluation = fill(EVALUATION, root=root)
    banner("evaluation", f"{NUM_SAMPLES} samples against as many held-out stories", DIFFUSION, evaluation)
    code = clock.time("evaluation", lambda: run_program(DIFFUSION, evaluation))
    if code:
        return code
    result = make_report(root, clock.with_total())
    write_json(report_path, result)
    show(root, result)
    show_page(root, [root / "diffusion"])
    return 0


def make_report(root: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """The report, as a flat dictionary: shares of samples that follow the grammar, and the metrics of the
    evaluation."""
    from dataset_utils import synthetic_stories

    texts = json.loads((root / "diffusion/evaluation/eval-valid-seed42-greedy-samples.json").read_text())
    metrics = json.loads((root / "diffusion/evaluation/eval-valid.json").read_text())
    copied = json.loads((root / "autoencoder/validation.json").read_text())
    training = {json.loads(line)["text"] for line in (root / "corpus/train.jsonl").open(encoding="utf-8")}
    judged = synthetic_stories.grammar_metrics(texts, training)
    ours, real = "model/greedy/", "reference/"
    numbers = {
        "mauve": metrics[ours + "local_lm_val_mauve"],
        **{name: metrics[ours + name] for name in ("perplexity", "diversity", "memorization")},
        "exact_copy": metrics[ours + "train_copy_rate"],
        "empty": metrics[ours + "num_empty_resampled"],
        "reference_mauve": metrics[real + "local_lm_train_val_mauve"],
        **{f"reference_{name}": metrics[f"{real}val_{name}"] for name in ("perplexity", "diversity", "memorization")},
    }
    return {
        "reconstruction_exact": copied["autoencoder/greedy/exact_match"],
        "reconstruction_bleu": copied["autoencoder/greedy/bleu"],
        **{key: judged[key] for key in ("grammatical", "agreement", "coherent", "novel", "distinct")},
        **numbers,
        "n": len(texts),
        "seconds": seconds,
        "scorer": "a small causal LM trained on this corpus: its perplexity and MAUVE compare with nothing published",
        "protocol": "diffusion/evaluation/eval-valid.json",
        "cores": os.cpu_count(),
    }


def show(root: Path, result: dict[str, Any]) -> None:
    """Print a dozen samples, and their metrics next to those of held-out texts."""
    from evaluation import report

    texts = json.loads((root / "diffusion/evaluation/eval-valid-seed42-greedy-samples.json").read_text())
    print(f"\n== {NUM_SHOWN} of the {len(texts)} samples\n" + report.format_samples(texts, NUM_SHOWN))
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
    print("(perplexity and MAUVE by a small scorer trained on this corpus, not comparable to published values)")
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if name != "total")
    print(f"\n{seconds['total']:.0f} seconds in all: {parts}\nreport: {root / 'report.json'}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="bash scripts/quickstart.sh", description=__doc__)
    default = Path(os.path.relpath(ROOT / "runs/quickstart"))
    parser.add_argument("--output_dir", type=Path, default=default, help="folder of all stages (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir} is a file: name a folder")
    return run(args.output_dir, float(os.environ.get("QUICKSTART_INSTALL_SECONDS", "0")))


if __name__ == "__main__":
    raise SystemExit(main())
