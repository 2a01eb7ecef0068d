"""Sampling and metrics of benchmarks/pairs.py: every system and number of steps, evaluated under one protocol."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs_systems import Size, System
from benchmarks.source_conditioning import keeps_slots
from dataset_utils.corpus import Corpus, Split
from evaluation import bootstrap, mbr, report, scorers
from evaluation.diffuseq import reference_scores, sentence_bleu4
from evaluation.fluency import perplexity
from evaluation.memorization import NgramIndex
from evaluation.overlap import bleu, rouge
from evaluation.protocols import evaluate_pairs
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.checkpoints import fingerprint
from utils.run_folder import write_json
from utils.seeding import seeded_generator

UTILITY = "diffuseq_bleu"
FIRST_SEED = 42
KeepsContent = Callable[[str, str], bool]  # (source, text) -> whether the text keeps the content of its source
KEEPS_CONTENT: Mapping[str, KeepsContent] = {"tales-pairs": keeps_slots}  # corpora where this is exact


@dataclass
class Row:
    """Results of one system, one setting of its sampler and one number of steps: metrics and texts of each seed."""

    name: str
    steps: int
    seeds: list[dict[str, Any]] = field(default_factory=list)

    def mean(self, key: str) -> float:
        return statistics.fmean(self._values(key))

    def metadata(self) -> dict[str, Any]:
        numbers = [key for key, value in self.seeds[0]["metrics"].items() if isinstance(value, int | float)]
        spread = {key: statistics.stdev(self._values(key)) for key in numbers} if len(self.seeds) > 1 else {}
        seconds = sum(seed["seconds"] for seed in self.seeds) / sum(len(seed["records"]) for seed in self.seeds)
        means = {key: self.mean(key) for key in numbers}
        return {"name": self.name, "steps": self.steps, "metrics": means, "std": spread, "seconds_per_source": seconds}

    def gains(self) -> dict[str, dict[str, Any]]:
        """Gain of MBR over one sample, in BLEU and, where known, in kept content, with 95 % intervals over sources."""
        records = [record for seed in self.seeds for record in seed["records"]]
        kinds = ("sample", "chosen")
        found = {"diffuseq_bleu": [[sentence_bleu4(r[kind], r["reference"]) for r in records] for kind in kinds]}
        if "kept" in records[0]:
            found["kept"] = [[float(r["kept"][kind]) for r in records] for kind in kinds]
        return {key: difference(one, chosen) for key, (one, chosen) in found.items()}

    def _values(self, key: str) -> list[float]:
        return [float(seed["metrics"][key]) for seed in self.seeds]


def difference(one: Sequence[float], chosen: Sequence[float]) -> dict[str, Any]:
    """Mean of chosen - one, with a paired bootstrap interval."""
    low, high = bootstrap.paired_bootstrap_ci(one, chosen)
    return {"mean": statistics.fmean(chosen) - statistics.fmean(one), "interval_95": [low, high]}


class PairsEvaluator:
    """Samples the runs below root and caches the results in root/evaluation: one file for each row and seed."""

    def __init__(
        self,
        corpus: Corpus,
        root: Path,
        scorer: Path,
        size: Size,
        device: str,
        bertscore_model: str | None,
        keeps_content: KeepsContent | None = None,
    ) -> None:
        self.corpus, self.root, self.size, self.device = corpus, root, size, device
        self.bertscore_model, self.keeps_content = bertscore_model, keeps_content
        self.steps, self.candidates = size.steps, size.candidates
        self.scorer = scorers.load(scorer, device=device)
        self.rows: list[Row] = []

    @cached_property
    def memory(self) -> NgramIndex:
        return NgramIndex(self.corpus.train.texts, self.root / "evaluation/references")

    def pairs(self, seed: int) -> Split:
        """The test pairs of a seed, the same for every system."""
        test = self.corpus.splits["test"]
        order = torch.randperm(len(test), generator=seeded_generator(seed, "references", "test"))
        return test.select(order[: self.size.sources].tolist())

    @property
    def seeds(self) -> range:
        return range(FIRST_SEED, FIRST_SEED + self.size.seeds)

    def evaluate_system(self, system: System) -> None:
        """Evaluate every sampler setting and number of steps of one system, or read cached results."""
        printed = ("diffuseq_bleu", "mbr_diffuseq_bleu", "rougeL", *(("kept",) if self.keeps_content else ()))
        for name, flags in system.sampler_settings.items():
            for steps in (*self.steps, *self.size.more_steps.get(name, ())):
                row = Row(name, steps)
                row.seeds = [
                    self.evaluate_seed(self.root / system.run, name, flags, steps, seed) for seed in self.seeds
                ]
                self.rows.append(row)
                print(f"{name}, {steps} steps: { {key: round(row.mean(key), 4) for key in printed} }", flush=True)

    def evaluate_seed(self, run: Path, name: str, flags: str, steps: int, seed: int) -> dict[str, Any]:
        slug = "".join(c if c.isalnum() else "_" for c in f"{name} {steps} {seed}")
        path = self.root / "evaluation" / f"{slug}.json"
        weights = fingerprint(checkpoints.load(run).tensors["ema"])  # a run with other weights is evaluated again
        request = {"flags": flags, "sources": self.size.sources, "candidates": self.candidates, "weights": weights}
        if path.is_file():
            cached = json.loads(path.read_text(encoding="utf-8"))
            if cached["asked"] == request:
                return cached
        argv = [*flags.split(), "--sampling_timesteps", str(steps), "--config", "newest_checkpoint=true"]
        pipeline = TextDiffusionPipeline.from_pretrained(
            run, device=self.device, argv=argv, eval_batch_size=self.size.batch
        )
        pairs, began = self.pairs(seed), time.monotonic()
        candidates = pipeline.candidates(pairs.sources or [], self.candidates, seed=seed, decoding="greedy")
        seconds = time.monotonic() - began
        found = {"asked": request, "seconds": round(seconds, 2), **self.score(pairs, candidates, seed)}
        write_json(path, report.nan_to_none(found))
        return json.loads(path.read_text(encoding="utf-8"))

    def score(self, pairs: Split, candidates: Sequence[Sequence[str]], seed: int) -> dict[str, Any]:
        """Metrics of the candidates of all sources, and a record of each source."""
        model = self.bertscore_model
        chosen = mbr.mbr_select(candidates, UTILITY)
        metrics = evaluate_pairs(
            candidates, pairs.texts, self.memory, self.scorer, utility=UTILITY, selected=chosen, bertscore_model=model,
            device=self.device, seed=seed,
        )  # fmt: skip
        metrics["mbr_perplexity"] = perplexity(chosen, self.scorer)["perplexity"]
        columns = zip(pairs.sources or [], pairs.texts, candidates, chosen, strict=True)
        records = [
            {"source": s, "reference": t, "sample": row[0], "chosen": best, "candidates": list(row)}
            for s, t, row, best in columns
        ]
        if self.keeps_content:
            metrics |= self.kept_content(records, seed)
        return {"metrics": metrics, "records": records}

    def kept_content(self, records: list[dict[str, Any]], seed: int) -> dict[str, float]:
        """Share of the sources whose content is kept. Adds to each record which of its texts keep it."""
        assert self.keeps_content is not None
        others = mbr.shuffle_predictions([record["sample"] for record in records], seed)
        for record, other in zip(records, others, strict=True):
            source = record["source"]
            texts = {"sample": record["sample"], "chosen": record["chosen"], "chance": other}
            record["kept"] = {kind: self.keeps_content(source, text) for kind, text in texts.items()}
            record["kept"]["oracle"] = any(self.keeps_content(source, text) for text in record["candidates"])
        kinds = {"kept": "sample", "mbr_kept": "chosen", "oracle_kept": "oracle", "chance_kept": "chance"}
        return {key: statistics.fmean(record["kept"][kind] for record in records) for key, kind in kinds.items()}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Metrics of texts without a model: the source itself, a reference of another source, and the reference.

        On the pairs of the first seed.
        """
        pairs = self.pairs(self.seeds[0])
        texts = {
            "the source itself": pairs.sources or [],
            "a reference of another source": mbr.shuffle_predictions(pairs.texts, self.seeds[0]),
            "the reference": pairs.texts,
        }
        return {name: self.score_texts(found, pairs) for name, found in texts.items()}

    def score_texts(self, texts: Sequence[str], pairs: Split) -> dict[str, float]:
        """Metrics of one text for each pair."""
        references = pairs.texts
        found = reference_scores(texts, references) | rouge(texts, references)
        if self.keeps_content:
            found["kept"] = statistics.fmean(map(self.keeps_content, pairs.sources or [], texts))
        found["sacrebleu"] = bleu(texts, references)
        return found | {"perplexity": perplexity(texts, self.scorer)["perplexity"]}

    def protocol(self) -> dict[str, Any]:
        return {
            "sources": self.size.sources,
            "steps": list(self.steps),
            "seeds": list(self.seeds),
            "candidates": self.candidates,
            "mbr_utility": UTILITY,
            "bertscore_model": self.bertscore_model,
            "decoding": "greedy",
            "of_a_row": self.rows[0].seeds[0]["metrics"]["protocol"],
        }
