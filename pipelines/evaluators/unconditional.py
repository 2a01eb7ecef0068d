"""Samples of a run, judged: while it trains, on validation texts, on test texts over seeds.

The protocols are the published ones (Lovelace et al. 2023, section 5, and their code); evaluation/ has the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from dataset_utils.corpus import Corpus
from diffusion.options import SamplingOptions
from diffusion.samplers import network_calls
from evaluation import report, scorers
from evaluation.distributed import on_rank0
from evaluation.memorization import NgramIndex
from evaluation.options import EvaluationOptions
from evaluation.protocols import evaluate_texts, over_seeds, reference_metrics, with_seed_suffix
from evaluation.scorers import Scorer
from latent_models.decoding import strategies
from pipelines.evaluators.synthetic import write_synthetic
from pipelines.flags.options import ControlOptions, RoundingOptions
from pipelines.job import Job
from pipelines.sampling.generate import Conditions, Sampled, TextGenerator
from utils.run_folder import write_json, write_text
from utils.seeding import generator as seeded

T = TypeVar("T")
TEST_SEEDS = (42, 43, 44, 45, 46)
SHOWN = 5  # samples in the log
ADDED = (RoundingOptions, ControlOptions)  # to sampling, where their flags are not the defaults
Result = tuple[dict[str, Any], dict[str, Sampled]]  # numbers and protocol; samples by how their files begin
SHORT = {"train": "train", "valid": "val", "test": "test"}  # splits as the published keys call them


class Evaluator:
    """Samples texts with a generator and judges them against a corpus."""

    def __init__(self, job: Job, generator: TextGenerator, corpus: Corpus, options: EvaluationOptions) -> None:
        self.job, self.generator, self.corpus, self.options = job, generator, corpus, options
        self.strategies = list(strategies(options.decoding))
        self._scorer: Scorer | None = None
        self._memory: NgramIndex | None = None

    # ---- parts made once -----------------------------------------------------------------------------------------

    @property
    def scorer(self) -> Scorer:
        """The scorer of the flags, or a small one trained on the corpus beside the run."""
        if self._scorer is None:
            texts = None if self.options.scorer else self.corpus.train.texts
            self._scorer = scorers.load(
                self.options.scorer, texts=texts, folder=self.job.folder / "scorer", device=self.job.device
            )
            self._scorer.folder = self.kept
        return self._scorer

    @property
    def kept(self) -> Path:
        """What earlier evaluations into this folder, those of training too, computed of references."""
        return self.job.folder / "evaluation" / "references"

    @property
    def memory(self) -> NgramIndex:
        if self._memory is None:
            self._memory = NgramIndex(self.corpus.train.texts, self.kept)
        return self._memory

    def load_models(self) -> None:
        """Load what the flags name now: what is not there is better known before hours of training."""
        if self.options.scorer:
            assert self.scorer

    # ---- while training ------------------------------------------------------------------------------------------

    def evaluate_training(self, step: int) -> tuple[str, float] | None:
        """Sample, write the texts, log the metrics. Called with the averaged weights in place.

        Returns the metric that best/ is kept by and its value, on the main rank; None for none.
        """
        job = self.job
        result, samples = self.measured("valid", 42, training=True)  # by every rank: they share the sampling
        if job.ranks.main:
            milestone = self.milestone(step)
            for of, sampled in samples.items():
                for strategy, texts in sampled.texts.items():
                    write_text(job.folder / f"{of}{strategy}-sample-{milestone}.txt", _lines(texts))
                    job.log.table(f"model/{strategy}/{of}samples", ["text"], [[text] for text in texts[:50]], step)
                    job.say(f"step {step}, {of}{strategy}:\n{report.format_samples(texts, SHOWN)}")
            job.log.record(_numbers(result), step)
            write_json(job.folder / "metrics.json", report.nan_to_none({"step": step, **result}))
            job.say(report.table(result, f"step {step}, {self.count('valid')} samples"))
        job.ranks.barrier()
        return None

    def milestone(self, step: int) -> int:
        """In the names of files: k of the k-th sampling, one more where training ends between two."""
        settings = self.job.settings
        return math.ceil(step / (settings.sample_every or settings.save_and_sample_every))

    # ---- of a trained run ----------------------------------------------------------------------------------------

    def evaluate_run(self) -> int:
        """--eval, --eval_test or --gen_data. Returns the exit code."""
        if self.options.gen_data:
            return self._synthetic_data()
        split, seeds = ("test", TEST_SEEDS) if self.options.eval_test else ("valid", (42,))
        results = []
        for seed in seeds:
            result = self.references_judged(split, seed)
            found, samples = self.measured(split, seed, training=False)
            result |= found
            for of, sampled in samples.items():
                self._write_samples(split, seed, of, sampled)
            results.append(result)
            self.job.say(report.table(result, f"seed {seed}, {self.count(split)} samples against the {split} split"))
        summary = over_seeds(results)
        named = (
            {}
            if len(seeds) == 1
            else {k: v for s, r in zip(seeds, results, strict=True) for k, v in with_seed_suffix(r, s).items()}
        )
        final: dict[str, Any] = {**(results[0] if len(seeds) == 1 else {**named, **summary})}
        if self.job.ranks.main:
            report.write(self.job.folder / "evaluation", f"eval-{split}", final)
            self.finish(split)
        self.job.log.record(_numbers(results[0] if len(seeds) == 1 else named), 0)
        if len(seeds) > 1:
            self.job.say(report.table(summary, f"mean and standard deviation over seeds {seeds[0]} to {seeds[-1]}"))
        self.job.say(f"written to {self.job.folder / 'evaluation'}")
        return 0

    # ---- what an evaluator of another kind of run does otherwise -------------------------------------------------

    def measured(self, split: str, seed: int, *, training: bool) -> Result:
        """Numbers of fresh samples of one seed, and the samples. training: whether the run is still being trained."""
        found, sampled = self.judge(seed, self.references(split, seed), None)
        return found, {"": sampled}

    def references_judged(self, split: str, seed: int) -> dict[str, Any]:
        """The same numbers of real texts."""

        def deed() -> dict[str, Any]:
            return reference_metrics(
                self._shuffled(split, seed),
                self._shuffled("train", seed),
                self.scorer,
                split=SHORT[split],
                num_samples=self.count(split),
                memory=self.memory,
            )

        return self.on_rank0(deed)

    def finish(self, split: str) -> None:
        """Files beside eval-{split}.json, after the last seed."""

    # ---- pieces --------------------------------------------------------------------------------------------------

    def judge(
        self,
        seed: int,
        references: Mapping[str, Sequence[str]],
        conditions: Conditions | None,
    ) -> tuple[dict[str, Any], Sampled]:
        """Metrics of fresh samples of one seed, by decoding strategy, and the samples."""
        n = min(self.options.num_samples, *(len(texts) for texts in references.values()))
        sampled = self.generator.sample(n, seed, self.strategies, conditions, quiet=self.job.quiet)
        like = {name: texts[:n] for name, texts in references.items()}

        def deed() -> dict[str, Any]:
            result: dict[str, Any] = {}
            for strategy, texts in sampled.texts.items():
                result |= evaluate_texts(texts, like, self.memory, self.scorer, prefix=f"model/{strategy}/")
                result[f"model/{strategy}/empty_replaced"] = sampled.empty[strategy]
            return result

        result = self.on_rank0(deed)
        result["protocol"] = {**result.get("protocol", {}), "seed": seed, **self._sampling_facts()}
        result |= sampled.speed.facts()
        return result, sampled

    def on_rank0(self, deed: Callable[[], T]) -> T:
        """What the main process computes, with the others helping its scorer; on every process."""
        return on_rank0(self.job.ranks, self.scorer, deed)

    def count(self, split: str) -> int:
        """How many texts are sampled: --num_samples, or fewer where a split is smaller."""
        return min(self.options.num_samples, len(self.corpus.splits[split]), len(self.corpus.train))

    def _sampling_facts(self) -> dict[str, Any]:
        """Every flag of sampling, what others added to it, and how many calls of the network a text took."""
        s, sampling = self.job.settings, self.job.settings.build(SamplingOptions)
        guided = 2 if s.cls_free_guidance != 1 else 1
        facts = {name: value for name, value in asdict(sampling).items() if name != "preset"}  # not what it stood for
        flags = s.program.flags
        added = [f.name for group in ADDED for f in fields(group) if s.values[f.name] != flags[f.name].default]
        return {
            **facts,
            **{name: s.values[name] for name in added},
            "sampling_schedule": s.beta_schedule or s.sampling_schedule or s.train_schedule,
            "network_calls": guided * network_calls(s.sampler, s.sampling_timesteps),
            "texts_together": self.generator.block,
            "max_seq_len": s.max_seq_len,
        }

    def references(self, split: str, seed: int) -> dict[str, list[str]]:
        """num_samples texts of the split and of the training set, in an order that the seed decides."""
        n = self.count(split)
        return {SHORT[split]: self._shuffled(split, seed)[:n], "train": self._shuffled("train", seed)[:n]}

    def shuffled_rows(self, split: str, seed: int) -> list[int]:
        """The rows of a split in an order that the seed decides."""
        return torch.randperm(len(self.corpus.splits[split]), generator=seeded(seed, "references", split)).tolist()

    def _shuffled(self, split: str, seed: int) -> list[str]:
        texts = self.corpus.splits[split].texts
        return [texts[i] for i in self.shuffled_rows(split, seed)]

    def _write_samples(self, split: str, seed: int, cond: str, sampled: Sampled) -> None:
        folder = self.job.folder / "evaluation"
        for strategy, texts in sampled.texts.items() if self.job.ranks.main else ():
            name = f"eval-{split}-seed{seed}-{cond}{strategy}"
            write_json(folder / f"{name}-samples.json", texts)
            write_text(folder / f"{name}-samples.txt", _lines(texts))
            self.job.say(f"{name}:\n{report.format_samples(texts, SHOWN)}")

    def _synthetic_data(self) -> int:
        write_synthetic(self.job, self.generator, self.corpus, self.options, TEST_SEEDS)
        return 0


def _lines(texts: Sequence[str]) -> str:
    return "".join(report.single_line(text) + "\n" for text in texts)


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in result.items() if isinstance(value, int | float)}
