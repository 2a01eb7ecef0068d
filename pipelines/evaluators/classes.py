"""Samples of a class-conditional run: all classes jointly, and every class against every class.

Beside the metrics of all samples: label accuracy by a classifier, and MAUVE of each class's samples against each
class's references, as a matrix and as a heat map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evaluation import classwise, plots, report
from evaluation.classwise import FeatureCache, PerClassResult
from evaluation.optional import MissingPackage
from evaluation.protocols import evaluate_texts, protocol
from evaluation.text_tokens import word_rule
from pipelines.cli.class_rules import missing_class
from pipelines.evaluators.common import SPLIT_KEYS, EvaluationContext, FirstInputs, Metrics, Part, PartResult
from pipelines.evaluators.unconditional import sample_and_score
from pipelines.sampling.classes import NULL, TrainingClassPrior, one_class
from pipelines.sampling.generator import SampleOutput
from utils.errors import UserError
from utils.progress import Stopwatch
from utils.records import Condition
from utils.run_folder import write_json

HELD_OUT = "held-out texts"  # the row of real texts in eval-{split}-classes.json


class AllClasses(Part):
    """One set of samples of all classes: with the class frequencies of training, or without a class."""

    def __init__(self, context: EvaluationContext, joint: str) -> None:
        """joint: PRIOR or NULL of pipelines.sampling.classes."""
        super().__init__(context)
        self.joint = joint

    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        context, prior = self.context, self._prior()
        result, output = sample_and_score(context, split, seed, prior)
        if prior is not None:
            for strategy, texts in output.texts.items():
                labels = prior.classes_of(output, strategy)
                agreement = classwise.label_accuracy(context.classifier, texts, labels)
                result.metrics[f"model/{strategy}/label_accuracy"] = agreement["accuracy"]
        result.metrics["protocol"] |= {
            "classifier": context.classifier.protocol(),
            "class_id": context.classes.class_id,
        }
        return result

    def first_inputs(self, split: str, seed: int, n: int) -> FirstInputs:
        return FirstInputs(self._prior())

    def _prior(self) -> TrainingClassPrior | None:
        if self.joint == NULL:
            return None
        return TrainingClassPrior(torch.tensor(self.context.corpus.train.labels))


class ClassReferences(Part):
    """Label accuracy of the classifier on all real texts of the split: the upper bound for samples."""

    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        corpus, key = self.context.corpus, f"reference/{SPLIT_KEYS[split]}"
        held_out = corpus.splits[split]
        agreement = self.context.classifier.accuracy(held_out.texts, held_out.labels or [])
        metrics: Metrics = {f"{key}_label_accuracy": agreement["accuracy"]}
        for c, name in enumerate(corpus.class_names):
            metrics[f"{key}_cond{c}_label_accuracy"] = agreement["by_class"][name]
        return PartResult(metrics)


class PerClass(Part):
    """A set of samples of each class, against the references of every class."""

    def __init__(
        self, context: EvaluationContext, classes: Sequence[int], splits: Sequence[str], *, with_held_out: bool
    ) -> None:
        """classes: the sampled classes. splits: each must have texts of every class, else UserError.

        with_held_out: also compare held-out texts with training texts, for a matrix of real texts.
        """
        super().__init__(context)
        self.classes, self.with_held_out = list(classes), with_held_out
        self._results: dict[str, dict[str, list[PerClassResult]]] = {}  # split -> strategy or HELD_OUT -> one per seed
        self._protocol: Metrics = {}  # protocol of the last seed
        for split in splits:  # checked here, before hours of training
            self._check_classes(split)

    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        """Sample as many texts of each class as the smallest class has references, at most --num_samples."""
        context = self.context
        references = {SPLIT_KEYS[name]: self._texts_by_class(name, seed) for name in (split, "train")}
        available = min(len(texts) for part in references.values() for texts in part.values())
        n = min(context.options.num_samples, available)
        references = {name: {c: texts[:n] for c, texts in part.items()} for name, part in references.items()}
        outputs = {
            c: context.generator.sample(n, seed, context.strategies, one_class(c), quiet=context.run.quiet)
            for c in self.classes
        }
        assert context.classifier  # on every rank: the first trains it if there is none
        metrics = context.on_rank0(lambda: self._score(split, n, outputs, references))
        metrics["protocol"] |= {"seed": seed, "class_id": context.classes.class_id}
        metrics["protocol"]["classes"]["available"] = available
        metrics |= Stopwatch.merge_sequential([output.speed for output in outputs.values()]).metadata()
        samples = {
            (f"cond{c}_", strategy): texts for c, output in outputs.items() for strategy, texts in output.texts.items()
        }
        return PartResult(metrics, samples)

    def first_inputs(self, split: str, seed: int, n: int) -> FirstInputs:
        """Texts of all sampled classes in turn."""
        return FirstInputs(lambda block, size, draws: Condition.of(torch.tensor((self.classes * n)[: min(n, size)])))

    def write_extras(self, split: str) -> None:
        """Write the matrices, averaged over seeds, as eval-{split}-classes.json and as one heat map per strategy."""
        run, names = self.context.run, self.context.corpus.class_names
        means = {row: classwise.average_seeds(results) for row, results in self._results.get(split, {}).items()}
        folder = run.folder / "evaluation"
        data = {"class_names": names, **{row: mean.as_dict() for row, mean in means.items()}, **self._protocol}
        data["seeds"] = max(map(len, self._results[split].values()))
        write_json(folder / f"eval-{split}-classes.json", report.nan_to_none(data))
        for row, mean in means.items():
            if row == HELD_OUT:
                continue
            try:
                path = plots.heat_maps(self._heat_maps(mean, means), folder / f"eval-{split}-classes-{row}.png")
            except MissingPackage as error:
                run.log(f"note: no heat map of the classes: the package {error.package} is not installed")
                break
            run.log(f"classes of {row} samples: {path}")

    # ---- pieces ----------------------------------------------------------------------------------------------------

    def _score(
        self,
        split: str,
        n: int,
        outputs: Mapping[int, SampleOutput],
        references: dict[str, dict[int, list[str]]],
    ) -> Metrics:
        """Compute the metrics of n samples of each class against n references of each class."""
        assert self.context.scorer is not None
        context, features = self.context, FeatureCache(self.context.scorer)
        metrics: Metrics = {}
        mauve_scores = []
        for strategy in context.strategies:
            texts = {c: output.texts[strategy] for c, output in outputs.items()}
            result = classwise.compare_classes(texts, references, features, context.classifier)
            self._add_result(split, strategy, result)
            prefix = f"model/{strategy}/"
            metrics |= self._mauve_metrics(result, prefix) | _label_accuracy(result, prefix)
            for c, output in outputs.items():
                numbers = evaluate_texts(
                    texts[c],
                    {},
                    context.training_ngrams,
                    context.scorer,
                    prefix=prefix,
                    condition=c,
                    held_out=references[SPLIT_KEYS[split]][c],
                )
                metrics |= {key: value for key, value in numbers.items() if key != "protocol"}
                metrics[f"{prefix}cond{c}_num_empty_resampled"] = output.empty[strategy]
            mauve_scores += result.mauve_scores
        if self.with_held_out:
            training = {"train": references["train"]}
            real = classwise.compare_classes(references[SPLIT_KEYS[split]], training, features, context.classifier)
            self._add_result(split, HELD_OUT, real)
            metrics |= self._mauve_metrics(real, "reference/")
        of_references = (text for classes in references.values() for texts in classes.values() for text in texts)
        of_samples = (text for output in outputs.values() for texts in output.texts.values() for text in texts)
        metadata = protocol(context.scorer, n, mauve_scores) | {
            "classifier": context.classifier.protocol(),
            "words": word_rule([*of_references, *of_samples]),
        }
        self._protocol = {"protocol": {**metadata, **context.sampling_metadata()}}
        of_classes = {key: metadata[key] for key in ("n", "mauve", "buckets", "mauve_few_samples") if key in metadata}
        return {**metrics, "protocol": {**metadata, **context.sampling_metadata(), "classes": of_classes}}

    def _mauve_metrics(self, result: PerClassResult, prefix: str) -> Metrics:
        """Flatten the matrices to the published keys: {scorer}_cond{c}_ref{d}_{split}_mauve."""
        assert self.context.scorer is not None
        return {
            f"{prefix}{self.context.scorer.name}_cond{c}_ref{d}_{split}_mauve": score
            for split, matrix in result.mauve.items()
            for c, row in zip(result.classes, matrix, strict=True)
            for d, score in enumerate(row)
        }

    def _texts_by_class(self, split: str, seed: int) -> dict[int, list[str]]:
        """Return the texts of every class in an order that depends on the seed."""
        self._check_classes(split)
        part, order = self.context.corpus.splits[split], self.context.shuffled_rows(split, seed)
        labels = part.labels or []
        return {c: [part.texts[i] for i in order if labels[i] == c] for c in range(self.context.corpus.num_classes)}

    def _check_classes(self, split: str) -> None:
        """Raise UserError if the split has no text of some class, with which samples could be compared."""
        corpus = self.context.corpus
        name = missing_class(corpus, split)
        if name is not None:
            raise UserError(
                f"the {split} split of {corpus.name} has no text of class {name}, with which samples could be "
                "compared: name other files, or pass --class_id prior to evaluate all classes jointly"
            )

    def _add_result(self, split: str, row: str, result: PerClassResult) -> None:
        self._results.setdefault(split, {}).setdefault(row, []).append(result)

    def _heat_maps(self, mean: PerClassResult, means: dict[str, PerClassResult]) -> list[plots.HeatMap]:
        names = self.context.corpus.class_names
        sampled = [names[c] for c in mean.classes]
        panels = [
            plots.HeatMap(f"MAUVE: samples, {split} texts", matrix, sampled, names, "samples of", f"{split} texts of")
            for split, matrix in mean.mauve.items()
        ]
        if HELD_OUT in means:
            panels += [
                plots.HeatMap("MAUVE: real texts on both sides", matrix, names, names, HELD_OUT, f"{split} texts of")
                for split, matrix in means[HELD_OUT].mauve.items()
            ]
        shares = [row[:-1] for row in mean.predicted_shares]
        return [*panels, plots.HeatMap("predicted class", shares, sampled, names, "requested", "predicted")]


def _label_accuracy(result: PerClassResult, prefix: str) -> Metrics:
    """Return the share of samples predicted as the requested class, by class and averaged over classes."""
    shares = {c: row[c] for c, row in zip(result.classes, result.predicted_shares, strict=True)}
    metrics = {f"{prefix}cond{c}_label_accuracy": share for c, share in shares.items()}
    return metrics | {f"{prefix}mean_class_accuracy": sum(shares.values()) / len(shares)}
