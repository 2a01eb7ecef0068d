"""DiffuSeq, DiffuSeq-v2 and latent diffusion on the same pairs, under one protocol, in one table.

    python benchmarks/pairs.py --output_dir runs/pairs [--dataset qqp --data_dir FOLDER] [--systems diffuseq latent]
        [--size cpu|gpu|tales] [--max_seconds S] [--lm DIR] [--bertscore_model DIR] [--steps_factor F]

It trains the systems of --systems (their flags are in pairs_systems.py), then samples K candidates for the same test
sources at several numbers of sampling steps, down to 2. One sample, MBR of K by sentence BLEU, the best of K (oracle)
and chance (predictions of other sources) get the same metrics: BLEU, ROUGE-L, BERTScore if --bertscore_model names a
model, dist-1, self-BLEU, div-4, mean length, and perplexity by a small scorer trained on the targets. Baselines are the
source itself, since a paraphrase repeats much of it, and references of other sources. --dataset is any corpus of pairs.
The embedded pairs, tales-pairs, are generated if --data_dir is not given. Their paraphrases keep 13 content slots, so
the share of samples that keep every slot is exact, and one more column.

--lm: a trained BART, whose tokenizer also gives the tokens of the embeddings; without it a small BART is trained on the
texts of the pairs. A second call skips the stages and evaluations that are complete. --max_seconds is of training
alone, in equal shares for all systems. Writes the runs, and record.json, table.md, samples.txt and steps_*.png for
benchmarks/records/.

How long: cpu about 8 minutes of training and 3 of evaluation for each system, on one core; gpu was not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from benchmarks.pairs_metrics import KEEPS_CONTENT, PairsEvaluator
from benchmarks.pairs_systems import CORPORA, OBJECTIVES, OTHER, SIZES, SYSTEMS, Size
from benchmarks.pairs_table import samples, tables
from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.options import DataOptions
from pipelines.stages import StageTimer, banner, run_stage, scale_steps
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

EMBEDDED = "tales-pairs"
CURVES = {"diffuseq_bleu": "BLEU of sentences", "rougeL": "ROUGE-L", "kept": "share that keeps every content slot"}


def run(args: argparse.Namespace, size: Size, device: str) -> int:
    """Run all stages and evaluations, write the record. Returns the exit code of the first stage that failed, or 0."""
    root: Path = args.output_dir
    if args.data_dir is None:
        args.data_dir = make_corpus(args.dataset, root / "corpus")
    corpus = registry.load(DataOptions(dataset_name=args.dataset, data_dir=str(args.data_dir)))
    if any(split.sources is None for split in corpus.splits.values()):
        raise UserError(f"--dataset {args.dataset} has no sources: name a corpus of pairs, such as qqp or e2e-mr")
    root.mkdir(parents=True, exist_ok=True)
    write_texts(corpus, root / "texts")
    clock = StageTimer(root / "seconds.json")
    scorer = root / "scorer"
    clock.time("scorer", lambda: train_scorer(corpus, scorer, device))
    limits = CORPORA.get(args.dataset, OTHER)
    values = {
        "dataset": args.dataset, "data": quote(str(args.data_dir)), "device": device, "scorer": quote(str(scorer)),
        "target": str(limits.target), "source": str(limits.source), "packed": str(limits.packed),
        "longest": str(max(limits.target, limits.source)), "tokens": limits.lm,
        "lm": quote(args.lm or "{root}/lm"), "vocab": quote(args.lm or limits.vocab),
    }  # fmt: skip
    for name in args.systems:
        system = SYSTEMS[name]
        values["objective"] = OBJECTIVES.get(name, "pred_x0")
        for stage, share in system.stages(size, bool(args.lm), values):
            limit = [] if args.max_seconds is None else [str(round(share * args.max_seconds / len(args.systems)))]
            extra = ["--max_seconds", *limit] if limit else []
            code = clock.time(stage.name, partial(run_stage, scale_steps(stage, args.steps_factor), root, extra))
            if code:
                return code
    evaluator = PairsEvaluator(
        corpus, root, scorer, size, device, args.bertscore_model, KEEPS_CONTENT.get(args.dataset)
    )
    for name in args.systems:
        banner("evaluation", f"{SYSTEMS[name].description}, at {', '.join(map(str, size.steps))} steps")
        began = time.monotonic()
        evaluator.evaluate_system(SYSTEMS[name])
        clock.add(f"evaluation of {name}", time.monotonic() - began)
    write(root, evaluator, args, clock.with_total())
    return 0


def make_corpus(name: str, folder: Path) -> Path:
    """Write the embedded pairs and return their folder. UserError for any other corpus."""
    from dataset_utils import synthetic_stories

    if name != EMBEDDED:
        raise UserError(
            f"--dataset {name} needs --data_dir: name the folder that holds it, or use --dataset {EMBEDDED}"
        )
    return folder if (folder / "pairs_test.jsonl").is_file() else synthetic_stories.write(folder)


def write_texts(corpus: Corpus, folder: Path) -> None:
    """Write the sources and targets of each split as texts, for training the language model and the autoencoder."""
    for name, split in corpus.splits.items():
        if not (folder / f"{name}.jsonl").is_file():
            texts = dict.fromkeys(split.all_texts())
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            write_text(folder / f"{name}.jsonl", "".join(lines))


def train_scorer(corpus: Corpus, folder: Path, device: str) -> int:
    """Train the language model that scores perplexity for all systems."""
    from evaluation import scorers

    scorers.load(None, texts=corpus.train.texts, folder=folder, device=device)
    return 0


def write(root: Path, evaluator: PairsEvaluator, args: argparse.Namespace, seconds: dict[str, float]) -> None:
    """Write record.json, table.md, samples.txt and the curves of quality by steps."""
    from evaluation import plots

    saved = {
        name: json.loads((root / SYSTEMS[name].run / "args.json").read_text(encoding="utf-8")) for name in args.systems
    }
    metadata = {
        "dataset": args.dataset,
        "sizes": {name: len(split) for name, split in evaluator.corpus.splits.items()},
        "systems": {
            name: {"about": SYSTEMS[name].description, **training_info(root, name, saved[name])}
            for name in args.systems
        },
        "language_model": str(args.lm) if args.lm else "trained here",
        "protocol": evaluator.protocol(),
        "baselines": evaluator.baselines(),
        "results": [row.metadata() for row in evaluator.rows],
        "mbr_minus_one_sample": {row.name: row.gains() for row in evaluator.rows if row.steps == max(evaluator.steps)},
        "seconds": seconds,
        "git_commit": git_commit(),
        "package_versions": dict(package_versions()),
    }
    write_json(root / "record.json", metadata)
    write_text(root / "table.md", tables(metadata))
    write_text(root / "samples.txt", samples(evaluator))
    metrics = evaluator.rows[0].metadata()["metrics"]
    for key, label in ((key, label) for key, label in CURVES.items() if key in metrics):
        curves = {
            f"{name}, {kind}": [(row.steps, row.mean(prefix + key)) for row in evaluator.rows if row.name == name]
            for name in dict.fromkeys(row.name for row in evaluator.rows)
            for kind, prefix in (("one sample", ""), (f"MBR-{evaluator.candidates}", "mbr_"))
        }
        dashed = [name for name in curves if name.endswith(f"MBR-{evaluator.candidates}")]
        path = root / f"steps_{key}.png"
        plots.plot_xy(curves, path, xlabel="sampling steps", ylabel=label, log_x=True, dashed=dashed)
    print(tables(metadata))
    print(f"figures in {root / 'record.json'}, samples in {root / 'samples.txt'}")


def training_info(root: Path, name: str, saved: dict[str, Any]) -> dict[str, Any]:
    """Training of a system: steps, batch size, parameters, and the reconstruction metrics of its autoencoder."""
    from utils import checkpoints

    info: dict[str, Any] = {
        "steps": checkpoints.load(root / SYSTEMS[name].run).step,
        "batch": saved["train_batch_size"],
        "trainable_params": saved["trainable_params"],
    }
    reconstruction = root / "autoencoder/validation.json"
    if name == "latent" and reconstruction.is_file():
        metrics = json.loads(reconstruction.read_text(encoding="utf-8"))
        info["autoencoder"] = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return info


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=EMBEDDED, help="a corpus of pairs: qqp, e2e-mr, ... (default %(default)s)")
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=None,
        help="folder that holds the corpus; unset: the embedded pairs are generated",
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--size", choices=SIZES, default=None, help="default: gpu where CUDA is, else cpu or tales")
    parser.add_argument("--max_seconds", type=float, default=None, help="seconds of training, all systems together")
    parser.add_argument("--lm", default=None, help="a trained BART: a local folder or a hub id")
    parser.add_argument("--bertscore_model", default=None, help="encoder of BERTScore; unset: no BERTScore")
    parser.add_argument("--steps_factor", type=float, default=1.0, help="factor on the training steps of every stage")
    parser.add_argument("--sources", type=int, default=None, help="test pairs of each seed; unset: as in --size")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.lm and not Path(args.lm).is_dir() and Path(args.lm).is_absolute():
        raise UserError(f"--lm {args.lm}: there is no such folder")
    from utils.distributed import pick_device

    device = pick_device().type
    size = SIZES[args.size or ("gpu" if device == "cuda" else CORPORA.get(args.dataset, OTHER).cpu)]
    return run(args, size.with_sources(args.sources), device)


if __name__ == "__main__":
    raise SystemExit(main())
