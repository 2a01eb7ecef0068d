"""Texts that belong to a source, judged: while training, on validation pairs, on test pairs over seeds.

Of each source several candidates are drawn. One sample, the candidate that agrees best with the others (MBR), the best
against the reference (oracle) and predictions of other sources (chance) are reported apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataset_utils.corpus import Corpus, Split
from evaluation import mbr, report
from evaluation.classifiers import Classifier
from evaluation.classwise import label_accuracy
from evaluation.metrics import MetricContext, measure
from evaluation.options import BLEU_TOKENIZERS, ClassOptions, EvaluationOptions, PairOptions
from evaluation.overlap import load_bertscore
from evaluation.protocols import evaluate_pairs, over_seeds, with_seed_suffix
from pipelines.evaluators.classes import load_classifier
from pipelines.evaluators.unconditional import SHORT, TEST_SEEDS, Evaluator
from pipelines.job import Job
from pipelines.sampling.classes import PRIOR, choose
from pipelines.sampling.generate import TextGenerator
from pipelines.sampling.sources import Sources, Tell
from utils.errors import UserError
from utils.run_folder import write_json
from utils.seeding import generator as seeded

SHOWN = 4  # sources in the log
PREFIX = "model/seq2seq/"
KINDS = {"one sample": "", "MBR-{k} ({utility})": "mbr_", "oracle-{k}": "oracle_", "chance": "shuffled_"}
COLUMNS = ("rouge1", "rouge2", "rougeL", "sacrebleu", "diffuseq_bleu", "dist1", "bertscore")


class PairEvaluator(Evaluator):
    """Draws candidates for the sources of a split and judges them against its texts."""

    def __init__(
        self, job: Job, generator: TextGenerator, corpus: Corpus, options: EvaluationOptions, sources: Sources
    ) -> None:
        super().__init__(job, generator, corpus, options)
        self.sources = sources
        self.pairs: PairOptions = job.settings.build(PairOptions)
        translation = "sacrebleu" in corpus.spec.metrics
        self.utility = self.pairs.mbr_utility or ("sacrebleu" if translation else "rouge2")
        self.best_metric = self.pairs.best_metric or ("sacrebleu" if translation else "rougeL")
        self.tokenizer = self.pairs.bleu_tokenizer or BLEU_TOKENIZERS.get(corpus.spec.language or "", "13a")
        self.classes: ClassOptions = job.settings.build(ClassOptions)
        self._classifier: Classifier | None = None
        self.classes_of([])  # a class that is not there is better known now
        for flag, name in (("mbr_utility", self.utility), ("best_metric", self.best_metric)):
            if name.endswith("bertscore") and self.pairs.bertscore_model is None:
                raise UserError(f"--{flag} {name} needs a model: name one with --bertscore_model")

    def load_models(self) -> None:
        super().load_models()
        if self.pairs.bertscore_model is not None:
            load_bertscore(self.pairs.bertscore_model, str(self.job.device))
        if self.classes.classifier:
            assert self.classifier

    def evaluate_training(self, step: int) -> tuple[str, float] | None:
        """As of Evaluator, on validation pairs."""
        job, score = self.job, None
        result, samples = self.judge_pairs("valid", 42)  # by every rank: they share the sampling
        if job.ranks.main:
            milestone = self.milestone(step)
            for strategy, records in samples.items():
                write_json(job.folder / f"{strategy}-pairs-{milestone}.json", records)
                rows = [[r["source"], r["reference"], r["sample"], r["chosen"]] for r in records[:50]]
                job.log.table(
                    f"seq2seq/{strategy}/samples", ["source", "reference", "one sample", "chosen"], rows, step
                )
                job.say(f"step {step}, {strategy}:\n{show(records)}")
            job.log.record(_numbers(result), step)
            write_json(job.folder / "metrics.json", report.nan_to_none({"step": step, **result}))
            job.say(self.table(result, f"step {step}"))
            value = result[PREFIX + self._guide() + self.best_metric]
            score = None if math.isnan(value) else (self.best_metric, value)
        job.ranks.barrier()
        return score

    def evaluate_run(self) -> int:
        """--eval or --eval_test; --gen_data as of Evaluator."""
        if self.options.gen_data:
            return self._synthetic_data()
        split, seeds = ("test", TEST_SEEDS) if self.options.eval_test else ("valid", (42,))
        folder, results = self.job.folder / "evaluation", []
        for seed in seeds:
            result, samples = self.judge_pairs(split, seed)
            for strategy, records in samples.items() if self.job.ranks.main else ():
                write_json(folder / f"eval-{split}-seed{seed}-{strategy}-pairs.json", records)
                self.job.say(f"seed {seed}, {strategy}:\n{show(records)}")
            self.job.say(self.table(result, f"seed {seed}, {split} split", split))
            results.append(result)
        summary = over_seeds(results)
        named = {k: v for s, r in zip(seeds, results, strict=True) for k, v in with_seed_suffix(r, s).items()}
        final = results[0] if len(seeds) == 1 else {**named, **summary}
        if self.job.ranks.main:
            report.write(folder, f"eval-{split}", final)
        self.job.log.record(_numbers(results[0] if len(seeds) == 1 else named), 0)
        if len(seeds) > 1:
            self.job.say(report.table(summary, f"mean and standard deviation over seeds {seeds[0]} to {seeds[-1]}"))
        self.job.say(f"written to {folder}")
        return 0

    def judge_pairs(self, split: str, seed: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """Metrics of fresh candidates of one seed, and by decoding strategy a record of each source."""
        part = self.corpus.splits[split].take(self._rows(split, seed))
        sources, k = part.sources or [], self.pairs.seq2seq_candidates
        asked = self.classes_of(part.labels)
        drawn = self.generator.candidates(
            len(part), k, seed, self.strategies, self._told(sources, seed, asked), quiet=self.job.quiet
        )
        result, samples = self.on_rank0(lambda: self._judged(drawn, part, split, seed))
        result |= self.generator.watch.facts()
        result["protocol"] |= {"seed": seed, "split": split, **self._sampling_facts()}
        if asked is not None:
            for strategy, rows in drawn.items():
                right = label_accuracy(self.classifier, [row[0] for row in rows], asked)
                result[f"{self._prefix(split, strategy)}label_accuracy"] = right["accuracy"]
            own = self.classifier.accuracy(part.texts, part.labels or [])
            result[f"reference/{SHORT[split]}_label_accuracy"] = own["accuracy"]
            result["protocol"] |= {"classifier": self.classifier.protocol(), "class_id": self.classes.class_id}
        return result, samples

    def _judged(
        self, drawn: Mapping[str, list[list[str]]], part: Split, split: str, seed: int
    ) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """Metrics of candidates by decoding strategy and of the references, and a record of each source."""
        sources, model, device = part.sources or [], self.pairs.bertscore_model, str(self.job.device)
        result: dict[str, Any] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for strategy, rows in drawn.items():
            chosen = mbr.mbr_select(
                rows, self.utility, tokenizer=self.tokenizer, bertscore_model=model or "", device=device
            )
            result |= evaluate_pairs(
                rows, part.texts, self.memory, self.scorer, prefix=self._prefix(split, strategy), seed=seed,
                tokenizer=self.tokenizer, utility=self.utility, chosen=chosen, bertscore_model=model, device=device,
            )  # fmt: skip
            samples[strategy] = [
                {"source": s, "reference": t, "sample": row[0], "chosen": best, "candidates": row}
                for s, t, row, best in zip(sources, part.texts, rows, chosen, strict=True)
            ]
        numbers, _ = measure(part.texts, MetricContext(self.scorer, self.memory))
        result |= {f"reference/{SHORT[split]}_{key}": value for key, value in numbers.items()}
        return result, samples

    def table(self, result: Mapping[str, Any], title: str, split: str = "valid") -> str:
        """How candidates compare, kind by kind, for each strategy; then every other number."""
        protocol = result["protocol"]
        shown: set[str] = set()
        lines = [f"{title}, {protocol['n']} sources, {protocol['candidates']} candidates each"]
        for strategy in self.strategies:
            prefix = self._prefix(split, strategy)
            columns = [name for name in COLUMNS if prefix + name in result]
            lines.append(f"  {strategy:<24}" + "".join(f"{name:>14}" for name in columns))
            for kind, begin in KINDS.items():
                keys = [prefix + begin + name for name in columns]
                shown |= set(keys)
                name = kind.format(k=protocol["candidates"], utility=protocol["mbr_utility"])
                cells = [f"{result[key]:>14.4g}" if key in result else f"{'':>14}" for key in keys]
                lines.append(f"  {name:<24}" + "".join(cells))
        rest = {key: value for key, value in result.items() if key not in shown}
        return "\n".join([*lines, report.table(rest)])

    # ---- pieces --------------------------------------------------------------------------------------------------

    def _rows(self, split: str, seed: int) -> list[int]:
        """--num_samples rows of a split, in an order that the seed decides."""
        size = len(self.corpus.splits[split])
        order = torch.randperm(size, generator=seeded(seed, "references", split))
        return order[: self.options.num_samples].tolist()

    @property
    def classifier(self) -> Classifier:
        if self._classifier is None:
            self._classifier = load_classifier(self.job, self.corpus, self.classes.classifier)
        return self._classifier

    def classes_of(self, labels: Sequence[int] | None) -> list[int] | None:
        """The class that each text is asked for: its own, or the one of --class_id; None where none is told."""
        settings = self.job.settings
        if not settings.class_conditional or labels is None:
            return None
        names, null_prob = self.corpus.class_names, settings.class_unconditional_prob
        choice = choose(self.classes.class_id or PRIOR, names, null_prob, training=True)
        if choice.together is None and len(choice.apart) > 1:
            raise UserError("--class_id all: texts of a run on pairs have classes of their own: leave it out")
        if choice.together is None:
            return [choice.apart[0]] * len(labels)
        return list(labels) if choice.together == PRIOR else None

    def _told(self, sources: Sequence[str], seed: int, asked: Sequence[int] | None) -> Tell:
        classes = None if asked is None else torch.tensor(asked, device=self.job.device)
        return self.sources.tell(sources, seed, classes)

    def _guide(self) -> str:
        """Part of the keys, as published: the weight of guidance, where there is any."""
        weight = self.job.settings.cls_free_guidance
        return "" if weight == 1 else f"guide{weight:g}/"

    def _prefix(self, split: str, strategy: str) -> str:
        """Keys begin as published for the first decoding strategy; others name themselves."""
        of_split = "" if split == "valid" else f"{SHORT[split]}/"
        other = "" if strategy == self.strategies[0] else f"{strategy}/"
        return PREFIX + of_split + self._guide() + other

    def _sampling_facts(self) -> dict[str, Any]:
        return {**super()._sampling_facts(), **self.sources.facts()}


def show(records: Sequence[Mapping[str, Any]]) -> str:
    """The first few sources with what was made of them, safe to print."""
    lines = []
    for record in records[:SHOWN]:
        lines += [f"  {name:<10}{report.single_line(record[name]) or '(empty)'}" for name in
                  ("source", "reference", "sample", "chosen")] + [""]  # fmt: skip
    return "\n".join(lines[:-1])


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in result.items() if isinstance(value, int | float)}
