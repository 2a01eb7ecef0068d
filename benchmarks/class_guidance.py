"""Class-conditional diffusion: label accuracy and quality of samples by guidance weight.

    python benchmarks/class_guidance.py --output_dir runs/tales_classes
    python benchmarks/class_guidance.py --output_dir runs/sst --dataset sst --data_dir FOLDER --max_seconds 600

For each guidance weight (0 ignores the class, 1 is unguided) it samples the same number of texts of every class, all
from different noise. It reports the label accuracy by a classifier trained on the corpus, next to the accuracy of that
classifier on held-out texts; on the embedded stories also by their grammar; diversity, MAUVE against held-out texts,
perplexity, memorization. The last row is held-out texts; its MAUVE is that of training texts.

Without --data_dir it generates the embedded stories and trains everything on them. With a real corpus the language
model trains on every corpus found in FOLDER, the other stages on --dataset; the last stage adapts the decoder to the
denoiser. --max_seconds is shared among the stages. --lm and --autoencoder name trained models. A second call continues
an interrupted one. Writes the runs, and for a record record.json, table.md, samples.txt, guidance.png and classes.png.
How long: embedded stories about 25 minutes on one core, 9 of them for sampling; a real corpus --max_seconds and
sampling.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from pipelines.cli.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from pipelines.quickstart import DENOISER, stages_before_diffusion
from pipelines.stages import ROBUST_AUTOENCODER, Stage, StageTimer, adapt_decoder_stage, banner, run_stage
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text
from utils.terminal import single_line

FOLDERS = {"roc": "ROCstory", "ag_news": "ag_news", "sst": "sst", "e2e": "e2e_data", "qqp": "qqp"}
SHARES = {"lm": 0.25, "autoencoder": 0.3, "diffusion": 0.15, "decoder": 0.3}  # of --max_seconds
PLOTTED = ("right", "right_by_grammar", "agreement", "mauve", "class_mauve")
NUM_SHOWN = 8  # samples of each class and weight in samples.txt
COLUMNS = ("right", "right_by_grammar", "grammatical", "agreement", "diversity", "class_diversity", "distinct", "mauve",
           "class_mauve", "perplexity", "memorization")  # fmt: skip


@dataclass(frozen=True)
class Paths:
    """Folders of an experiment: root of all outputs, and the inputs of the stages."""

    root: Path
    data: str
    lm: str
    autoencoder: str


def tales_stages(paths: Paths) -> list[Stage]:
    """The stages of the quickstart, with a class-conditional denoiser."""
    corpus = f"--dataset_name tales --data_dir {quote(paths.data)} --max_seq_len 32 --log_every 50 "
    diffusion = Stage(
        "diffusion", DIFFUSION, "the class-conditional denoiser", "metrics.json",
        corpus + f"--enc_dec_model {quote(paths.lm)} --latent_model_path {quote(paths.autoencoder)} --class_conditional"
        " --num_train_steps 1800 --save_and_sample_every 100000 --save_every 300 --num_samples 16"
        " --sampling_timesteps 50" + DENOISER,
    )  # fmt: skip
    return [*stages_before_diffusion(corpus, quote(paths.lm)), diffusion]


def real_stages(paths: Paths, dataset: str) -> list[Stage]:
    """Stages that take minutes on a CPU; the decoder is made robust to errors of a short diffusion training."""
    all_corpora = "+".join(name for name, folder in FOLDERS.items() if (Path(paths.data) / folder).is_dir())
    mixed = f"--dataset_name {all_corpora} --data_dir {quote(paths.data)} --max_seq_len 64 --log_every 50 "
    single = f"--dataset_name {dataset} --data_dir {quote(paths.data)} --max_seq_len 64 --log_every 50 "
    autoencoder = (
        f"--enc_dec_model {quote(paths.lm)} --num_train_steps 1200 --train_batch_size 32 --learning_rate 1e-3"
        " --lr_schedule cosine --lr_warmup_steps 50 --eval_every 400 --eval_texts 100 --eval_batch_size 100"
        " --decoding greedy" + ROBUST_AUTOENCODER
    )
    return [
        Stage("lm", PRETRAIN, "a small BART on the texts of all corpora", "validation.json",
              mixed + "--tokenizer bpe --vocab_size 2000 --d_model 192 --layers 2 --heads 4"
              " --config random_token_prob=0.3 --mask_prob 0.1 --config uncorrupted_prob=0.6 --num_train_steps 700"
              " --train_batch_size 48 --learning_rate 2e-3 --lr_warmup_steps 100 --eval_every 350 --eval_texts 200"),
        Stage("autoencoder", AUTOENCODER, f"the autoencoder on {dataset}", "validation.json", single + autoencoder),
        Stage("diffusion", DIFFUSION, f"the class-conditional denoiser on {dataset}", "metrics.json",
              single + f"--latent_model_path {quote(paths.autoencoder)} --class_conditional --objective pred_v"
              " --self_condition --scale_shift --disable_dropout --tx_dim 192 --tx_depth 4 --num_train_steps 1200"
              " --train_batch_size 64 --learning_rate 2e-3 --lr_warmup_steps 50"
              " --ema_decay 0.995 --save_and_sample_every 100000 --save_every 300 --num_samples 16 "
              "--sampling_timesteps 30 --decoding greedy"),
        adapt_decoder_stage(single + autoencoder, "--num_train_steps 1500", quote(paths.autoencoder)),
    ]  # fmt: skip


def train(
    paths: Paths, stages: Sequence[Stage], trained: Sequence[str], seconds: float | None, clock: StageTimer
) -> int:
    """Run the stages that are not in `trained`. Returns the exit code of the first that failed, or 0."""
    remaining = [stage for stage in stages if stage.name not in trained]
    total_share = sum(SHARES[stage.name] for stage in remaining)
    for stage in remaining:
        limit = [] if seconds is None else ["--max_seconds", str(round(SHARES[stage.name] / total_share * seconds))]
        code = clock.time(stage.name, partial(run_stage, stage, paths.root, limit))
        if code:
            return code
    return 0


class ClassMetrics:
    """Metrics of labeled texts: quality and label accuracy."""

    def __init__(self, paths: Paths, corpus: Any, samples: int) -> None:
        from evaluation import classifiers, scorers
        from evaluation.classwise import FeatureCache
        from evaluation.memorization import NgramIndex

        train, valid = corpus.train, corpus.valid
        self.corpus = corpus
        self.names = corpus.class_names
        self.scorer = scorers.load(None, texts=train.texts, folder=paths.root / "diffusion" / "scorer")
        self.classifier = classifiers.load(
            None, self.names, texts=train.texts, labels=train.labels, held_out=(valid.texts, valid.labels),
            folder=paths.root / "classifier",
        )  # fmt: skip
        self.memory, self.features = NgramIndex(train.texts), FeatureCache(self.scorer)
        held_out, training = by_class(valid), by_class(train)
        # number of texts of each class, so that every MAUVE score uses equally many texts
        self.n = min(samples, *map(len, held_out.values()))
        self.references = {c: texts[: self.n] for c, texts in held_out.items()}
        self.training = {c: texts[: self.n] for c, texts in training.items()}
        self.pooled = self.interleave(self.references)

    @property
    def labels(self) -> list[int]:
        """Classes to sample, in turn, with the same number of texts for each."""
        return [i % len(self.names) for i in range(self.n * len(self.names))]

    def interleave(self, of_class: dict[int, list[str]]) -> list[str]:
        """Texts of every class in the order of `labels`."""
        return [of_class[c][i // len(self.names)] for i, c in enumerate(self.labels)]

    def __call__(self, texts: list[str], *, real: bool = False) -> dict[str, Any]:
        """Metrics of texts in the order of `labels`.

        real: the texts are the held-out ones, and MAUVE compares training texts with them.
        """
        from evaluation import classwise
        from evaluation.diversity import ngram_diversity
        from evaluation.mauve import mauve_of_features
        from evaluation.metrics import SAMPLES, MetricContext, compute_metrics

        of_class = {c: [t for t, label in zip(texts, self.labels, strict=True) if label == c] for c in self.references}
        values, _ = compute_metrics(MetricContext(texts, scorer=self.scorer, training=self.memory), SAMPLES)
        accuracy = classwise.label_accuracy(self.classifier, texts, self.labels)
        compared = self.training if real else of_class
        matrix = classwise.compare_classes(compared, {"val": self.references}, self.features)
        predicted = classwise.compare_classes(of_class, {}, None, self.classifier).predicted_shares
        p = self.features(self.interleave(compared))
        result: dict[str, Any] = {
            "right": accuracy["accuracy"],
            "right_by_class": accuracy["by_class"],
            **{key: values[key] for key in ("diversity", "perplexity", "memorization", "train_copy_rate", "empty")},
            "class_diversity": mean(ngram_diversity(some)["diversity"] for some in of_class.values()),
            "distinct": len(set(texts)) / len(texts),
            "judged": predicted,
            "mauve": mauve_of_features(p, self.features(self.pooled)).score,
            "class_mauve": mean(matrix.mauve["val"][c][c] for c in of_class),
            "mauve_matrix": matrix.mauve["val"],
        }
        return result | self.by_grammar(texts)

    def by_grammar(self, texts: Sequence[str]) -> dict[str, float]:
        """Metrics by the grammar of the embedded stories, whose class is their topic; empty for other corpora."""
        if self.corpus.name != "tales":
            return {}
        from dataset_utils import synthetic_stories

        topics = [None if (story := synthetic_stories.parse(text)) is None else story.topic for text in texts]
        right = mean(topic == self.names[c] for topic, c in zip(topics, self.labels, strict=True))
        grammar = synthetic_stories.grammar_metrics(texts, self.corpus.train.texts)
        return {"right_by_grammar": right, **{k: grammar[k] for k in ("grammatical", "agreement", "coherent", "novel")}}


def by_class(split: Any) -> dict[int, list[str]]:
    """Texts of a split by class."""
    texts: dict[int, list[str]] = {}
    for text, label in zip(split.texts, split.labels, strict=True):
        texts.setdefault(label, []).append(text)
    return {c: texts[c] for c in sorted(texts)}


def mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)


def make_sampler(paths: Paths, steps: int) -> Callable[[Sequence[int], float], list[str]]:
    """(classes, guidance weight) -> a text of each class."""
    from pipelines.text_diffusion import TextDiffusionPipeline

    run = paths.root / "diffusion"
    flags: dict[str, Any] = {"sampling_timesteps": steps, "eval_batch_size": 250}
    if (paths.root / "decoder").is_dir():
        flags["latent_model_path"] = paths.root / "decoder"
    pipeline = TextDiffusionPipeline.from_pretrained(run, **flags)
    return lambda labels, weight: pipeline.sample(len(labels), decoding="greedy", class_id=labels, guidance=weight)


def evaluate(paths: Paths, dataset: str, weights: Sequence[float], samples: int, steps: int, clock: StageTimer) -> None:
    """Sample and evaluate every guidance weight, then write the record."""
    from dataset_utils import registry
    from dataset_utils.options import DataOptions

    corpus = registry.load(DataOptions(dataset_name=dataset, data_dir=paths.data))
    metrics, draw = ClassMetrics(paths, corpus, samples), make_sampler(paths, steps)
    folder = paths.root / "guidance"
    for weight in weights:
        path = folder / f"{weight:g}.json"
        if path.is_file():
            continue
        texts: list[str] = []
        clock.time(f"sampling at {weight:g}", lambda w=weight, out=texts: out.extend(draw(metrics.labels, w)) or 0)  # type: ignore[misc]
        write_json(path, {**metrics(texts), "texts": texts})
        print(line(f"{weight:g}", json.loads(path.read_text())), flush=True)
    record(paths, dataset, metrics, weights, steps, clock)


def record(
    paths: Paths, dataset: str, metrics: ClassMetrics, weights: Sequence[float], steps: int, clock: StageTimer
) -> None:
    """Write record.json, table.md, samples.txt, guidance.png and classes.png."""
    from evaluation import plots

    found = {f"{w:g}": json.loads((paths.root / "guidance" / f"{w:g}.json").read_text()) for w in weights}
    real, names = metrics(metrics.pooled, real=True), metrics.names
    valid = metrics.corpus.valid
    own = metrics.classifier.accuracy(valid.texts, valid.labels)
    rows = [header(), *(line(weight, numbers) for weight, numbers in found.items()), line("held-out", real)]
    text = "\n".join(rows) + (
        f"\n\n{metrics.n} texts of each class, {steps} steps. The accuracy of the classifier is {own['accuracy']:.1%} "
        f"on all {own['n']} held-out texts.\n"
    )
    write_text(paths.root / "table.md", text)
    shown = []
    for w in found:
        for c, name in enumerate(names):
            texts = found[w]["texts"][c :: len(names)][:NUM_SHOWN]
            shown.append(f"== guidance {w}, {name}\n" + "".join(single_line(text) + "\n" for text in texts))
    write_text(paths.root / "samples.txt", "\n".join(shown))
    args = json.loads((paths.root / "diffusion" / "args.json").read_text())
    write_json(paths.root / "record.json", {
        "dataset": dataset, "class_names": names, "n_of_each_class": metrics.n, "sampling_timesteps": steps,
        "git_commit": args["git_commit"], "package_versions": args["package_versions"], "seconds": clock.with_total(),
        "classifier": {**metrics.classifier.protocol(), "held_out": own}, "held_out": real,
        "scorer": {"name": metrics.scorer.name, "fingerprint": metrics.scorer.fingerprint, "comparable": False},
        "guidance": {w: {k: v for k, v in numbers.items() if k != "texts"} for w, numbers in found.items()},
    })  # fmt: skip
    curves = {key: [(float(w), numbers[key]) for w, numbers in found.items()] for key in PLOTTED if key in real}
    for key in ("diversity", "class_diversity"):
        curves[f"{key}, held-out = 1"] = [(float(w), numbers[key] / real[key]) for w, numbers in found.items()]
    plots.plot_xy(curves, paths.root / "guidance.png", xlabel="guidance weight")
    unguided = found.get("1", next(iter(found.values())))
    plots.heat_maps(
        [plots.HeatMap("MAUVE, guidance 1", unguided["mauve_matrix"], names, names, "samples of", "held-out texts of"),
         plots.HeatMap("predictions", [row[:-1] for row in unguided["judged"]], names, names, "class", "predicted")],
        paths.root / "classes.png",
    )  # fmt: skip
    print(f"\n{text}\nfigures in {paths.root / 'record.json'}")


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
    parser.add_argument("--data_dir", type=Path, help="folder of the corpora; tales does not need it")
    parser.add_argument("--lm", type=Path, help="folder of a trained language model")
    parser.add_argument("--autoencoder", type=Path, help="folder of an autoencoder that was trained with --lm")
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
        raise UserError("--autoencoder needs --lm, the language model that it was trained with")
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
    paths = Paths(root, str(data), str(args.lm or root / "lm"), str(args.autoencoder or root / "autoencoder"))
    trained = [name for name, path in (("lm", args.lm), ("autoencoder", args.autoencoder)) if path]
    stages = tales_stages(paths) if args.dataset == "tales" else real_stages(paths, args.dataset)
    code = train(paths, stages, trained, args.max_seconds, clock)
    if code == 0:
        banner("guidance", f"{args.samples} samples of each class for each of {len(weights)} weights")
        evaluate(paths, args.dataset, weights, args.samples, args.steps, clock)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
