"""Flags of generation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys


@dataclass
class EvaluationOptions:
    eval: bool = flag(
        False, "evaluate --resume_dir on the validation split and stop", may_change="invocation", published=True
    )
    eval_test: bool = flag(
        False,
        "evaluate --resume_dir on the test split with seeds 42 to 46 and stop",
        may_change="invocation",
        published=True,
    )
    gen_data: bool = flag(
        False,
        "sample a labeled synthetic data set from the class-conditional run in --resume_dir with seeds 42 to 46, write "
        "it, and stop",
        may_change="invocation",
        published=True,
    )
    num_samples: int = flag(
        16, "texts to sample for an evaluation", unit="texts", at_least=1, may_change="both", published=True
    )
    eval_batch_size: int = flag(
        32,
        "texts per generation batch; with a denoiser raised to --train_batch_size, unless set at an evaluation",
        unit="texts",
        at_least=1,
        may_change="eval",
        published=True,
    )
    decoding: str = flag(
        "beam",
        "how the language model decodes latents: beam, nucleus or greedy; several joined by commas are evaluated one "
        "after the other",
        may_change="eval",
    )
    scorer: str | None = flag(
        None,
        "causal language model for perplexity and MAUVE, a local folder or a hub id (published figures: "
        "openai-community/gpt2-large); unset: at --eval and --eval_test smollm2-135m, if python -m "
        "latent_models.pretrained has made it, else, as with local_lm, a small one is trained on the corpus, not "
        "comparable to published figures",
        may_change="eval",
    )


@dataclass
class MauveOptions:
    mauve_encoder: str | None = flag(
        None,
        "encoder of sentences for MAUVE on embeddings, and for the similarity of texts to their decodings, a local "
        "folder (python -m latent_models.pretrained minilm-l6) or a hub id; unset: MAUVE by the scorer alone, "
        "similarity by minilm-l6 if it has been made, else by the latents",
    )


BLEU_TOKENIZERS = {"de": "intl", "zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # by language; else 13a
OVERLAPS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "sacrebleu", "bertscore")


@dataclass
class PairOptions:
    """Generation for source texts: number of candidates, choice among them, metrics."""

    seq2seq_candidates: int = flag(
        5,
        "candidates per source, drawn in one batch; MBR decoding selects one of them",
        unit="candidates",
        at_least=1,
        may_change="both",
        published=True,
    )
    mbr_utility: str | None = flag(
        None,
        "similarity of candidates in MBR decoding; unset: sacrebleu (of a sentence) for a translation corpus, "
        "else rouge2",
        choices=table_keys("evaluation.mbr", "UTILITIES"),
    )
    bleu_tokenizer: str | None = flag(
        None,
        "sacreBLEU's tokenizer; unset: that of the corpus's language, 13a where it names none",
        choices=("13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab", "flores101", "flores200"),
        config_only=True,
    )
    bertscore_model: str | None = flag(
        None, "encoder for BERTScore, a local folder or a hub id; unset: BERTScore is skipped", may_change="both"
    )
    newest_checkpoint: bool = flag(
        False,
        "evaluate the newest checkpoint of a run of pairs instead of its best; the same as --checkpoint newest",
        config_only=True,
    )


@dataclass
class ClassOptions:
    """Classes to sample, and the classifier that scores the samples."""

    class_id: str | None = flag(
        None,
        "sample this class, by number or name; all: each class separately; prior: classes sampled with their training "
        "frequencies; unconditional: no class. Unset: prior, and at --eval and --eval_test each class separately, too, "
        "if there are at most 20 and each has texts in both splits",
        may_change="both",
    )
    classifier: str | None = flag(
        None,
        "sequence classifier that predicts the classes of samples, a local folder or a hub id; "
        "unset: a small one is trained on the corpus",
        may_change="both",
    )
