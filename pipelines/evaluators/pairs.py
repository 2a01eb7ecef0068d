"""Samples of sequence-to-sequence runs: several candidates for each source, scored against its reference.

Reported separately: the first candidate (one sample), the candidate that agrees best with the others (MBR), the best
against the reference (oracle), and samples of other sources (chance). Rows that share a source are one example with
several references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataset_utils.splits import Examples
from evaluation import mbr, report
from evaluation.classwise import label_accuracy
from evaluation.metrics import SAMPLES, MetricContext, compute_metrics
from evaluation.options import BLEU_TOKENIZERS
from evaluation.overlap import check_bleu_tokenizer, load_bertscore, one_of_each
from evaluation.protocols import evaluate_pairs
from pipelines.best_checkpoint import CLASS_METRICS, PAIR_METRICS
from pipelines.evaluators.common import SPLIT_KEYS, EvaluationContext, FirstInputs, Metrics, Part, PartResult
from pipelines.sampling.classes import PRIOR, select_classes
from pipelines.sampling.inputs import Sources
from utils.errors import UserError
from utils.run_folder import write_json
from utils.terminal import single_line

NUM_SHOWN = 4  # sources in the log
PREFIX = "model/seq2seq/"
KINDS = {"one sample": "", "MBR-{k} ({utility})": "mbr_", "oracle-{k}": "oracle_", "chance": "chance_"}
COLUMNS = ("rouge1", "rouge2", "rougeL", "sacrebleu", "diffuseq_bleu", "dist1", "bertscore")
Record = dict[str, Any]  # source, reference (the first), references, sample, chosen, candidates


class Pairs(Part):
    """Candidates for the sources of a split, their metrics, and the metrics of the references themselves."""

    def __init__(self, context: EvaluationContext, sources: Sources) -> None:
        super().__init__(context)
        self.sources = sources
        self.options = context.config.pairs
        spec = context.corpus.spec
        is_translation = "sacrebleu" in spec.metrics
        self.utility = self.options.mbr_utility or ("sacrebleu" if is_translation else "rouge2")
        self.best_metric = "sacrebleu" if is_translation else "rougeL"
        self.bleu_tokenizer = self.options.bleu_tokenizer or BLEU_TOKENIZERS.get(spec.language or "", "13a")
        self._requested_classes([])  # raises for an unknown class now, before hours of training
        for flag, name in (("mbr_utility", self.utility), ("best_metric", context.config.best.best_metric or "")):
            if name.endswith("bertscore") and self.options.bertscore_model is None:
                raise UserError(f"--{flag} {name} needs a model: name one with --bertscore_model")

    def load_models(self) -> None:
        check_bleu_tokenizer(self.bleu_tokenizer)
        if self.options.bertscore_model is not None:
            load_bertscore(self.options.bertscore_model, str(self.context.run.device))

    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        context, k = self.context, self.options.seq2seq_candidates
        part, classes, class_ids = self._examples(split, seed, context.options.num_samples)
        candidates = context.generator.candidates(
            len(part),
            k,
            seed,
            context.strategies,
            self.sources.make_inputs(part.sources, seed, class_ids),
            quiet=context.run.quiet,
        )
        metrics, records = context.on_rank0(lambda: self._score(candidates, part, split, seed))
        metrics |= context.generator.timer.metadata()
        metrics["protocol"] |= {
            "seed": seed,
            "split": split,
            "num_references": part.num_references,
            **context.sampling_metadata(),
            **self.sources.metadata(),
        }
        if classes is not None:
            for strategy, rows in candidates.items():
                agreement = label_accuracy(context.classifier, [row[0] for row in rows], classes)
                metrics[f"{self._prefix(split, strategy)}label_accuracy"] = agreement["accuracy"]
            if part.has_references:
                of_references = context.classifier.accuracy(part.texts, part.labels or [])
                metrics[f"reference/{SPLIT_KEYS[split]}_label_accuracy"] = of_references["accuracy"]
            metrics["protocol"] |= {
                "classifier": context.classifier.protocol(),
                "class_id": context.classes.class_id,
            }
        return PartResult(metrics, {("", strategy): rows for strategy, rows in records.items()})

    def first_inputs(self, split: str, seed: int, n: int) -> FirstInputs:
        part, _, class_ids = self._examples(split, seed, n, quiet=True)
        inputs = self.sources.make_inputs(part.sources, seed, class_ids)
        return FirstInputs(lambda block, size, draws: inputs(0, min(len(part), size)), part.sources)

    def _examples(
        self, split: str, seed: int, n: int, quiet: bool = False
    ) -> tuple[Examples, list[int] | None, torch.Tensor | None]:
        """The first n examples of a seed, and the classes on which their texts are conditioned. Sources without
        references keep the order of their file, since their texts are read, not averaged.

        quiet: do not say that there are more sources.
        """
        rows = self.context.corpus.splits[split]
        order = self.context.shuffled_rows(split, seed) if rows.has_texts else range(len(rows))
        part = rows.examples(order, n, by_label=self.context.class_conditional)
        if not quiet and not rows.has_texts and len(part) < (total := len(set(rows.sources or ()))):
            self.context.run.log_once(
                f"note: texts are written for the first {len(part)} of {total} sources: raise --num_samples for more",
                f"sources of {split}",
            )
        classes = self._requested_classes(part.labels)
        return part, classes, None if classes is None else torch.tensor(classes, device=self.context.run.device)

    def _score(
        self, candidates: Mapping[str, list[list[str]]], part: Examples, split: str, seed: int
    ) -> tuple[Metrics, dict[str, list[Record]]]:
        """Compute the metrics of the candidates and of the references, and one record per source."""
        context, model, device = self.context, self.options.bertscore_model, str(self.context.run.device)
        metrics: Metrics = {}
        records: dict[str, list[Record]] = {}
        for strategy, rows in candidates.items():
            selected = mbr.select(
                rows, self.utility, tokenizer=self.bleu_tokenizer, bertscore_model=model or "", device=device
            )
            metrics |= evaluate_pairs(
                rows,
                part.references if part.has_references else None,
                context.training_ngrams,
                context.scorer,
                prefix=self._prefix(split, strategy),
                tokenizer=self.bleu_tokenizer,
                utility=self.utility,
                selected=selected,
                bertscore_model=model,
                device=device,
                seed=seed,
            )
            records[strategy] = [
                dict(source=s, reference=first, references=texts, sample=row[0], chosen=best, candidates=row)
                for s, first, texts, row, best in zip(
                    part.sources, part.texts, part.references, rows, selected.texts, strict=True
                )
            ]
        if not part.has_references:
            return metrics, records
        training = context.shuffled_texts("train", seed)[: len(part)]
        texts = one_of_each(part.references, seed)
        real = MetricContext(texts, scorer=context.scorer, training=context.training_ngrams, held_out=training)
        numbers, _ = compute_metrics(real, SAMPLES)
        metrics |= {f"reference/{SPLIT_KEYS[split]}_{key}": value for key, value in numbers.items()}
        return metrics, records

    def _requested_classes(self, labels: Sequence[int] | None) -> list[int] | None:
        """Return the class on which each text is conditioned: its own, or --class_id; None for no class."""
        context = self.context
        if not context.class_conditional or labels is None:
            return None
        names, null_prob = context.corpus.class_names, context.null_class_prob
        selection = select_classes(context.classes.class_id or PRIOR, names, null_prob, training=True)
        if selection.joint is None and len(selection.per_class) > 1:
            raise UserError("--class_id all: each text of a run on pairs has a class of its own: leave the flag out")
        if selection.joint is None:
            return [selection.per_class[0]] * len(labels)
        return list(labels) if selection.joint == PRIOR else None

    def _prefix(self, split: str, strategy: str) -> str:
        """Return the published prefix of the keys; every decoding strategy but the first adds its name."""
        weight = self.context.guidance
        guidance = "" if weight == 1 else f"guide{weight:g}/"
        of_split = "" if split == "valid" else f"{SPLIT_KEYS[split]}/"
        other = "" if strategy == self.context.strategies[0] else f"{strategy}/"
        return PREFIX + of_split + guidance + other

    # ---- output: evaluator.Output ----------------------------------------------------------------------------------

    def write_training(self, samples: Mapping[tuple[str, str], list[Record]], step: int, milestone: int) -> None:
        run = self.context.run
        for (_, strategy), records in samples.items():
            write_json(run.folder / f"{strategy}-pairs-{milestone}.json", records)
            rows = [[r["source"], " | ".join(r["references"]), r["sample"], r["chosen"]] for r in records[:50]]
            run.logger.table(f"seq2seq/{strategy}/samples", ["source", "reference", "one sample", "chosen"], rows, step)
            run.log(f"step {step}, {strategy}:\n{format_records(records)}")

    def write_run(self, samples: Mapping[tuple[str, str], list[Record]], split: str, seed: int) -> None:
        run = self.context.run
        for (_, strategy), records in samples.items():
            write_json(run.folder / "evaluation" / f"eval-{split}-seed{seed}-{strategy}-pairs.json", records)
            run.log(f"seed {seed}, {strategy}:\n{format_records(records)}")

    def table(self, metrics: Metrics, title: str, split: str) -> str:
        """Format a comparison of the kinds of candidates for each strategy, then every other number."""
        protocol = metrics["protocol"]
        shown: set[str] = set()
        lines = [f"{title}, {protocol['n']} sources, {protocol['candidates']} candidates each"]
        for strategy in self.context.strategies:
            prefix = self._prefix(split, strategy)
            columns = [name for name in COLUMNS if prefix + name in metrics]
            if not columns:
                continue  # without references there is nothing to compare
            lines.append(f"  {strategy:<24}" + "".join(f"{name:>14}" for name in columns))
            for kind, kind_prefix in KINDS.items():
                keys = [prefix + kind_prefix + name for name in columns]
                shown |= set(keys)
                name = kind.format(k=protocol["candidates"], utility=protocol["mbr_utility"])
                cells = [f"{metrics[key]:>14.4g}" if key in metrics else f"{'':>14}" for key in keys]
                lines.append(f"  {name:<24}" + "".join(cells))
        rest = {key: value for key, value in metrics.items() if key not in shown}
        return "\n".join([*lines, report.table(rest)])

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*PAIR_METRICS, *(CLASS_METRICS if self.context.class_conditional else ()))


def format_records(records: Sequence[Mapping[str, Any]]) -> str:
    """Format the first few sources with their reference and samples, safe to print to a terminal."""
    lines = []
    for record in records[:NUM_SHOWN]:
        others = [("or", text) for text in record.get("references", ())[1:]]
        named = [(name, record[name]) for name in ("source", "reference", "sample", "chosen")]
        if not record.get("references", [record["reference"]]):
            del named[1]
        lines += [f"  {name:<10}{single_line(text) or '(empty)'}" for name, text in [*named[:-2], *others, *named[-2:]]]
        lines.append("")
    return "\n".join(lines[:-1])
