"""Samples of a class-conditional run, judged: all classes together, and every class against every class.

Beside what any samples are judged by: whether each reads like the class that it was asked for, by a classifier; and
MAUVE of every class's samples against every class's references, as a matrix and as a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataset_utils.corpus import Corpus
from evaluation import classifiers, classwise, plots, report
from evaluation.classifiers import Classifier
from evaluation.classwise import Features, PerClassResult
from evaluation.optional import MissingPackage
from evaluation.options import ClassOptions, EvaluationOptions
from evaluation.protocols import evaluate_texts, protocol
from pipelines.evaluators.unconditional import SHORT, Evaluator, Result
from pipelines.job import Job
from pipelines.sampling.classes import NULL, Choice, Drawn, choose, one_class
from pipelines.sampling.generate import Sampled, TextGenerator
from utils.errors import UserError
from utils.run_folder import write_json
from utils.stopwatch import Stopwatch

Numbers = dict[str, Any]
HELD_OUT = "held-out texts"  # the row of real texts that a row of samples is read beside


def load_classifier(job: Job, corpus: Corpus, source: str | None) -> Classifier:
    """The classifier of the flags, or a small one trained on the corpus beside the run."""
    return classifiers.load(
        source,
        corpus.class_names,
        texts=corpus.train.texts,
        labels=corpus.train.labels,
        held_out=(corpus.valid.texts, corpus.valid.labels or []),
        folder=job.folder / "classifier",
        device=job.device,
    )


class ClassEvaluator(Evaluator):
    """Samples what --class_id asks for and judges it by class."""

    def __init__(self, job: Job, generator: TextGenerator, corpus: Corpus, options: EvaluationOptions) -> None:
        super().__init__(job, generator, corpus, options)
        self.classes: ClassOptions = job.settings.build(ClassOptions)
        self._classifier: Classifier | None = None
        self._matrices: dict[str, dict[str, list[PerClassResult]]] = {}  # split -> strategy or HELD_OUT -> one per seed
        self._seen: dict[str, Any] = {}  # protocol of the classes, of the last seed
        if not options.gen_data and self.choice(training=not job.evaluating).apart:
            for split in ("test" if options.eval_test else "valid", "train"):
                self._of_class(split)  # now: better before hours of training than after them

    def choice(self, *, training: bool) -> Choice:
        settings = self.job.settings
        names, null_prob = self.corpus.class_names, settings.class_unconditional_prob
        return choose(self.classes.class_id, names, null_prob, training=training)

    @property
    def classifier(self) -> Classifier:
        if self._classifier is None:
            self._classifier = load_classifier(self.job, self.corpus, self.classes.classifier)
        return self._classifier

    def load_models(self) -> None:
        super().load_models()
        if self.classes.classifier:
            assert self.classifier

    # ---- one seed ------------------------------------------------------------------------------------------------

    def measured(self, split: str, seed: int, *, training: bool) -> Result:
        choice = self.choice(training=training)
        result: Numbers = {}
        samples: dict[str, Sampled] = {}
        if choice.together:
            result, samples[""] = self._together(split, seed, choice.together)
        if choice.apart:
            found, of_classes = self._apart(split, seed, choice.apart, with_real=not training)
            facts = {**found.pop("protocol"), **result.get("protocol", {})}  # of all classes together, where they were
            found = {key: value for key, value in found.items() if key not in result}  # speed: of all together, if any
            result |= {**found, "protocol": facts}
            samples |= of_classes
        result["protocol"]["classifier"] = self.classifier.protocol()
        result["protocol"]["class_id"] = self.classes.class_id
        return result, samples

    def references_judged(self, split: str, seed: int) -> Numbers:
        """As of Evaluator; and how often the classifier is right on real texts of the split, all of them."""
        result = super().references_judged(split, seed)
        part = self.corpus.splits[split]
        right = self.classifier.accuracy(part.texts, part.labels or [])
        result[f"reference/{SHORT[split]}_label_accuracy"] = right["accuracy"]
        for c, name in enumerate(self.corpus.class_names):
            result[f"reference/{SHORT[split]}_cond{c}_label_accuracy"] = right["by_class"][name]
        return result

    def finish(self, split: str) -> None:
        """The matrices as JSON and as pictures, averaged over seeds."""
        names = self.corpus.class_names
        matrices = {row: classwise.average(found) for row, found in self._matrices.get(split, {}).items()}
        if not matrices:
            return
        folder = self.job.folder / "evaluation"
        facts = {"class_names": names, **{row: found.as_dict() for row, found in matrices.items()}, **self._seen}
        facts["seeds"] = max(map(len, self._matrices[split].values()))
        write_json(folder / f"eval-{split}-classes.json", report.nan_to_none(facts))
        for row, found in matrices.items():
            if row == HELD_OUT:
                continue
            try:
                path = plots.heat_maps(self._panels(found, matrices), folder / f"eval-{split}-classes-{row}.png")
            except MissingPackage as error:
                self.job.say(f"note: no picture of the classes, for want of the package {error.package}")
                break
            self.job.say(f"classes of {row} samples: {path}")

    # ---- pieces --------------------------------------------------------------------------------------------------

    def _together(self, split: str, seed: int, how: str) -> tuple[Numbers, Sampled]:
        """Samples of all classes: told a class as frequent as in training, or told none."""
        drawn = None if how == NULL else Drawn(torch.tensor(self.corpus.train.labels))
        result, sampled = self.judge(seed, self.references(split, seed), drawn)
        if drawn is not None:
            for strategy, texts in sampled.texts.items():
                right = classwise.label_accuracy(self.classifier, texts, drawn.of(sampled, strategy))
                result[f"model/{strategy}/label_accuracy"] = right["accuracy"]
        return result, sampled

    def _apart(
        self, split: str, seed: int, classes: Sequence[int], *, with_real: bool
    ) -> tuple[Numbers, dict[str, Sampled]]:
        """Samples of each class by itself, as many as the smallest class has references, against all references."""
        references = {SHORT[name]: self._class_references(name, seed) for name in (split, "train")}
        n = min(self.options.num_samples, *(len(texts) for part in references.values() for texts in part.values()))
        references = {name: {c: texts[:n] for c, texts in part.items()} for name, part in references.items()}
        quiet = self.job.quiet
        samples = {c: self.generator.sample(n, seed, self.strategies, one_class(c), quiet=quiet) for c in classes}
        assert self.classifier  # by every process: the first trains it where there is none
        found = self.on_rank0(lambda: self._compared(split, n, samples, references, with_real))
        found["protocol"] |= {"seed": seed}
        found |= Stopwatch.in_turn([sampled.speed for sampled in samples.values()]).facts()
        return found, {f"cond{c}_": sampled for c, sampled in samples.items()}

    def _compared(
        self,
        split: str,
        n: int,
        samples: Mapping[int, Sampled],
        references: dict[str, dict[int, list[str]]],
        with_real: bool,
    ) -> Numbers:
        """Figures of n samples of each class against n references of each."""
        features = Features(self.scorer)
        result: Numbers = {}
        scores = []
        for strategy in self.strategies:
            texts = {c: sampled.texts[strategy] for c, sampled in samples.items()}
            found = classwise.compare(texts, references, features, self.classifier)
            self._keep(split, strategy, found)
            prefix = f"model/{strategy}/"
            result |= self._mauve_of(found, prefix) | self._right(found, prefix)
            for c, sampled in samples.items():
                numbers = evaluate_texts(texts[c], {}, self.memory, self.scorer, prefix=prefix, condition=c)
                result |= {key: value for key, value in numbers.items() if key != "protocol"}
                result[f"{prefix}cond{c}_empty_replaced"] = sampled.empty[strategy]
            scores += found.scores
        if with_real:
            training = {"train": references["train"]}
            real = classwise.compare(references[SHORT[split]], training, features, self.classifier)
            self._keep(split, HELD_OUT, real)
            result |= self._mauve_of(real, "reference/")
        facts = protocol(self.scorer, n, scores) | {"classifier": self.classifier.protocol()}
        self._seen = {"protocol": {**facts, **self._sampling_facts()}}
        of_classes = {key: facts[key] for key in ("n", "mauve", "buckets", "small_n") if key in facts}
        shared = {**facts, **self._sampling_facts(), "classes": of_classes}
        return {**result, "protocol": shared}

    def _mauve_of(self, found: PerClassResult, prefix: str) -> Numbers:
        """Matrices as flat keys, as published: {scorer}_cond{c}_ref{d}_{split}_mauve."""
        return {
            f"{prefix}{self.scorer.name}_cond{c}_ref{d}_{split}_mauve": score
            for split, matrix in found.mauve.items()
            for c, row in zip(found.rows, matrix, strict=True)
            for d, score in enumerate(row)
        }

    def _right(self, found: PerClassResult, prefix: str) -> Numbers:
        """Shares of samples judged of the class asked for, by class and over all classes."""
        right = {c: row[c] for c, row in zip(found.rows, found.judged, strict=True)}
        numbers = {f"{prefix}cond{c}_label_accuracy": share for c, share in right.items()}
        return numbers | {f"{prefix}classwise_label_accuracy": sum(right.values()) / len(right)}

    def _class_references(self, split: str, seed: int) -> dict[int, list[str]]:
        """Texts of every class in an order that the seed decides."""
        labels = self.corpus.splits[split].labels or []
        order = self.shuffled_rows(split, seed)
        texts = self.corpus.splits[split].texts
        return {c: [texts[i] for i in order if labels[i] == c] for c in self._of_class(split)}

    def _of_class(self, split: str) -> range:
        """Every class; UserError where the split lacks one, and could not judge it."""
        there = set(self.corpus.splits[split].labels or ())
        for c, name in enumerate(self.corpus.class_names):
            if c not in there:
                raise UserError(
                    f"the {split} split of {self.corpus.name} holds no text of class {name}, so that samples of it "
                    "cannot be judged: name other files, or pass --class_id prior to judge all classes together"
                )
        return range(self.corpus.num_classes)

    def _keep(self, split: str, row: str, found: PerClassResult) -> None:
        self._matrices.setdefault(split, {}).setdefault(row, []).append(found)

    def _panels(self, found: PerClassResult, matrices: dict[str, PerClassResult]) -> list[plots.HeatMap]:
        names = self.corpus.class_names
        asked = [names[c] for c in found.rows]
        panels = [
            plots.HeatMap(f"MAUVE: samples, {split} texts", matrix, asked, names, "samples of", f"{split} texts of")
            for split, matrix in found.mauve.items()
        ]
        if HELD_OUT in matrices:
            panels += [
                plots.HeatMap("MAUVE: real texts on both sides", matrix, names, names, HELD_OUT, f"{split} texts of")
                for split, matrix in matrices[HELD_OUT].mauve.items()
            ]
        judged = [row[:-1] for row in found.judged]
        return [*panels, plots.HeatMap("judged of class", judged, asked, names, "asked for", "judged")]
