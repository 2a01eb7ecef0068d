"""What judges the texts of benchmarks/real_text.py: the same for every row.

    scorer     a pretrained causal language model: MAUVE and perplexity
    encoder    a pretrained sentence encoder: MAUVE
    own judge  a causal language model trained from scratch on the part `judge`, which no system sees: both
    counting   linear AUC, diversity, memorization, copies, lengths: no neural network

A judge that is a part of a system flatters it; its columns are marked in that row.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_text_corpus import SOURCE, Parts
from benchmarks.real_text_rows import ENCODER, LANGUAGE_MODEL
from dataset_utils.splits import Examples
from evaluation import classifiers, encoders, local_lm, scorers
from evaluation.fluency import perplexity
from evaluation.mauve import mauve
from evaluation.memorization import NgramIndex
from evaluation.optional import MissingPackage, optional_import
from evaluation.overlap import one_of_each
from evaluation.protocols import Result, compute_mauves, evaluate_pairs, evaluate_texts, over_seeds
from evaluation.score.scoring import SEEDS_FROM, draw_texts
from evaluation.two_sample import linear_auc
from utils.distributed import pick_device

SPLIT = "test"  # of the references, in the keys of metrics
OWN = "own_judge"  # prefix of the numbers of the judge that is trained here
# On 20,000 captions about eight minutes on two cores.
OWN_JUDGE = {"width": 192, "layers": 4, "heads": 4, "vocab_size": 4000, "max_length": 128, "lr": 3e-3, "batch_size": 32}
OWN_STEPS, OWN_PASSES = 3000, 5  # steps, and passes over its texts at most: a longer training would learn them by heart
ROLES = {LANGUAGE_MODEL: "scorer", ENCODER: "encoder"}  # part of a system -> the judge that it may be


def steps_of_judge(texts: int) -> int:
    """Training steps of the own judge on so many texts."""
    batch = int(OWN_JUDGE["batch_size"])
    return min(OWN_STEPS, max(1, OWN_PASSES * texts // batch))


class Judges:
    """Loads, or trains, all judges of a corpus, and scores sets of texts."""

    def __init__(
        self,
        root: Path,
        parts: Parts,
        scorer: str | None,
        encoder: str | None,
        log: Callable[[str], None],
        own_steps: int | None = None,
    ) -> None:
        """root: folder of the study, which keeps the judge that is trained and the features of references.

        own_steps: of the judge that is trained; 0: without one; None: by the number of its texts.
        """
        device, cache = pick_device("auto"), root / "references"
        self.parts, self.log = parts, log
        self.scorer = scorers.load(scorer, device=device) if scorer else None
        self.encoder = encoders.load(encoder, device=device) if encoder else None
        self.own = None
        texts = parts["judge"].texts
        own_steps = steps_of_judge(len(texts)) if own_steps is None else own_steps
        if own_steps:
            folder = local_lm.train_local(texts, root / OWN, device=device, progress=log, steps=own_steps, **OWN_JUDGE)
            self.own = scorers.load(str(folder), device=device)
        for judge in (self.scorer, self.encoder, self.own):
            if judge is not None:
                judge.cache_dir = cache
        self.index = NgramIndex(parts["train"].texts, cache)
        self.classifier = None
        if parts.class_names:
            judged, held_out = parts["judge"], parts["test"]
            self.classifier = classifiers.load(
                None,
                parts.class_names,
                texts=judged.texts,
                labels=judged.labels,
                held_out=(held_out.texts, held_out.labels or []),
                folder=root / "classifier",
            )

    # ---- one row -------------------------------------------------------------------------------------------------

    def score(
        self,
        texts: Sequence[Sequence[str]],
        seeds: int,
        labels: Sequence[int] | None = None,
        examples: Examples | None = None,
    ) -> dict[str, Any]:
        """Mean, deviation and values over seeds of every metric of a row.

        texts: one set for each seed, or one set, which is then compared with other references for each seed. labels:
        the classes asked for, of every text of a set; examples: the sources of every text, with their references.
        """
        results: list[Result] = []
        for i in range(seeds):
            seed, again = SEEDS_FROM + i, len(texts) == 1 and i > 0
            mine = list(texts[0 if len(texts) == 1 else i])
            real = self.references(len(mine), seed, examples)
            paired = examples is not None
            if again:
                found = results[0] | self._compare(mine, real, paired)
            else:
                found = self._score(mine, real, labels, examples)
            results.append(found)
            self.log(f"  seed {i + 1} of {seeds} judged")
        return over_seeds(results)

    def _score(
        self, texts: list[str], real: list[str], labels: Sequence[int] | None, examples: Examples | None
    ) -> Result:
        """Every number of a set of texts."""
        result = evaluate_texts(texts, {SPLIT: real}, self.index, self.scorer, encoder=self.encoder)
        if self.own is not None:
            of_own = perplexity(texts, self.own)
            result |= {f"{OWN}/corpus_perplexity": of_own["corpus_perplexity"]}
            result |= {f"{OWN}/mauve": mauve(texts, real, self.own).score}
        result |= lengths(texts)
        result["distinct"] = len(set(texts)) / len(texts)
        if labels is not None and self.classifier is not None:
            result["class_accuracy"] = self.classifier.accuracy(texts, labels)["accuracy"]
        if examples is not None:
            result |= self._of_sources(texts, examples) | linear_auc(texts, real, paired=True)
        return result

    def _compare(self, texts: list[str], real: list[str], paired: bool) -> Result:
        """The numbers that depend on the references. paired: text i and reference i have one source."""
        numbers: Result = dict(compute_mauves({SPLIT: (texts, real)}, self.scorer, self.encoder).numbers)
        if self.own is not None:
            numbers[f"{OWN}/mauve"] = mauve(texts, real, self.own).score
        return numbers | linear_auc(texts, real, paired=paired)

    def references(self, n: int, seed: int, examples: Examples | None = None) -> list[str]:
        """The real texts that n texts of a seed are compared with: of sources, one reference each."""
        if examples is not None:
            return one_of_each(examples.references[:n], seed)
        return draw_texts(self.parts[SPLIT].texts, n, seed)

    def _of_sources(self, texts: Sequence[str], examples: Examples) -> Result:
        pairs = evaluate_pairs([[text] for text in texts], examples.references, None, None)
        kept = ("sacrebleu", "rouge1", "rouge2", "rougeL")
        covered = [coverage(source, text) for source, text in zip(examples.sources, texts, strict=True)]
        found = [share for share in covered if share is not None]
        numbers = {f"pairs/{key}": pairs[key] for key in kept if key in pairs}
        return numbers | ({"pairs/coverage": statistics.fmean(found)} if found else {})

    # ---- the protocol --------------------------------------------------------------------------------------------

    def keys(self) -> dict[str, str]:
        """Role of a judge -> beginning of the keys of its MAUVE."""
        encoder = self.encoder.name if self.encoder is not None else ""
        if self.encoder is not None and self.scorer is not None and self.encoder.name == self.scorer.name:
            encoder += "-embeddings"
        return {"scorer": self.scorer.name if self.scorer is not None else "", "encoder": encoder}

    def protocol(self) -> dict[str, Any]:
        """Everything that the numbers depend on, but the rows."""
        from utils.run_folder import package_versions

        def facts(judge: Any) -> Any:
            return None if judge is None else {"name": judge.name, "fingerprint": judge.fingerprint}

        return {
            "parts": {name: len(split) for name, split in self.parts.splits.items()},
            "condition": self.parts.condition,
            "scorer": facts(self.scorer),
            "encoder": facts(self.encoder),
            OWN: facts(self.own),
            "classifier": None
            if self.classifier is None
            else {"accuracy on held-out texts": self._classifier_accuracy(), **self.classifier.protocol()},
            "versions": dict(package_versions()),
        }

    def describe(self, num_samples: int, seeds: int) -> str:
        """The protocol in a paragraph."""
        sizes = {name: len(split) for name, split in self.parts.splits.items()}
        named = {"language model": self.scorer, "encoder": self.encoder}
        given = ", ".join(f"{role} {judge.name}" for role, judge in named.items() if judge is not None)
        against = f"as many of {sizes[SPLIT]:,} held-out texts"
        if self.parts.condition == SOURCE:
            against = "one reference of each source, drawn for each seed (BLEU and ROUGE: all its references)"
        own = ""
        if self.own is not None:
            own = f"; own judge: a language model trained from scratch on {sizes['judge']:,} texts that no system sees"
        return (
            f"{num_samples:,} texts of each system and seed, {seeds} seeds (mean and deviation), against {against}; "
            f"{sizes['train']:,} training texts. Perplexity is pooled over tokens. "
            f"Judges: {given or 'no pretrained one'}{own}. linear AUC: how well a linear model of words and pairs of "
            "words tells samples from held-out texts, .5 for not at all."
        )

    def _classifier_accuracy(self) -> float:
        assert self.classifier is not None
        held_out = self.parts[SPLIT]
        return self.classifier.accuracy(held_out.texts, held_out.labels or [])["accuracy"]


def lengths(texts: Sequence[str]) -> dict[str, float]:
    """Mean and deviation of the number of words."""
    words = [len(text.split()) for text in texts]
    return {"words": statistics.fmean(words), "words_deviation": statistics.pstdev(words)}


_SLOT = re.compile(r"(\w[\w ]*)\[([^\]]+)\]")


def coverage(source: str, text: str) -> float | None:
    """The share of what a source asks for that its text says: of concepts their stems, of attributes names alone.

    E2E: the values of name and near, as written; others are paraphrased. CommonGen: a word with the stem of the concept
    (Porter), so that irregular forms do not count. None for a source of another form.
    """
    slots: Mapping[str, str] = dict(_SLOT.findall(source))
    if slots:
        wanted = [value for key, value in slots.items() if key.strip().lower() in ("name", "near")]
        return statistics.fmean(value.lower() in text.lower() for value in wanted) if wanted else None
    words = source.split()
    if not 1 <= len(words) <= 8:
        return None
    try:
        tokenizers = optional_import("rouge_score.tokenizers", "rouge-score", "the concepts of a text")
    except MissingPackage:
        return None
    stems = tokenizers.DefaultTokenizer(
        use_stemmer=True
    ).tokenize  # lower case; words of up to three letters as they are
    said = set(stems(text))
    return statistics.fmean(set(stems(word)) <= said for word in words)


def examples_of(parts: Parts, n: int) -> Examples | None:
    """The sources of the references, each with all its references, the first n; None for a corpus without sources."""
    return parts[SPLIT].examples(range(len(parts[SPLIT])), n) if parts.condition == SOURCE else None
