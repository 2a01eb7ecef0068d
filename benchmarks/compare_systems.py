"""Scores several systems under one protocol with one scorer, and writes one table.

    python benchmarks/compare_systems.py --dataset_name tales --data_dir runs/compare/corpus \\
        --runs compressed=runs/compare/diffusion causal=runs/compare/causal \\
        --scorer models/smollm2-135m --output_dir runs/compare/table

Each run is sampled with the settings of its args.json, --num_samples texts for each of --seeds seeds, and compared with
as many texts of --split, the same for all systems. Beside the runs stand an n-gram model (the floor), training texts
(what memorization scores) and held-out texts (what a perfect system scores).

It writes scores.json, table.txt, table.md and samples-{system}.txt, one text per line. The folder may be filled row by
row: a row that is named again replaces the old one. A row under another protocol is refused: another corpus, scorer,
number of texts or seeds, other versions.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.systems import BASELINES, System, baseline_system, file_name, run_system, texts_of
from dataset_utils import registry, synthetic_stories
from dataset_utils.corpus import Corpus
from dataset_utils.digest import digest_corpus
from dataset_utils.options import DataOptions
from evaluation import report
from evaluation.memorization import NgramIndex
from evaluation.protocols import Result, evaluate_texts, over_seeds
from evaluation.score.scoring import SEEDS_FROM, draw_texts
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text
from utils.terminal import aligned, single_line

SCORES = "scores.json"
COLUMNS = {  # of the tables -> end of the key of a metric; {scorer}, {encoder}, {split} are filled in
    "MAUVE": "{scorer}_{split}_mauve",
    "MAUVE of embeddings": "{encoder}_{split}_mauve",
    "perplexity": "corpus_perplexity",
    "diversity": "diversity",
    "memorization": "memorization",
    "copies": "train_copy_rate",
    "linear AUC": "linear_auc",
    "empty": "empty",
    "grammatical": "grammatical",
    "distinct": "distinct",
}
DIGITS = {"perplexity": "{:.1f}", "empty": "{:.1f}"}


def parser() -> ArgumentParser:
    made = OneLineParser(
        prog="python benchmarks/compare_systems.py",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--dataset_name", help="corpus of the catalog, as for training")
    add("--data_dir", help="folder of the corpus, as for training")
    for split in ("train", "valid", "test"):
        add(f"--{split}_file", help=f"your own {split} texts, as for training")
    add(
        "--runs",
        nargs="*",
        default=[],
        metavar="NAME=FOLDER",
        help="systems: run folders, with the names of their rows",
    )
    add("--baselines", nargs="*", default=None, choices=BASELINES, metavar="ROW",
        help=f"rows beside the runs (default: all of {', '.join(BASELINES)})")  # fmt: skip
    add("--scorer", required=True, metavar="MODEL", help="causal language model: a folder or a hub id")
    add("--mauve_encoder", metavar="MODEL", help="encoder of sentences, a folder or a hub id (default: none)")
    add("--split", choices=("valid", "test"), default="test", help="real texts to compare with (default: %(default)s)")
    add("--num_samples", type=int, default=1000, help="texts of each system and seed (default: %(default)s)")
    add("--seeds", type=int, default=5, help=f"number of seeds, from {SEEDS_FROM} on (default: %(default)s)")
    add("--scorer_precision", choices=("fp32", "bf16"), default="fp32",
        help="of the scorer; bf16 takes half the time where the processor has it (default: %(default)s)")  # fmt: skip
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: %(default)s)")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="folder of the tables")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    for flag, least in (("num_samples", 2), ("seeds", 1)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)} is too small: give {least} or more")
    named = _named_runs(args.runs)
    corpus = _read_corpus(args)
    references = corpus.splits[args.split].texts
    if len(references) < args.num_samples:
        raise UserError(
            f"--num_samples {args.num_samples} is more than the {len(references)} texts of the {args.split} split: "
            f"give {len(references)} or fewer"
        )
    baselines = BASELINES if args.baselines is None else args.baselines
    systems = [run_system(name, folder, corpus, args.device) for name, folder in named.items()]
    systems += [baseline_system(name, corpus, args.split) for name in baselines]
    args.output_dir.mkdir(parents=True, exist_ok=True)

    judges = Judges(args, corpus)
    stored = _read_scores(args.output_dir / SCORES)
    _check_protocol(stored, judges.protocol(), args.output_dir)
    seeds = [SEEDS_FROM + i for i in range(args.seeds)]
    rows: dict[str, Any] = dict(stored["systems"]) if stored else {}
    for system in systems:
        texts = texts_of(system, args.num_samples, seeds, args.output_dir / "samples", _log)
        if system.name in rows and rows[system.name]["identity"] == system.identity:
            _log(f"{system.name}: scored before")
        else:
            rows[system.name] = _scored(system, texts, judges)
        write_text(args.output_dir / f"samples-{file_name(system.name)}.txt", _lines(texts[0]))
        write_json(args.output_dir / SCORES, {"protocol": judges.protocol(), "systems": report.nan_to_none(rows)})
    order = [*(name for name in rows if name not in BASELINES), *(name for name in BASELINES if name in rows)]
    made = table({name: rows[name] for name in order}, judges.names)
    write_text(args.output_dir / "table.txt", aligned(made))
    write_text(args.output_dir / "table.md", markdown(made) + "\n\n" + judges.describe() + "\n")
    print(aligned(made))
    print(judges.describe())
    print(f"written to {args.output_dir}")
    return 0


class Judges:
    """What scores every system in the same way: scorer, encoder, references, training texts."""

    def __init__(self, args: Namespace, corpus: Corpus) -> None:
        from evaluation import encoders, scorers
        from utils.distributed import pick_device

        self.args, self.corpus, device = args, corpus, pick_device(args.device)
        self.scorer = scorers.load(args.scorer, device=device)
        self.scorer.cache_dir = args.output_dir / "references"
        self.encoder = encoders.load(args.mauve_encoder, device=device) if args.mauve_encoder else None
        if self.encoder is not None:
            self.encoder.cache_dir = args.output_dir / "references"
        self.device = device
        self.split = {"valid": "val", "test": "test"}[args.split]
        self.index = NgramIndex(corpus.train.texts, args.output_dir / "references")
        self.is_grammar = corpus.name == "tales"
        encoder = "" if self.encoder is None else self.encoder.name
        if self.encoder is not None and self.encoder.name == self.scorer.name:
            encoder = f"{encoder}-embeddings"
        self.names = {"scorer": self.scorer.name, "encoder": encoder, "split": self.split}

    def score(self, texts: Sequence[str], seed: int) -> Result:
        """Every metric of a set of texts of a seed against as many references, under the names of the evaluation."""
        real = draw_texts(self.corpus.splits[self.args.split].texts, len(texts), seed)
        with self._precision():
            result = evaluate_texts(texts, {self.split: real}, self.index, self.scorer, encoder=self.encoder)
        if self.is_grammar:
            judged = synthetic_stories.grammar_metrics(texts, self.corpus.train.texts)
            result |= {key: judged[key] for key in ("grammatical", "agreement", "coherent", "novel", "distinct")}
        else:
            result["distinct"] = len(set(texts)) / len(texts)
        return result

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        if self.args.scorer_precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def protocol(self) -> dict[str, Any]:
        """Everything that is the same for all rows."""
        from utils.run_folder import package_versions

        encoder = None if self.encoder is None else {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint}
        return {
            "corpus": {
                "name": self.corpus.name,
                "splits": {name: digest.texts for name, digest in digest_corpus(self.corpus).items()},
                "sizes": {name: len(split) for name, split in self.corpus.splits.items()},
            },
            "references": self.args.split,
            "num_samples": self.args.num_samples,
            "seeds": [SEEDS_FROM + i for i in range(self.args.seeds)],
            "scorer": self.scorer.name,
            "fingerprint": self.scorer.fingerprint,
            "scorer_precision": self.args.scorer_precision,
            "mauve_encoder": encoder,
            "versions": dict(package_versions()),
        }

    def describe(self) -> str:
        """The protocol in one or two lines, for below a table."""
        sizes, p = {name: len(split) for name, split in self.corpus.splits.items()}, self.protocol()
        spread = f"{self.args.seeds} seeds (mean and deviation)" if self.args.seeds > 1 else "one seed"
        encoder = "" if self.encoder is None else f", embeddings by {self.encoder.name}"
        return (
            f"{p['num_samples']:,} texts of each system and seed, {spread}, "
            f"against as many {self.args.split} texts of {self.corpus.name} ({sizes['train']:,} training texts). MAUVE "
            f"and perplexity (pooled over tokens) by {self.scorer.name} in {self.args.scorer_precision}{encoder}."
        )


def _scored(system: System, texts: list[list[str]], judges: Judges) -> dict[str, Any]:
    """The row of a system: mean, deviation and values of each metric."""
    results, began = [], time.monotonic()
    for i, sample in enumerate(texts):
        results.append(judges.score(sample, SEEDS_FROM + i))
        left = (time.monotonic() - began) / (i + 1) * (len(texts) - i - 1)
        _log(f"{system.name}: seed {i + 1} of {len(texts)} scored, {left:.0f} s left")
    summary = over_seeds(results)
    protocols = summary.pop("protocol")["runs"]
    return {
        "kind": system.kind,
        "identity": system.identity,
        **{"facts": dict(system.facts)},
        "metrics": summary,
        "protocols": protocols,
    }


def table(rows: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    """Head and rows of the table. Columns that no row has are left out."""
    keys = {title: key.format(**names) for title, key in COLUMNS.items()}
    shown = [title for title, key in keys.items() if any(key in row["metrics"] for row in rows.values())]
    lines = [["system", "trained parameters", *shown]]
    for name, row in rows.items():
        parameters = row["facts"].get("trained_parameters")
        cells = [_cell(row["metrics"].get(keys[title]), DIGITS.get(title, "{:.3f}")) for title in shown]
        lines.append([name, "" if parameters is None else f"{parameters:,}", *cells])
    return lines


def _cell(value: Mapping[str, Any] | None, digits: str) -> str:
    if value is None or value.get("mean") is None:
        return ""
    text = digits.format(value["mean"])
    several = len(value["values"]) > 1 and value["std"] is not None
    return f"{text} ± {digits.format(value['std'])}" if several else text


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table for a README."""
    head, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def _named_runs(given: Sequence[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or not name.strip() or not folder:
            raise UserError(f"--runs {one}: give NAME=FOLDER, as in compressed=runs/diffusion")
        if name in named or name in BASELINES:
            raise UserError(f"--runs {one}: two rows would be named {name}: give each another name")
        named[name] = Path(folder)
    return named


def _read_corpus(args: Namespace) -> Corpus:
    names = ("dataset_name", "data_dir", "train_file", "valid_file", "test_file")
    options = DataOptions(**{name: getattr(args, name) for name in names})
    if not (options.dataset_name or options.train_file or options.data_dir):
        raise UserError("no corpus given: add --dataset_name NAME, or --train_file FILE")
    return registry.load(options)


def _read_scores(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(found["systems"], dict) and isinstance(found["protocol"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path} holds no scores of this program: name another --output_dir") from None
    return found


def _check_protocol(stored: Mapping[str, Any] | None, protocol: Mapping[str, Any], folder: Path) -> None:
    """UserError if rows of another protocol are in the folder."""
    if stored is None:
        return
    now = json.loads(json.dumps(protocol))
    for key in now.keys() | stored["protocol"].keys():
        before, new = stored["protocol"].get(key), now.get(key)
        if before != new:
            shown = f" ({single_line(str(before))[:60]}, now {single_line(str(new))[:60]})"
            raise UserError(
                f"{folder / SCORES} holds rows under another protocol: {key} differs{shown}: name another --output_dir"
            )


def _lines(texts: Sequence[str]) -> str:
    return "".join(single_line(text) + "\n" for text in texts)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
