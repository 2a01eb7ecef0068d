"""Flags of generation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EvaluationOptions:
    eval: bool = field(default=False, metadata=dict(help="evaluate --resume_dir on the validation split and stop"))
    eval_test: bool = field(
        default=False, metadata=dict(help="evaluate --resume_dir on the test split with seeds 42 to 46 and stop")
    )
    gen_data: bool = field(
        default=False,
        metadata=dict(help="write a labelled synthetic data set from --resume_dir with seeds 42 to 46 and stop"),
    )
    num_samples: int = field(default=16, metadata=dict(help="texts to sample for an evaluation", unit="texts"))
    eval_batch_size: int = field(default=32, metadata=dict(help="texts generated together", unit="texts"))
    decoding: str = field(
        default="beam", metadata=dict(help="decoding strategies, joined by commas: beam, nucleus, greedy")
    )
    scorer: str | None = field(
        default=None,
        metadata=dict(
            help="causal language model for perplexity and MAUVE, a local folder or a hub id (published figures: "
            "openai-community/gpt2-large); unset: a small one is trained on the corpus, comparable to nothing published"
        ),
    )
    seq2seq_candidates: int = field(
        default=5,
        metadata=dict(
            help="candidates per source for MBR decoding; no effect until source texts can condition",
            unit="candidates",
        ),
    )
