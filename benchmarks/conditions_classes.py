"""Class-conditional diffusion: are samples of the class asked for, and what does guidance do to them?

    python benchmarks/conditions_classes.py --output_dir runs/tales_classes
    python benchmarks/conditions_classes.py --output_dir runs/sst --dataset sst --data_dir FOLDER --max_seconds 600

Of every class equally many texts are sampled, all from different noise, for each guidance weight (0 ignores the class,
1 is unguided). Reported: the share judged of the class asked for, by a classifier trained on the corpus, whose share of
right answers on held-out texts stands beside it; on the embedded corpus by the grammar, too; diversity, MAUVE against
held-out texts, perplexity, memorisation. Held-out texts are the last row, their MAUVE is that of training texts.

Without --data_dir the embedded corpus is made and everything trained on it. With a real corpus the language model
learns from every corpus found in FOLDER, the rest from the one named, and the decoder is trained on for the denoiser at
the end; --max_seconds is shared among the stages. --lm and --autoencoder take what was trained before. Run again, it
goes on. Writes the runs and, to keep, record.json, table.md, samples.txt, guidance.png and classes.png.
How long: tales about 25 minutes on one core, 9 of them for sampling; a real corpus --max_seconds and the sampling.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the rooms, from any directory

from pipelines.cli.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from pipelines.quickstart import DENOISER, stages_before_diffusion
from pipelines.stages import ROBUST_AUTOENCODER, StageTimer, Stage, banner, adapt_decoder_stage, run_stage
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text

PLACES = {"roc": "ROCstory", "ag_news": "ag_news", "sst": "sst", "e2e": "e2e_data", "qqp": "qqp"}
SHARES = {"lm": 0.25, "autoencoder": 0.3, "diffusion": 0.15, "decoder": 0.3}  # of --max_seconds
DRAWN = ("right", "right_by_grammar", "agreement", "mauve", "class_mauve")
SHOWN = 8  # samples of each class and weight in samples.txt
COLUMNS = ("right", "right_by_grammar", "grammatical", "agreement", "diversity", "class_diversity", "distinct", "mauve",
           "class_mauve", "perplexity", "memorization")  # fmt: skip


@dataclass(frozen=True)
class Paths:
    """Where things are: root of everything that is made, and what the stages take."""

    root: Path
    data: str
    lm: str
    autoencoder: str


def tales_stages(where: Paths) -> list[Stage]:
    """The quickstart's stages, the denoiser told the class."""
    corpus = f"--dataset_name tales --data_dir {where.data} --max_seq_len 32 --log_every 50 "
    diffusion = Stage(
        "diffusion", DIFFUSION, "the denoiser, told the class", "metrics.json",
        corpus + f"--enc_dec_model {where.lm} --latent_model_path {where.autoencoder} --class_conditional"
        " --num_train_steps 1800 --save_and_sample_every 100000 --save_every 300 --num_samples 16"
        " --sampling_timesteps 50" + DENOISER,
    )  # fmt: skip
    return [*stages_before_diffusion(corpus, where.lm), diffusion]


def real_stages(where: Paths, dataset: str) -> list[Stage]:
    """Small enough for some minutes on a CPU; the decoder is trained to forgive what a short diffusion gets wrong."""
    every = "+".join(name for name, place in PLACES.items() if (Path(where.data) / place).is_dir())
    several = f"--dataset_name {every} --data_dir {where.data} --max_seq_len 64 --log_every 50 "
    one = f"--dataset_name {dataset} --data_dir {where.data} --max_seq_len 64 --log_every 50 "
    autoencoder = (
        f"--enc_dec_model {where.lm} --num_train_steps 1200 --train_batch_size 32 --learning_rate 1e-3"
        " --lr_schedule cosine --lr_warmup_steps 50 --eval_every 400 --eval_texts 100 --eval_batch_size 100"
        " --decoding greedy" + ROBUST_AUTOENCODER
    )
    return [
        Stage("lm", PRETRAIN, "a small BART on every text at hand", "validation.json",
              several + "--tokenizer bpe --vocab_size 2000 --d_model 192 --layers 2 --heads 4 --config random_token_prob=0.3"
              " --mask_prob 0.1 --config uncorrupted_prob=0.6 --num_train_steps 700 --train_batch_size 48 --learning_rate 2e-3"
              " --lr_warmup_steps 100 --eval_every 350 --eval_texts 200"),
        Stage("autoencoder", AUTOENCODER, f"the autoencoder on {dataset}", "validation.json", one + autoencoder),
        Stage("diffusion", DIFFUSION, f"the denoiser on {dataset}, told the class", "metrics.json",
              one + f"--latent_model_path {where.autoencoder} --class_conditional --objective pred_v --self_condition"
              " --scale_shift --disable_dropout --tx_dim 192 --tx_depth 4 --num_train_steps 1200 --train_batch_size 64"
              " --learning_rate 2e-3 --lr_warmup_steps 50 --ema_decay 0.995 --save_and_sample_every 100000"
              " --save_every 300 --num_samples 16 --sampling_timesteps 30 --decoding greedy"),
        adapt_decoder_stage(one + autoencoder, "--num_train_steps 1500", where.autoencoder),
    ]  # fmt: skip


def train(where: Paths, stages: Sequence[Stage], given: Sequence[str], seconds: float | None, clock: StageTimer) -> int:
    """Every stage but those given; returns the exit code of the one that stopped, or 0."""
    wanted = [stage for stage in stages if stage.name not in given]
    whole = sum(SHARES[stage.name] for stage in wanted)
    for stage in wanted:
        limit = [] if seconds is None else ["--max_seconds", str(round(SHARES[stage.name] / whole * seconds))]
        code = clock.time(stage.name, partial(run_stage, stage, where.root, limit))
        if code:
            return code
    return 0


class Measure:
    """Numbers of labelled texts: what any samples are judged by, and whether each is of its class."""

    def __init__(self, where: Paths, corpus: Any, samples: int) -> None:
        from evaluation import classifiers, scorers
        from evaluation.classwise import FeatureCache
        from evaluation.memorization import NgramIndex

        train, valid = corpus.train, corpus.valid
        self.corpus = corpus
        self.names = corpus.class_names
        self.scorer = scorers.load(None, texts=train.texts, folder=where.root / "diffusion" / "scorer")
        self.classifier = classifiers.load(
            None, self.names, texts=train.texts, labels=train.labels, held_out=(valid.texts, valid.labels),
            folder=where.root / "classifier",
        )  # fmt: skip
        self.memory, self.features = NgramIndex(train.texts), FeatureCache(self.scorer)
        held_out, training = by_class(valid), by_class(train)
        self.n = min(samples, *map(len, held_out.values()))  # of each class, so that MAUVE compares like with like
        self.references = {c: texts[: self.n] for c, texts in held_out.items()}
        self.training = {c: texts[: self.n] for c, texts in training.items()}
        self.pooled = self.compose_hooks(self.references)

    @property
    def asked(self) -> list[int]:
        """The classes of the texts that are asked for: in turn, equally many of each."""
        return [i % len(self.names) for i in range(self.n * len(self.names))]

    def compose_hooks(self, of_class: dict[int, list[str]]) -> list[str]:
        """Texts of every class in the order of `asked`."""
        return [of_class[c][i // len(self.names)] for i, c in enumerate(self.asked)]

    def __call__(self, texts: list[str], *, real: bool = False) -> dict[str, Any]:
        """real: the texts are the held-out ones, whose MAUVE is that of training texts against them."""
        from evaluation import classwise
        from evaluation.diversity import ngram_diversity
        from evaluation.mauve import mauve_of_features
        from evaluation.metrics import SAMPLES, MetricContext, compute_metrics

        of_class = {c: [t for t, asked in zip(texts, self.asked, strict=True) if asked == c] for c in self.references}
        numbers, _ = compute_metrics(MetricContext(texts, scorer=self.scorer, training=self.memory), SAMPLES)
        right = classwise.label_accuracy(self.classifier, texts, self.asked)
        compared = self.training if real else of_class
        matrix = classwise.compare_classes(compared, {"val": self.references}, self.features)
        judged = classwise.compare_classes(of_class, {}, None, self.classifier).predicted_shares
        p = self.features(self.compose_hooks(compared))
        found: dict[str, Any] = {
            "right": right["accuracy"],
            "right_by_class": right["by_class"],
            **{key: numbers[key] for key in ("diversity", "perplexity", "memorization", "train_copy_rate", "empty")},
            "class_diversity": mean(ngram_diversity(some)["diversity"] for some in of_class.values()),
            "distinct": len(set(texts)) / len(texts),
            "judged": judged,
            "mauve": mauve_of_features(p, self.features(self.pooled)).score,
            "class_mauve": mean(matrix.mauve["val"][c][c] for c in of_class),
            "mauve_matrix": matrix.mauve["val"],
        }
        return found | self.by_grammar(texts)

    def by_grammar(self, texts: Sequence[str]) -> dict[str, float]:
        """What the grammar of the embedded corpus says: the class is where a story goes; nothing for other corpora."""
        if self.corpus.name != "tales":
            return {}
        from dataset_utils import synthetic_stories

        topics = [None if (story := synthetic_stories.parse(text)) is None else story.topic for text in texts]
        right = mean(topic == self.names[c] for topic, c in zip(topics, self.asked, strict=True))
        judged = synthetic_stories.grammar_metrics(texts, self.corpus.train.texts)
        return {"right_by_grammar": right, **{k: judged[k] for k in ("grammatical", "agreement", "coherent", "novel")}}


def by_class(split: Any) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for text, label in zip(split.texts, split.labels, strict=True):
        found.setdefault(label, []).append(text)
    return {c: found[c] for c in sorted(found)}


def mean(values: Any) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)


def sample(where: Paths, steps: int) -> Callable[[Sequence[int], float], list[str]]:
    """(classes, guidance weight) -> a text of each class."""
    from pipelines.text_diffusion import TextDiffusionPipeline

    run = where.root / "diffusion"
    flags: dict[str, Any] = {"sampling_timesteps": steps, "eval_batch_size": 250}
    if (where.root / "decoder").is_dir():
        flags["latent_model_path"] = where.root / "decoder"
    pipeline = TextDiffusionPipeline.from_run(run, **flags)
    return lambda asked, weight: pipeline(len(asked), decoding="greedy", class_id=asked, guidance=weight)


def judge(where: Paths, dataset: str, weights: Sequence[float], samples: int, steps: int, clock: StageTimer) -> None:
    from dataset_utils import registry
    from dataset_utils.options import DataOptions

    corpus = registry.load(DataOptions(dataset_name=dataset, data_dir=where.data))
    measure, draw = Measure(where, corpus, samples), sample(where, steps)
    folder = where.root / "guidance"
    for weight in weights:
        path = folder / f"{weight:g}.json"
        if path.is_file():
            continue
        texts: list[str] = []
        clock.time(f"sampling at {weight:g}", lambda w=weight, out=texts: out.extend(draw(measure.asked, w)) or 0)  # type: ignore[misc]
        write_json(path, {**measure(texts), "texts": texts})
        print(line(f"{weight:g}", json.loads(path.read_text())), flush=True)
    record(where, dataset, measure, weights, steps, clock)


def record(where: Paths, dataset: str, measure: Measure, weights: Sequence[float], steps: int, clock: StageTimer) -> None:
    """record.json, the table, samples, and two pictures."""
    from evaluation import plots, report

    found = {f"{w:g}": json.loads((where.root / "guidance" / f"{w:g}.json").read_text()) for w in weights}
    real, names = measure(measure.pooled, real=True), measure.names
    valid = measure.corpus.valid
    own = measure.classifier.accuracy(valid.texts, valid.labels)
    rows = [header(), *(line(weight, numbers) for weight, numbers in found.items()), line("held-out", real)]
    text = "\n".join(rows) + (
        f"\n\n{measure.n} texts of each class, {steps} steps. The classifier is right on {own['accuracy']:.1%} of "
        f"all {own['n']} held-out texts.\n"
    )
    write_text(where.root / "table.md", text)
    shown = []
    for w in found:
        for c, name in enumerate(names):
            texts = found[w]["texts"][c :: len(names)][:SHOWN]
            shown.append(f"== guidance {w}, {name}\n" + "".join(report.single_line(text) + "\n" for text in texts))
    write_text(where.root / "samples.txt", "\n".join(shown))
    args = json.loads((where.root / "diffusion" / "args.json").read_text())
    write_json(where.root / "record.json", {
        "dataset": dataset, "class_names": names, "n_of_each_class": measure.n, "sampling_timesteps": steps,
        "git_commit": args["git_commit"], "package_versions": args["package_versions"], "seconds": clock.with_total(),
        "classifier": {**measure.classifier.protocol(), "held_out": own}, "held_out": real,
        "scorer": {"name": measure.scorer.name, "fingerprint": measure.scorer.fingerprint, "comparable": False},
        "guidance": {w: {k: v for k, v in numbers.items() if k != "texts"} for w, numbers in found.items()},
    })  # fmt: skip
    curves = {key: [(float(w), numbers[key]) for w, numbers in found.items()] for key in DRAWN if key in real}
    for key in ("diversity", "class_diversity"):
        curves[f"{key}, held-out = 1"] = [(float(w), numbers[key] / real[key]) for w, numbers in found.items()]
    plots.plot_xy(curves, where.root / "guidance.png", xlabel="guidance weight")
    middle = found.get("1", next(iter(found.values())))
    plots.heat_maps(
        [plots.HeatMap("MAUVE, guidance 1", middle["mauve_matrix"], names, names, "samples of", "held-out texts of"),
         plots.HeatMap("judged of class", [row[:-1] for row in middle["judged"]], names, names, "asked for", "judged")],
        where.root / "classes.png",
    )  # fmt: skip
    print(f"\n{text}\nfigures in {where.root / 'record.json'}")


def header() -> str:
    return "| guidance | " + " | ".join(COLUMNS).replace("_", " ") + " |\n|" + "---|" * (len(COLUMNS) + 1)


def line(title: str, numbers: dict[str, Any]) -> str:
    cells = ["" if numbers.get(key) is None else f"{numbers[key]:.4g}" for key in COLUMNS]
    return f"| {title} | " + " | ".join(cells) + " |"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dataset", default="tales", help="a labelled corpus of the registry (default: %(default)s)")
    parser.add_argument("--data_dir", type=Path, help="folder of the corpora; tales needs none")
    parser.add_argument("--lm", type=Path, help="a language model trained before")
    parser.add_argument("--autoencoder", type=Path, help="an autoencoder trained before, around --lm")
    parser.add_argument("--max_seconds", type=float, help="of training, shared among the stages")
    parser.add_argument("--weights", default="0,0.5,1,1.5,2,3,5", help="guidance weights (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="texts of each class and weight, at most")
    parser.add_argument("--steps", type=int, default=25, help="of the sampler (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        weights = [float(word) for word in args.weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {args.weights}: give numbers joined by commas") from None
    if args.autoencoder and not args.lm:
        raise UserError("--autoencoder needs the --lm that it was trained around")
    if args.dataset != "tales" and args.data_dir is None:
        raise UserError(f"--dataset {args.dataset} needs --data_dir, the folder that holds it")
    root = args.output_dir
    root.mkdir(parents=True, exist_ok=True)
    clock = StageTimer(root / "seconds.json")
    data = args.data_dir or root / "corpus"
    if args.dataset == "tales" and not (data / "train.jsonl").is_file():
        from dataset_utils import synthetic_stories

        banner("corpus", "20,000 training stories, 2,000 for validation and 2,000 for the test")
        synthetic_stories.write(data)
    where = Paths(root, str(data), str(args.lm or root / "lm"), str(args.autoencoder or root / "autoencoder"))
    given = [name for name, path in (("lm", args.lm), ("autoencoder", args.autoencoder)) if path]
    stages = tales_stages(where) if args.dataset == "tales" else real_stages(where, args.dataset)
    code = train(where, stages, given, args.max_seconds, clock)
    if code == 0:
        banner("guidance", f"{args.samples} samples of each class for each of {len(weights)} weights")
        judge(where, args.dataset, weights, args.samples, args.steps, clock)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
