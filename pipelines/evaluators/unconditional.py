"""Samples without a source, and real texts for comparison, by the published protocol.

Lovelace et al. 2023, section 5, and their code. The metrics are in evaluation/.
"""

from __future__ import annotations

from evaluation.protocols import evaluate_texts, reference_metrics
from pipelines.evaluators.common import SPLIT_KEYS, EvaluationContext, FirstInputs, Metrics, Part, PartResult
from pipelines.sampling.generator import SampleOutput
from pipelines.sampling.sampler_call import ConditionFn


class Samples(Part):
    """Samples without a condition."""

    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        return sample_and_score(self.context, split, seed, None)[0]

    def first_inputs(self, split: str, seed: int, n: int) -> FirstInputs:
        return FirstInputs()


class References(Part):
    """Real texts of the split and of the training set: the values that samples should reach."""

    def evaluate_seed(self, split: str, seed: int) -> PartResult:
        context = self.context

        def score() -> Metrics:
            return reference_metrics(
                context.shuffled_texts(split, seed),
                context.shuffled_texts("train", seed),
                context.scorer,
                split=SPLIT_KEYS[split],
                num_samples=context.num_samples(split),
                index=context.training_ngrams,
                encoder=context.encoder,
            )

        metrics = context.on_rank0(score)
        del metrics["protocol"]  # the same as the protocol of the samples
        return PartResult(metrics)


def sample_and_score(
    context: EvaluationContext, split: str, seed: int, conditions: ConditionFn | None
) -> tuple[PartResult, SampleOutput]:
    """Sample as many texts as there are references, and compute their metrics for each decoding strategy."""
    n = context.num_samples(split)
    output = context.generator.sample(n, seed, context.strategies, conditions, quiet=context.run.quiet)
    references = {SPLIT_KEYS[name]: context.shuffled_texts(name, seed)[:n] for name in (split, "train")}

    def score() -> Metrics:
        metrics: Metrics = {}
        for strategy, texts in output.texts.items():
            prefix = f"model/{strategy}/"
            metrics |= evaluate_texts(
                texts, references, context.training_ngrams, context.scorer, prefix=prefix, encoder=context.encoder
            )
            metrics[f"{prefix}num_empty_resampled"] = output.empty[strategy]
        return metrics

    metrics = context.on_rank0(score)
    metrics["protocol"] = {
        **metrics.get("protocol", {}), "seed": seed, "available": context.available(split),
        **context.sampling_metadata(),
    }  # fmt: skip
    metrics |= output.speed.metadata()
    return PartResult(metrics, {("", strategy): texts for strategy, texts in output.texts.items()}), output
