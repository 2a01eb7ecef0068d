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
    eval_batch_size: int = field(
        default=32,
        metadata=dict(
            help="texts generated together; those of a denoiser at least --train_batch_size, unless --eval gives this",
            unit="texts",
        ),
    )
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


BLEU_TOKENIZERS = {"de": "intl", "zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # by language; of others 13a
OVERLAPS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "sacrebleu", "bertscore")
UTILITIES = (
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "sacrebleu",
    "diffuseq_bleu",
    "chrf",
    "exact_match",
    "bertscore",
)


@dataclass
class PairOptions:
    """Texts that belong to a source: how many are drawn, how one is chosen, by what they are judged."""

    seq2seq_candidates: int = field(
        default=5,
        metadata=dict(help="candidates per source, drawn in one batch; MBR decoding chooses", unit="candidates"),
    )
    mbr_utility: str | None = field(
        default=None,
        metadata=dict(
            help="what candidates agree by in MBR decoding; unset: sacrebleu (of a sentence) for a translation corpus, "
            "else rouge2",
            choices=UTILITIES,
        ),
    )
    bleu_tokenizer: str | None = field(
        default=None,
        metadata=dict(
            help="sacreBLEU's tokenizer; unset: that of the corpus's language, 13a where it names none",
            choices=("13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab", "flores101", "flores200"),
        ),
    )
    bertscore_model: str | None = field(
        default=None,
        metadata=dict(help="encoder for BERTScore, a local folder or a hub id; unset: BERTScore is left out"),
    )
    best_metric: str | None = field(
        default=None,
        metadata=dict(
            help="validation metric of the pairs by which best/ is kept; unset: sacrebleu for a translation corpus, "
            "else rougeL; mbr_ before it judges the chosen candidates instead of one sample",
            choices=OVERLAPS + tuple(f"mbr_{name}" for name in OVERLAPS),
        ),
    )
    newest_checkpoint: bool = field(
        default=False, metadata=dict(help="evaluate the newest checkpoint of a run of pairs instead of its best")
    )


@dataclass
class ClassOptions:
    """Which classes a class-conditional run is asked for, and who says what came out."""

    class_id: str | None = field(
        default=None,
        metadata=dict(
            help="sample this class, by number or name; all: each by itself; prior: as frequent as in training; "
            "unconditional: told none. Unset: prior, and at --eval and --eval_test each by itself as well"
        ),
    )
    classifier: str | None = field(
        default=None,
        metadata=dict(
            help="sequence classifier that judges whether samples are of their class, a local folder or a hub id; "
            "unset: a small one is trained on the corpus"
        ),
    )
