"""DiffuSeq, DiffuSeq-v2 and latent diffusion on the same pairs, under one protocol, in one table.

    python benchmarks/pairs.py --output_dir runs/pairs [--dataset qqp --data_dir FOLDER] [--systems diffuseq latent]
        [--size cpu|gpu|tales] [--max_seconds S] [--lm DIR] [--bertscore_model DIR] [--steps_factor F]

Trains what --systems names (pairs_systems.py says with which flags), then draws K candidates for the same test
sources at several numbers of sampling steps, down to 2. One sample, MBR of K by sentence BLEU, the best of K (oracle)
and chance (predictions of other sources) are judged alike: BLEU, ROUGE-L, BERTScore where a model is named, dist-1,
self-BLEU, div-4, mean length, and perplexity by a small scorer trained on the targets. Beside them stand the source
itself, since a paraphrase repeats much of it, and references of other sources. Any corpus of pairs will do, by name.
The embedded corpus, tales-pairs, is made where no --data_dir is given. A paraphrase of it keeps 13 content slots, so
there the share of samples that keep every one is exact, and a further column.
--lm: a BART of ours or another. Its tokenizer then makes the tokens of the embeddings, too; without it a small BART is
trained on the texts of the pairs. Run again, it goes on: stages and evaluations that are done are not done again.
--max_seconds is shared among the systems alike, for training alone. Writes the runs, and record.json, table.md,
samples.txt and steps_*.png for benchmarks/records/.
How long: cpu about 8 minutes of training and 3 of evaluation of each system, on one core; gpu was not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the rooms, from any directory

from benchmarks.pairs_judge import KEEPS, Judge
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
    """Every stage of every system, the evaluations, the record. Returns the exit code of a stage that stopped, or 0."""
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
    asks = CORPORA.get(args.dataset, OTHER)
    words = {
        "dataset": args.dataset, "data": str(args.data_dir), "device": device, "scorer": str(scorer),
        "target": str(asks.target), "source": str(asks.source), "packed": str(asks.packed),
        "longest": str(max(asks.target, asks.source)), "tokens": asks.lm,
        "lm": args.lm or "{root}/lm", "vocab": args.lm or asks.vocab,
    }  # fmt: skip
    for name in args.systems:
        system = SYSTEMS[name]
        words["objective"] = OBJECTIVES.get(name, "pred_x0")
        for stage, share in system.stages(size, bool(args.lm), words):
            limit = [] if args.max_seconds is None else [str(round(share * args.max_seconds / len(args.systems)))]
            extra = ["--max_seconds", *limit] if limit else []
            code = clock.time(stage.name, partial(run_stage, scale_steps(stage, args.steps_factor), root, extra))
            if code:
                return code
    judge = Judge(corpus, root, scorer, size, device, args.bertscore_model, KEEPS.get(args.dataset))
    for name in args.systems:
        banner("evaluation", f"{SYSTEMS[name].about}, at {', '.join(map(str, size.steps))} steps")
        began = time.monotonic()
        judge.system(SYSTEMS[name])
        clock.add(f"evaluation of {name}", time.monotonic() - began)
    write(root, judge, args, clock.with_total())
    return 0


def make_corpus(name: str, folder: Path) -> Path:
    """The embedded corpus where none is named. Returns its folder; UserError for the others, which cannot be made."""
    from dataset_utils import synthetic_stories

    if name != EMBEDDED:
        raise UserError(f"--dataset {name} is not made here: pass --data_dir, or take --dataset {EMBEDDED}")
    return folder if (folder / "pairs_test.jsonl").is_file() else synthetic_stories.write(folder)


def write_texts(corpus: Corpus, folder: Path) -> None:
    """Sources and targets of each split as texts, for the language model and the autoencoder, which need both."""
    for name, split in corpus.splits.items():
        if not (folder / f"{name}.jsonl").is_file():
            texts = dict.fromkeys(split.all_texts())
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            write_text(folder / f"{name}.jsonl", "".join(lines))


def train_scorer(corpus: Corpus, folder: Path, device: str) -> int:
    """The scorer of perplexity, which all systems share."""
    from evaluation import scorers

    scorers.load(None, texts=corpus.train.texts, folder=folder, device=device)
    return 0


def write(root: Path, judge: Judge, args: argparse.Namespace, seconds: dict[str, float]) -> None:
    """record.json, table.md, samples.txt and the curves of quality against steps."""
    from evaluation import plots

    saved = {
        name: json.loads((root / SYSTEMS[name].run / "args.json").read_text(encoding="utf-8")) for name in args.systems
    }
    metadata = {
        "dataset": args.dataset,
        "sizes": {name: len(split) for name, split in judge.corpus.splits.items()},
        "systems": {name: {"about": SYSTEMS[name].about, **trained(root, name, saved[name])} for name in args.systems},
        "language_model": str(args.lm) if args.lm else "trained here",
        "protocol": judge.protocol(),
        "baselines": judge.baselines(),
        "results": [row.metadata() for row in judge.rows],
        "mbr_minus_one_sample": {row.name: row.gains() for row in judge.rows if row.steps == max(judge.steps)},
        "seconds": seconds,
        "git_commit": git_commit(),
        "package_versions": dict(package_versions()),
    }
    write_json(root / "record.json", metadata)
    write_text(root / "table.md", tables(metadata))
    write_text(root / "samples.txt", samples(judge))
    there = judge.rows[0].metadata()["metrics"]
    for key, label in ((key, label) for key, label in CURVES.items() if key in there):
        curves = {
            f"{name}, {kind}": [(row.steps, row.mean(prefix + key)) for row in judge.rows if row.name == name]
            for name in dict.fromkeys(row.name for row in judge.rows)
            for kind, prefix in (("one sample", ""), (f"MBR-{judge.candidates}", "mbr_"))
        }
        dashed = [name for name in curves if name.endswith(f"MBR-{judge.candidates}")]
        path = root / f"steps_{key}.png"
        plots.plot_xy(curves, path, xlabel="sampling steps", ylabel=label, log_x=True, dashed=dashed)
    print(tables(metadata))
    print(f"figures in {root / 'record.json'}, samples in {root / 'samples.txt'}")


def trained(root: Path, name: str, saved: dict[str, Any]) -> dict[str, Any]:
    """How a system was trained: steps taken, batch, parameters, and how well its autoencoder writes texts back."""
    from utils import checkpoints

    found: dict[str, Any] = {
        "steps": checkpoints.load(root / SYSTEMS[name].run).step,
        "batch": saved["train_batch_size"],
        "trainable_params": saved["trainable_params"],
    }
    reconstruction = root / "autoencoder/validation.json"
    if name == "latent" and reconstruction.is_file():
        kept = json.loads(reconstruction.read_text(encoding="utf-8"))
        found["autoencoder"] = {key: value for key, value in kept.items() if isinstance(value, int | float)}
    return found


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=EMBEDDED, help="a corpus of pairs: qqp, e2e-mr, ... (default %(default)s)")
    parser.add_argument("--data_dir", type=Path, default=None, help="the root that holds it; the default is made")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--size", choices=SIZES, default=None, help="default: gpu where CUDA is, else cpu or tales")
    parser.add_argument("--max_seconds", type=float, default=None, help="of training, of all systems together")
    parser.add_argument("--lm", default=None, help="a small BART trained before: a local folder, or a hub id")
    parser.add_argument("--bertscore_model", default=None, help="encoder of BERTScore; unset: left out")
    parser.add_argument("--steps_factor", type=float, default=1.0, help="scale the steps of every stage, to try it out")
    parser.add_argument("--sources", type=int, default=None, help="test pairs of each seed; unset: as --size says")
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
