"""Flags that belong to one entry point rather than to a part."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AutoencoderIntervals:
    eval_every: int = field(
        default=1000, metadata=dict(help="steps between validations, each with a checkpoint", unit="steps")
    )
    eval_texts: int = field(
        default=1000, metadata=dict(help="held-out texts reconstructed at a validation", unit="texts")
    )


@dataclass
class DiffusionIntervals:
    save_and_sample_every: int = field(
        default=5000,
        metadata=dict(help="steps between samplings with evaluation, each with a checkpoint", unit="steps"),
    )
    sample_every: int | None = field(
        default=None, metadata=dict(help="steps between samplings; unset: --save_and_sample_every", unit="steps")
    )
    init_path: str | None = field(
        default=None, metadata=dict(help="run folder whose weights training starts from, at step 0")
    )


@dataclass
class PretrainingIntervals:
    eval_every: int = field(default=500, metadata=dict(help="steps between validations", unit="steps"))
    eval_texts: int = field(default=500, metadata=dict(help="held-out texts copied at a validation", unit="texts"))


@dataclass
class EmbeddingLossOptions:
    """What is learned beside the estimate of x0 in a space of token embeddings."""

    decoder_nll_weight: float = field(
        default=1.0, metadata=dict(help="weight of -log p(w | x0), which keeps embeddings apart", unit="factor")
    )
    terminal_weight: float = field(
        default=1.0,
        metadata=dict(help="weight of what the noisiest step leaves of x0, which keeps them small", unit="factor"),
    )
