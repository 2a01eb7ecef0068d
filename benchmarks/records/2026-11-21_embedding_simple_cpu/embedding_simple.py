"""Diffusion on token embeddings, trained from scratch on two CPU cores: the simple corpus, control, and greetings.

    python benchmarks/records/2026-11-21_embedding_simple_cpu/embedding_simple.py --data_dir FOLDER \
        --output_dir runs/embedding_simple

FOLDER holds simple/ and greetings/ (scripts/data fetches them). The sentences of `simple` follow a grammar, "The COLOR
FOOD is ADJECTIVE.", so quality is exact: the share of samples that parse, with every step of the chain and with 20
solver steps; the share of the vocabulary in them; the share of new sentences, beside that of held-out lines. A
classifier of noised latents then guides samples towards each label, which in this corpus depends on the color. The
metric of greetings is perplexity by a small scorer trained on them. A second call continues an interrupted one. Writes
record.json, table.md and samples.txt. How long: --max_seconds of training (20 minutes at most), 3 minutes for the
classifier, 15 for the samples.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # so that our packages are importable from any directory

from pipelines.cli.programs import CLASSIFIER, DIFFUSION
from pipelines.stages import Stage, run_stage
from utils.argparse_utils import OneLineParser
from utils.cli.parse import parse
from utils.errors import exit_on_user_error
from utils.run_folder import write_json, write_text

SENTENCE = re.compile(r"The (\S+) (\S+(?: \S+)?) is (\S+)\.")
SOLVER: dict[str, Any] = {"sampler": "dpmpp", "sampling_timesteps": 20}
NETWORK = (
    "--latent_space embeddings --config vocab_lowercase=false --embedding_dim 32 --tx_dim 128 --tx_depth 3 "
    "--self_condition --scale_shift --disable_dropout --learning_rate 1e-3 --lr_schedule cosine --lr_warmup_steps 100 "
    "--train_batch_size 64 --eval_batch_size 100 --num_samples 100 --save_and_sample_every 100000 --save_every 500 "
    "--sampler dpmpp --sampling_timesteps 20 --log_every 100 --device cpu "
)
SIMPLE = NETWORK + "--dataset_name simple --max_seq_len 10 --num_train_steps {steps} --data_dir {data}"
GREETINGS = NETWORK + "--dataset_name greetings --max_seq_len 24 --num_train_steps {greeting_steps} --data_dir {data}"
LABELS = (
    "--diffusion_run {root}/simple --dataset_name simple --data_dir {data} --classifier_dim 64 --classifier_depth 2 "
    "--num_train_steps 400 --train_batch_size 64 --learning_rate 1e-3 --eval_every 200 --log_every 100 --device cpu"
)


@dataclass(frozen=True)
class Grammar:
    """Words of the training lines by position, and the lines."""

    words: tuple[frozenset[str], frozenset[str], frozenset[str]]
    seen: frozenset[str]
    label_of: dict[str, str]  # color -> label

    @classmethod
    def of(cls, texts: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> Grammar:
        parsed = [match.groups() for text in texts if (match := SENTENCE.fullmatch(text))]
        places = tuple(frozenset(row[i] for row in parsed) for i in range(3))
        pairs = zip(texts, labels, strict=True)
        label_of = {match[1]: names[label] for text, label in pairs if (match := SENTENCE.fullmatch(text))}
        return cls(places, frozenset(texts), label_of)  # type: ignore[arg-type]

    def parse(self, text: str) -> tuple[str, ...] | None:
        """(color, food, adjective), or None for other texts."""
        match = SENTENCE.fullmatch(text)
        good = match and all(word in place for word, place in zip(match.groups(), self.words, strict=True))
        return match.groups() if match and good else None

    def metrics(self, texts: Sequence[str]) -> dict[str, float]:
        parsed = [row for text in texts if (row := self.parse(text))]
        used = [len({row[i] for row in parsed}) / len(self.words[i]) for i in range(3)]
        return {
            "texts": len(texts),
            "grammatical": len(parsed) / len(texts),
            "colours_used": used[0],
            "foods_used": used[1],
            "adjectives_used": used[2],
            "new": sum(text not in self.seen for text in texts) / len(texts),
            "different": len(set(texts)) / len(texts),
        }

    def with_label(self, texts: Sequence[str], label: str) -> float:
        """Share of texts whose color has the label."""
        rows = [self.parse(text) for text in texts]
        return sum(row is not None and self.label_of[row[0]] == label for row in rows) / len(texts)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    return run(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    made = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data_dir", required=True, help="folder that holds simple/ and greetings/")
    made.add_argument("--output_dir", type=Path, default=Path("runs/embedding_simple"))
    made.add_argument("--max_seconds", type=int, default=1150, help="of training (default %(default)s)")
    made.add_argument("--steps", type=int, default=2500, help="training steps at most (default %(default)s)")
    made.add_argument("--greeting_steps", type=int, default=1500, help="of greetings; 0: leave them out")
    made.add_argument("--samples", type=int, default=500, help="by the solver (default %(default)s)")
    made.add_argument("--full_samples", type=int, default=200, help="by every step of the chain (default %(default)s)")
    return made


def run(args: argparse.Namespace) -> int:
    from dataset_utils import registry
    from dataset_utils.options import DataOptions
    from pipelines import train_classifier
    from pipelines.text_diffusion import TextDiffusionPipeline

    root, began = args.output_dir, time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    numbers = {"data": args.data_dir, "steps": args.steps, "greeting_steps": args.greeting_steps, "root": root}
    training = Stage("simple", DIFFUSION, "embeddings on the simple corpus", "metrics.json", SIMPLE.format(**numbers))
    seconds = {"simple": timed(lambda: run_stage(training, root, ["--max_seconds", str(args.max_seconds)]))}
    if not (root / "labels" / "checkpoints").is_dir():
        settings = parse(CLASSIFIER, [*LABELS.format(**numbers).split(), "--output_dir", str(root / "labels")])
        seconds["classifier"] = timed(lambda: train_classifier.train(settings))

    corpus = registry.load(DataOptions(dataset_name="simple", data_dir=args.data_dir))
    grammar = Grammar.of(corpus.train.texts, corpus.train.labels or [], corpus.class_names)
    run_of = root / "simple"
    record: dict[str, Any] = {"held_out": grammar.metrics(corpus.test.texts)}
    samples: dict[str, list[str]] = {}

    def sample(name: str, n: int, **flags: Any) -> list[str]:
        started = time.monotonic()
        pipeline = TextDiffusionPipeline.from_pretrained(run_of, device="cpu", eval_batch_size=100, **flags)
        samples[name] = pipeline.sample(n, seed=1, decoding="greedy")
        record[name] = grammar.metrics(samples[name]) | {"seconds": round(time.monotonic() - started, 1)}
        print(name, {key: round(value, 4) for key, value in record[name].items()}, flush=True)
        return samples[name]

    unguided = sample("solver, 20 steps", args.samples, **SOLVER)
    control = {"latent_classifier": root / "labels", "guidance_strength": 20, "guidance_step_size": 0.2}
    for label in corpus.class_names:
        guided = sample(f"solver, 20 steps, label {label}", args.samples, **SOLVER, **control, target_label=label)
        shares = {"wanted": grammar.with_label(guided, label), "wanted_unguided": grammar.with_label(unguided, label)}
        record[f"solver, 20 steps, label {label}"] |= shares
        print(f"label {label}", shares, flush=True)
    sample("every step (2000)", args.full_samples, sampler="ddpm", sampling_timesteps=2000)
    if args.greeting_steps:
        stage = Stage("greetings", DIFFUSION, "embeddings on greetings", "metrics.json", GREETINGS.format(**numbers))
        seconds["greetings"] = timed(lambda: run_stage(stage, root))
        record["greetings"] = greetings(root / "greetings", args.data_dir, samples)
    write_json(root / "record.json", {"seconds": seconds | {"all": round(time.monotonic() - began)}, **record})
    write_text(root / "table.md", table(record))
    write_text(root / "samples.txt", "".join(f"## {k}\n" + "\n".join(v[:20]) + "\n\n" for k, v in samples.items()))
    print(table(record))
    return 0


def greetings(folder: Path, data: str, samples: dict[str, list[str]]) -> dict[str, float]:
    """Perplexity of samples and of held-out greetings by a small scorer; share of new and of distinct samples."""
    from dataset_utils import registry
    from dataset_utils.options import DataOptions
    from evaluation import scorers
    from evaluation.fluency import perplexity
    from pipelines.text_diffusion import TextDiffusionPipeline

    corpus = registry.load(DataOptions(dataset_name="greetings", data_dir=data))
    texts = TextDiffusionPipeline.from_pretrained(folder, device="cpu", **SOLVER)(100, seed=1, decoding="greedy").texts
    samples["greetings, solver, 20 steps"] = texts
    scorer = scorers.load(None, texts=corpus.train.texts, folder=folder / "scorer", device="cpu")
    seen = set(corpus.train.texts)
    return {
        "perplexity": perplexity(texts, scorer)["perplexity"],
        "perplexity_held_out": perplexity(corpus.test.texts, scorer)["perplexity"],
        "new": sum(text not in seen for text in texts) / len(texts),
        "different": len(set(texts)) / len(texts),
    }


def timed(fn: Any) -> float:
    began = time.monotonic()
    if fn():
        raise SystemExit("a stage failed: see its messages above")
    return round(time.monotonic() - began, 1)


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    names = ("grammatical", "wanted", "wanted_unguided", "colours_used", "foods_used", "adjectives_used", "new",
             "different", "texts", "seconds")  # fmt: skip
    lines = ["| samples | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, row in record.items():
        if "grammatical" in row:
            cells = ["" if name not in row else f"{row[name]:.4g}" for name in names]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    if "greetings" in record:
        lines += ["", "greetings: " + ", ".join(f"{k} {v:.4g}" for k, v in record["greetings"].items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
