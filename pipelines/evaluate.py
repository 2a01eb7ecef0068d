"""Samples of a run, judged: while it trains, on validation texts, on test texts over seeds; and labelled texts made.

The protocols are the published ones (Lovelace et al. 2023, section 5, and their code); evaluation/ has the numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataset_utils.corpus import Corpus
from evaluation import report, scorers
from evaluation.memorisation import Memory
from evaluation.options import EvaluationOptions
from evaluation.protocols import evaluate_texts, of_seed, over_seeds, reference_metrics
from evaluation.scorers import Scorer
from latent_models.decoding import strategies
from pipelines.generate import Conditions, Sampled, TextGenerator, of_labels
from pipelines.job import Job
from utils.errors import UserError
from utils.runs import write_json, write_text
from utils.seeding import generator as seeded

TEST_SEEDS = (42, 43, 44, 45, 46)
SHOWN = 5  # samples in the log
SHORT = {"train": "train", "valid": "val", "test": "test"}  # splits as the published keys call them


class Evaluator:
    """Samples texts with a generator and judges them against a corpus."""

    def __init__(self, job: Job, generator: TextGenerator, corpus: Corpus, options: EvaluationOptions) -> None:
        self.job, self.generator, self.corpus, self.options = job, generator, corpus, options
        self.strategies = list(strategies(options.decoding))
        self._scorer: Scorer | None = None
        self._memory: Memory | None = None

    # ---- parts made once -----------------------------------------------------------------------------------------

    @property
    def scorer(self) -> Scorer:
        """The scorer of the flags, or a small one trained on the corpus beside the run."""
        if self._scorer is None:
            texts = None if self.options.scorer else self.corpus.train.texts
            self._scorer = scorers.load(
                self.options.scorer, texts=texts, folder=self.job.folder / "scorer", device=self.job.device
            )
        return self._scorer

    @property
    def memory(self) -> Memory:
        if self._memory is None:
            self._memory = Memory(self.corpus.train.texts)
        return self._memory

    # ---- while training ------------------------------------------------------------------------------------------

    def evaluate_training(self, step: int) -> tuple[str, float] | None:
        """Sample, write the texts, log the metrics. Called with the averaged weights in place.

        Returns the metric that best/ is kept by and its value, on the main rank; None for none.
        """
        job = self.job
        if job.ranks.main:
            result, sampled = self.judge(42, self._references("valid", 42), self._prior())
            milestone = step // job.settings.save_and_sample_every
            for strategy, texts in sampled.texts.items():
                write_text(job.folder / f"{strategy}-sample-{milestone}.txt", _lines(texts))
                job.log.table(f"model/{strategy}/samples", ["text"], [[text] for text in texts[:50]], step)
                job.say(f"step {step}, {strategy}:\n{report.show(texts, SHOWN)}")
            job.log.record(_numbers(result), step)
            write_json(job.folder / "metrics.json", report.finite({"step": step, **result}))
            job.say(report.table(result, f"step {step}, {self.count('valid')} samples"))
        job.ranks.barrier()
        return None

    # ---- of a trained run ----------------------------------------------------------------------------------------

    def evaluate_run(self) -> int:
        """--eval, --eval_test or --gen_data. Returns the exit code."""
        if not self.job.ranks.main:
            return 0
        if self.options.gen_data:
            return self._synthetic_data()
        split, seeds = ("test", TEST_SEEDS) if self.options.eval_test else ("valid", (42,))
        results = []
        for seed in seeds:
            result = self._references_judged(split, seed)
            found, sampled = self.judge(seed, self._references(split, seed), self._prior())
            result |= found
            self._write_samples(split, seed, "", sampled)
            for c in range(self.corpus.num_classes if self.job.settings.class_conditional else 0):
                found, sampled = self.judge(seed, self._class_references(split, seed), _one_class(c), c)
                result |= {key: value for key, value in found.items() if key != "protocol"}
                self._write_samples(split, seed, f"cond{c}_", sampled)
            results.append(result)
            self.job.say(report.table(result, f"seed {seed}, {self.count(split)} samples against the {split} split"))
        summary = over_seeds(results)
        named = (
            {}
            if len(seeds) == 1
            else {k: v for s, r in zip(seeds, results, strict=True) for k, v in of_seed(r, s).items()}
        )
        final: dict[str, Any] = {**(results[0] if len(seeds) == 1 else {**named, **summary})}
        report.write(self.job.folder / "evaluation", f"eval-{split}", final)
        self.job.log.record(_numbers(results[0] if len(seeds) == 1 else named), 0)
        if len(seeds) > 1:
            self.job.say(report.table(summary, f"mean and standard deviation over seeds {seeds[0]} to {seeds[-1]}"))
        self.job.say(f"written to {self.job.folder / 'evaluation'}")
        return 0

    def judge(
        self,
        seed: int,
        references: Mapping[str, Sequence[str]],
        conditions: Conditions | None,
        condition: int | None = None,
    ) -> tuple[dict[str, Any], Sampled]:
        """Metrics of fresh samples of one seed, by decoding strategy, and the samples."""
        n = min(self.options.num_samples, *(len(texts) for texts in references.values()))
        sampled = self.generator.sample(n, seed, self.strategies, conditions, quiet=self.job.quiet)
        result: dict[str, Any] = {}
        for strategy, texts in sampled.texts.items():
            like = {name: texts_[:n] for name, texts_ in references.items()}
            found = evaluate_texts(
                texts, like, self.memory, self.scorer, prefix=f"model/{strategy}/", condition=condition
            )
            result |= found
            result[f"model/{strategy}/{'' if condition is None else f'cond{condition}_'}empty_replaced"] = (
                sampled.empty[strategy]
            )
        result["protocol"] = {**result.get("protocol", {}), "seed": seed, **self._sampling_facts()}
        return result, sampled

    def count(self, split: str) -> int:
        """How many texts are sampled: --num_samples, or fewer where a split is smaller."""
        return min(self.options.num_samples, len(self.corpus.splits[split]), len(self.corpus.train))

    # ---- pieces --------------------------------------------------------------------------------------------------

    def _sampling_facts(self) -> dict[str, Any]:
        s = self.job.settings
        return {
            "sampler": s.sampler,
            "sampling_timesteps": s.sampling_timesteps,
            "sampling_schedule": s.beta_schedule or s.sampling_schedule or s.train_schedule,
            "max_seq_len": s.max_seq_len,
            "cls_free_guidance": s.cls_free_guidance,
        }

    def _references(self, split: str, seed: int) -> dict[str, list[str]]:
        """num_samples texts of the split and of the training set, in an order that the seed decides."""
        n = self.count(split)
        return {SHORT[split]: self._shuffled(split, seed)[:n], "train": self._shuffled("train", seed)[:n]}

    def _shuffled(self, split: str, seed: int) -> list[str]:
        texts = self.corpus.splits[split].texts
        return [texts[i] for i in torch.randperm(len(texts), generator=seeded(seed, "references", split)).tolist()]

    def _references_judged(self, split: str, seed: int) -> dict[str, Any]:
        return reference_metrics(
            self._shuffled(split, seed),
            self._shuffled("train", seed),
            self.scorer,
            split=SHORT[split],
            num_samples=self.count(split),
            memory=self.memory,
        )

    def _class_references(self, split: str, seed: int) -> dict[str, list[str]]:
        """Texts of every class, from the split and from the training set: {class}_{split} -> texts."""
        found: dict[str, list[str]] = {}
        for name in (split, "train"):
            part = self.corpus.splits[name]
            assert part.labels is not None
            order = torch.randperm(len(part), generator=seeded(seed, "references", name)).tolist()
            for c in range(self.corpus.num_classes):
                key = f"ref{c}_{SHORT[name]}"
                found[key] = [part.texts[i] for i in order if part.labels[i] == c]
                if not found[key]:
                    raise UserError(
                        f"the {name} split of {self.corpus.name} holds no text of class {self.corpus.class_names[c]}"
                    )
        return found

    def _prior(self) -> Conditions | None:
        """Without a class asked for: the null class, or, where the network never learned it, labels as in training."""
        settings = self.job.settings
        if not settings.class_conditional or settings.class_unconditional_prob > 0:
            return None
        labels = torch.tensor(self.corpus.train.labels)
        return of_labels(lambda n, generator: labels[torch.randint(len(labels), (n,), generator=generator)])

    def _write_samples(self, split: str, seed: int, cond: str, sampled: Sampled) -> None:
        folder = self.job.folder / "evaluation"
        for strategy, texts in sampled.texts.items():
            name = f"eval-{split}-seed{seed}-{cond}{strategy}"
            write_json(folder / f"{name}-samples.json", texts)
            write_text(folder / f"{name}-samples.txt", _lines(texts))
            self.job.say(f"{name}:\n{report.show(texts, SHOWN)}")

    def _synthetic_data(self) -> int:
        """num_samples labelled texts, equally many of each class, as one CSV of text and label per seed."""
        n, classes = self.options.num_samples, self.corpus.num_classes
        if not self.job.settings.class_conditional:
            raise UserError(f"--gen_data needs a class-conditional run, and {self.job.settings.resume_dir} is not one")
        if n % classes:
            raise UserError(
                f"--num_samples {n} is not divisible by the {classes} classes: give {n - n % classes or classes}"
            )
        for seed in TEST_SEEDS:
            file = io.StringIO()
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for c in range(classes):
                sampled = self.generator.sample(
                    n // classes, seed, self.strategies[:1], _one_class(c), quiet=self.job.quiet
                )
                writer.writerows([text, c] for text in sampled.texts[self.strategies[0]])
            path = self.job.folder / f"synth_sample{n}_seed{seed}.csv"
            write_text(path, file.getvalue())
            self.job.say(f"wrote {path}")
        return 0


def _one_class(c: int) -> Conditions | None:
    return of_labels(lambda n, generator: torch.full((n,), c))


def _lines(texts: Sequence[str]) -> str:
    return "".join(report.one_line(text) + "\n" for text in texts)


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in result.items() if isinstance(value, int | float)}
