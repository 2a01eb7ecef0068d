"""What an evaluation records for its report besides metrics and samples: real texts, the nearest training texts, a
trajectory, norms of latents. It draws no random number of the evaluation and changes none of its metrics.

    eval-{split}-seed{seed}-references.json              the real texts that the samples are compared with
    eval-{split}-seed{seed}-{prefix}{strategy}-nearest.json  nearest training text and longest shared run of words
    trajectory.json                                      a few samples while they are denoised
    latent_norms.json                                    histograms of the norms of latent vectors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evaluation.nearest import MOST, RULE, TrainingIndex
from pipelines.evaluators.common import EvaluationContext, FirstInputs, Metrics
from pipelines.evaluators.latent_norms import SampleNorms, write_norms
from pipelines.run_context import EVALUATION
from pipelines.sampling.blocks import segments
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.sampler_call import ConditionFn, SampleInputs
from pipelines.sampling.trajectory import Trajectory
from utils.heartbeat import beating
from utils.run_folder import write_json
from utils.train_eval import eval_mode

TEXTS, VIEWS = 6, 25  # of the trajectory
Samples = Mapping[tuple[str, str], Sequence[Any]]  # (prefix of file names, decoding strategy) -> texts or records


class ReportData:
    """Writes these files into a run folder."""

    def __init__(self, context: EvaluationContext) -> None:
        self.context, self.folder = context, context.run.folder / EVALUATION
        self.norms: SampleNorms | None = None
        if isinstance(context.generator, TextGenerator):
            self.norms = SampleNorms()
            context.generator.hooks = (*context.generator.hooks, self.norms)

    @cached_property
    def training(self) -> TrainingIndex:
        return TrainingIndex(self.context.corpus.train.texts)

    def record_training(self, step: int) -> None:
        """After samples of training: the norms of their latents."""
        run, norms = self.context.run, self.norms.take() if self.norms else None
        if norms is not None and run.dist.is_main:
            run.logger.histogram("latent_norm/samples", norms, step)
            write_norms(run.folder, {"samples": norms})

    def write_seed(self, samples: Samples, split: str, seed: int, inputs: FirstInputs | None) -> Metrics:
        """Write the files of one seed, and return their entry of the protocol. Called by rank 0.

        inputs: of the first texts, for the trajectory; None: the files of the first seed are written already.
        """
        if inputs is not None:
            self._write_references(samples, split, seed)
            self._write_trajectory(seed, inputs)
        norms = self.norms.take() if self.norms else None
        if norms is not None:
            self.context.run.logger.histogram("latent_norm/samples", norms, 0)
            given = self.context.run.settings.config.run.resume_dir
            write_norms(self.folder, {"samples": norms}, earlier=Path(given) if given else self.context.run.folder)
        with beating():  # the index of all training texts
            return {"nearest": self._write_nearest(samples, split, seed)}

    def _write_nearest(self, samples: Samples, split: str, seed: int) -> Metrics:
        count = 0
        for (prefix, strategy), found in samples.items():
            texts = [sample["sample"] if isinstance(sample, Mapping) else sample for sample in found[:MOST]]
            nearest = [None if entry is None else entry.as_dict() for entry in self.training.nearest(texts)]
            write_json(self.folder / f"eval-{split}-seed{seed}-{prefix}{strategy}-nearest.json", nearest)
            count = max(count, len(texts))
        return {"similarity": RULE, "n": count, "training_texts": len(self.training.texts)}

    def _write_references(self, samples: Samples, split: str, seed: int) -> None:
        context = self.context
        if any(isinstance(sample, Mapping) for found in samples.values() for sample in found[:1]):
            return  # pairs hold their references
        texts = context.shuffled_texts(split, seed)[: context.num_samples(split)]
        write_json(self.folder / f"eval-{split}-seed{seed}-references.json", texts)

    def _write_trajectory(self, seed: int, inputs: FirstInputs) -> None:
        """Denoise the first texts of the seed once more: decoding among the others would change measured speeds."""
        generator = self.context.generator
        if not isinstance(generator, TextGenerator):
            return
        classes: list[int] = []
        parts = segments(0, min(TEXTS, generator.block_size), generator.block_size)
        hooks = [hook for hook in generator.hooks if not isinstance(hook, Trajectory | SampleNorms)]
        trajectory = Trajectory(lambda latents: generator.decode(latents, "greedy", 0), texts=TEXTS, snapshots=VIEWS)
        with eval_mode(generator.denoiser):
            conditions = _recording_classes(inputs.conditions, classes)
            call = generator.prepare_rows(seed, parts, conditions, hooks=[*hooks, trajectory])
            call.run()
        names = [*self.context.corpus.class_names, "(no class)"]
        record = trajectory.as_dict(call)
        if inputs.sources:
            record["sources"] = list(inputs.sources)
        if classes:
            record["classes"] = [names[c] for c in classes]
        write_json(self.folder / "trajectory.json", record)


def _recording_classes(conditions: ConditionFn | None, classes: list[int]) -> ConditionFn | None:
    """The same conditions, whose classes are appended to a list."""
    if conditions is None:
        return None

    def recorded(block: int, n: int, generator: torch.Generator) -> SampleInputs:
        inputs = SampleInputs.coerce(conditions(block, n, generator))
        if inputs.condition is not None and inputs.condition.class_id is not None:
            classes.extend(inputs.condition.class_id[:TEXTS].tolist())
        return inputs

    return recorded
