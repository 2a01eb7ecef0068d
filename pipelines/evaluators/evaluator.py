"""The evaluation of a diffusion run, during training or afterwards (--eval, --eval_test, --gen_data).

An Evaluator is composed of parts (samples, classes, pairs, real texts), whose metrics it merges for each seed, and of
an output, which writes and formats their samples. make_evaluator selects the parts by the flags of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dataset_utils.corpus import Corpus
from evaluation import report
from evaluation.protocols import over_seeds, with_seed_suffix
from pipelines.best_checkpoint import CLASS_METRICS, SAMPLE_METRICS, SCORER_METRICS
from pipelines.cli.class_rules import why_not_each_class
from pipelines.cli.configs import DiffusionConfig
from pipelines.evaluators.classes import AllClasses, ClassReferences, PerClass
from pipelines.evaluators.common import EvaluationContext, FirstInputs, Metrics, Part, PartResult, numbers_of, to_lines
from pipelines.evaluators.pairs import Pairs
from pipelines.evaluators.report_data import TEXTS, ReportData
from pipelines.evaluators.synthetic import write_synthetic
from pipelines.evaluators.unconditional import References, Samples
from pipelines.run_context import RunContext
from pipelines.sampling.classes import select_classes
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.inputs import Sources
from pipelines.sampling.language_model import LanguageModelGenerator
from utils.errors import UserError
from utils.run_folder import write_json, write_text

TEST_SEEDS = (42, 43, 44, 45, 46)
NUM_SHOWN = 5  # samples in the log
SampleTable = Mapping[tuple[str, str], list[Any]]  # (prefix of file names, decoding strategy) -> texts or records


class Output(Protocol):
    """How samples are written to files, trackers and the log. Rank 0 calls it."""

    def write_training(self, samples: SampleTable, step: int, milestone: int) -> None:
        """Write and log the samples of a step of training."""

    def write_run(self, samples: SampleTable, split: str, seed: int) -> None:
        """Write and log the samples of a trained run."""

    def table(self, metrics: Metrics, title: str, split: str) -> str:
        """Format metrics for the terminal."""

    @property
    def best_metric(self) -> str:
        """The metric that selects the best checkpoint, unless --best_metric names one."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Ends of the names of the metrics that samples can have, for --best_metric."""


class Evaluator:
    """Evaluates a run by its parts."""

    def __init__(
        self, context: EvaluationContext, parts: Sequence[Part], output: Output, sources: Sources | None = None
    ) -> None:
        """sources: inputs of a sequence-to-sequence run."""
        self.context, self.parts, self.output, self.sources = context, parts, output, sources
        self.report_data = ReportData(context)

    def load_models(self) -> None:
        """Load every model that the flags name, so that a missing one raises before hours of training."""
        self.context.load_models()
        for part in self.parts:
            part.load_models()

    def evaluate_training(self, step: int) -> Metrics | None:
        """Sample, write the samples, log the metrics. Every rank calls it, with the averaged weights in place.

        Returns the metrics on rank 0, None on other ranks.
        """
        run = self.context.run
        result = self._evaluate_seed("valid", 42)
        if run.dist.is_main:
            self.output.write_training(result.samples, step, self._milestone(step))
            run.logger.record(numbers_of(result.metrics), step)
            write_json(run.folder / "metrics.json", report.nan_to_none({"step": step, **result.metrics}))
            run.log(self.output.table(result.metrics, f"step {step}", "valid"))
        self.report_data.record_training(step)
        run.dist.barrier()
        return result.metrics if run.dist.is_main else None

    def evaluate_run(self) -> int:
        """Run --eval, --eval_test or --gen_data. Returns the exit code."""
        context, run, options = self.context, self.context.run, self.context.options
        if options.gen_data:
            write_synthetic(run, context.generator, context.corpus, options, TEST_SEEDS, self.sources)
            return 0
        split, seeds = ("test", TEST_SEEDS) if options.eval_test else ("valid", (42,))
        folder, results = run.folder / "evaluation", []
        written: list[str] = []
        for seed in seeds:
            result = self._evaluate_seed(split, seed)
            if run.dist.is_main:
                self.output.write_run(result.samples, split, seed)
                inputs = self._first_inputs(split, seed) if seed == seeds[0] else None
                result.metrics["protocol"] |= self.report_data.write_seed(result.samples, split, seed, inputs)
            run.log(self.output.table(result.metrics, f"seed {seed}, {split} split", split))
            results.append(result.metrics)
            written += [f"seed{seed}-{prefix}{strategy}" for prefix, strategy in result.samples]
        by_seed, summary = results[0], over_seeds(results)
        if len(seeds) > 1:
            by_seed = {k: v for s, r in zip(seeds, results, strict=True) for k, v in with_seed_suffix(r, s).items()}
        if run.dist.is_main:
            # the report shows these, and no texts of an earlier evaluation with other seeds, classes or decoding
            write_json(folder / f"eval-{split}-sets.json", written)
            report.write(folder, f"eval-{split}", by_seed if len(seeds) == 1 else {**by_seed, **summary})
            for part in self.parts:
                part.write_extras(split)
        run.logger.record(numbers_of(by_seed), 0)
        if len(seeds) > 1:
            run.log(report.table(summary, f"mean and standard deviation over seeds {seeds[0]} to {seeds[-1]}"))
        run.log(f"written to {folder}")
        return 0

    def _evaluate_seed(self, split: str, seed: int) -> PartResult:
        """Merge the results of all parts. If two have a key, the earlier part has precedence."""
        merged = PartResult({"protocol": {}})
        for part in self.parts:
            result = part.evaluate_seed(split, seed)
            protocol = {**result.metrics.get("protocol", {}), **merged.metrics["protocol"]}
            merged.metrics = {**result.metrics, **merged.metrics, "protocol": protocol}
            merged.samples |= result.samples
        return merged

    def _first_inputs(self, split: str, seed: int) -> FirstInputs | None:
        found = (part.first_inputs(split, seed, TEXTS) for part in self.parts)
        return next((inputs for inputs in found if inputs is not None), None)

    def _milestone(self, step: int) -> int:
        """Return k for the k-th sampling, which is part of file names; rounded up if training ends between two."""
        intervals = self.context.config.intervals
        return math.ceil(step / (intervals.sample_every or intervals.save_and_sample_every))


class TextOutput:
    """Writes samples without a source: one text per line, and as JSON."""

    def __init__(self, context: EvaluationContext) -> None:
        self.context = context

    def write_training(self, samples: SampleTable, step: int, milestone: int) -> None:
        run = self.context.run
        for (prefix, strategy), texts in samples.items():
            write_text(run.folder / f"{prefix}{strategy}-sample-{milestone}.txt", to_lines(texts))
            run.logger.table(f"model/{strategy}/{prefix}samples", ["text"], [[text] for text in texts[:50]], step)
            run.log(f"step {step}, {prefix}{strategy}:\n{report.format_samples(texts, NUM_SHOWN)}")

    def write_run(self, samples: SampleTable, split: str, seed: int) -> None:
        run = self.context.run
        for (prefix, strategy), texts in samples.items():
            name = f"eval-{split}-seed{seed}-{prefix}{strategy}"
            write_json(run.folder / "evaluation" / f"{name}-samples.json", texts)
            write_text(run.folder / "evaluation" / f"{name}-samples.txt", to_lines(texts))
            run.log(f"{name}:\n{report.format_samples(texts, NUM_SHOWN)}")

    def table(self, metrics: Metrics, title: str, split: str) -> str:
        return report.table(metrics, f"{title}, {self.context.num_samples(split)} samples")

    @property
    def best_metric(self) -> str:
        return "val_ema_loss"

    @property
    def metrics(self) -> tuple[str, ...]:
        known = SAMPLE_METRICS if self.context.has_scorer else [m for m in SAMPLE_METRICS if m not in SCORER_METRICS]
        return (*known, *(CLASS_METRICS if self.context.class_conditional else ()))


def make_evaluator(
    run: RunContext[DiffusionConfig],
    generator: TextGenerator | LanguageModelGenerator,
    corpus: Corpus,
    sources: Sources | None = None,
) -> Evaluator:
    """Compose the evaluator of a run. sources: inputs of a sequence-to-sequence run, which needs a corpus of pairs.

    Raises UserError if --class_id names no class, or if a split lacks texts of a class with which to compare samples;
    where no flag asks for separate samples of each class, a note says so instead.
    """
    context = EvaluationContext(run, generator, corpus)
    if sources is not None:
        pairs = Pairs(context, sources)
        return Evaluator(context, [pairs], pairs, sources)
    output = TextOutput(context)
    if context.options.gen_data:
        return Evaluator(context, [], output)
    parts: list[Part] = []
    if context.class_conditional:
        selection = select_classes(
            context.classes.class_id,
            corpus.class_names,
            context.null_class_prob,
            training=not run.is_eval,
        )
        if selection.per_class and not context.has_scorer:
            raise UserError(
                f"--class_id {context.classes.class_id} compares classes by MAUVE, and training_scores=False leaves it "
                "out while training: leave one of them out"
            )
        if selection.joint:
            parts.append(AllClasses(context, selection.joint))
        if selection.per_class:
            parts += _separate_classes(context, selection.per_class)
        references: list[Part] = [References(context), ClassReferences(context)]
    else:
        parts, references = [Samples(context)], [References(context)]
    return Evaluator(context, [*parts, *references] if run.is_eval else parts, output)


def _separate_classes(context: EvaluationContext, classes: Sequence[int]) -> list[Part]:
    """The part that samples classes separately; none if nobody asked for it and it is not possible, or too much."""
    splits = ("test" if context.options.eval_test else "valid", "train")
    why = why_not_each_class(context.corpus, splits) if context.classes.class_id is None else None
    if why is not None:
        context.run.log(f"note: all classes are sampled jointly, and not each separately, too: {why}")
        return []
    return [PerClass(context, classes, splits, with_held_out=context.run.is_eval)]
