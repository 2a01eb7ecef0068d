"""What the names of metrics mean to a reader: a label, which values are good, and one line of explanation."""

from __future__ import annotations

import re
from dataclasses import dataclass

HIGHER, LOWER, LIKE_REAL = "higher is better", "lower is better", "best near real texts"


@dataclass(frozen=True)
class MetricName:
    label: str
    good: str = ""  # HIGHER, LOWER, LIKE_REAL, or nothing
    explanation: str = ""


# End of a key -> its name. The longest end that fits is taken.
NAMES = {
    "mauve": MetricName("MAUVE", HIGHER, "closeness of two sets of texts in the features of a language model, 0 to 1"),
    "perplexity": MetricName("Perplexity", LIKE_REAL, "of the scorer; far below that of real texts means dull ones"),
    "imauve": MetricName("iMAUVE", HIGHER, "MAUVE of texts decoded midway between texts; predicts that of samples"),
    "recovery": MetricName("Recovery from noise", HIGHER, "BLEU of texts decoded from noised latents, a mean"),
    "corpus_perplexity": MetricName("Perplexity per token", LIKE_REAL, "pooled over all tokens"),
    "unique_wordcount": MetricName("Distinct words", LIKE_REAL, "in all texts together"),
    "2gram_repitition": MetricName("Repeated 2-grams", LIKE_REAL, "share that occurred before in the set"),
    "3gram_repitition": MetricName("Repeated 3-grams", LIKE_REAL, "share that occurred before in the set"),
    "4gram_repitition": MetricName("Repeated 4-grams", LIKE_REAL, "share that occurred before in the set"),
    "diversity": MetricName("Diversity", LIKE_REAL, "product of the shares of 2-, 3- and 4-grams that are new"),
    "memorization": MetricName("Memorization", LIKE_REAL, "share of 4-grams that occur in the training texts"),
    "train_copy_rate": MetricName("Copies of training texts", LOWER, "share of samples that equal one"),
    "linear_auc": MetricName(
        "Linear AUC", LOWER, "how well a linear classifier tells samples from real texts; 0.5: not"
    ),
    "empty": MetricName("Empty samples", LOWER),
    "num_empty_resampled": MetricName("Empty, sampled again", LOWER),
    "label_accuracy": MetricName("Label accuracy", HIGHER, "share whose predicted class is the requested one"),
    "mean_class_accuracy": MetricName("Mean label accuracy", HIGHER, "averaged over classes"),
    "bleu": MetricName("BLEU", HIGHER),
    "sacrebleu": MetricName("sacreBLEU", HIGHER),
    "diffuseq_bleu": MetricName("BLEU of DiffuSeq", HIGHER),
    "exact_match": MetricName("Reconstructed exactly", HIGHER),
    "rouge1": MetricName("ROUGE-1", HIGHER),
    "rouge2": MetricName("ROUGE-2", HIGHER),
    "rougeL": MetricName("ROUGE-L", HIGHER),
    "rougeLsum": MetricName("ROUGE-Lsum", HIGHER),
    "bertscore": MetricName("BERTScore", HIGHER),
    "dist1": MetricName("Distinct words in a text", HIGHER),
    "self_bleu": MetricName("Self-BLEU of the candidates", LOWER),
    "div4": MetricName("Distinct 4-grams of the candidates", HIGHER),
    "distinct_candidates": MetricName("Distinct candidates", HIGHER),
    "denoise_texts_per_second": MetricName("Denoising, texts per second", HIGHER),
    "decode_texts_per_second": MetricName("Decoding, texts per second", HIGHER),
}
HEADLINES = ("mauve", "perplexity", "diversity", "memorization", "label_accuracy", "mean_class_accuracy",
             "sacrebleu", "rougeL", "bertscore", "exact_match")  # fmt: skip
_MAUVE = re.compile(r"(?P<model>.+)_(?P<split>val|test|train)_mauve")
_SPLITS = {"val": "validation texts", "test": "test texts", "train": "training texts"}


def find(key: str) -> tuple[str, MetricName]:
    """Return the end of the key by which its name was found, and the name; unknown keys keep their own."""
    for end in sorted(NAMES, key=len, reverse=True):
        if key == end or key.endswith(f"_{end}"):
            return end, NAMES[end]
    return "", MetricName(key)


def describe(key: str) -> MetricName:
    """The name of a key without its prefix: `local_lm_val_mauve` is MAUVE against validation texts, by local_lm."""
    end, name = find(key)
    if match := _MAUVE.fullmatch(key):
        label = f"MAUVE against {_SPLITS[match['split']]}"
        return MetricName(label, name.good, f"{name.explanation}; features of {match['model']}")
    rest = key[: len(key) - len(end)].strip("_") if end else ""
    return MetricName(f"{name.label} ({rest})" if rest else name.label, name.good, name.explanation)
