from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation import hf_metrics
from evaluation.diversity import ngram_diversity
from evaluation.mauve import mauve
from evaluation.metrics import METRICS, PAIRS, SAMPLES, Metric
from evaluation.overlap import bleu
from evaluation.two_sample import linear_auc
from utils.errors import UserError


def test_metrics_have_the_interface_of_the_evaluate_library(scorer, stories):
    import evaluate

    metric = hf_metrics.load("diversity")
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=stories) == ngram_diversity(stories)
    assert hf_metrics.load("bleu").compute(predictions=stories[:5], references=stories[1:6])["bleu"] == bleu(
        stories[:5], stories[1:6]
    )
    assert hf_metrics.load("memorization").compute(predictions=stories[:2], training=stories)["train_copy_rate"] == 1
    found = hf_metrics.load("mauve", scorer=scorer).compute(predictions=stories[:40], references=stories[40:])
    assert found["mauve"] == mauve(stories[:40], stories[40:], scorer).score and found["buckets"] == 4
    assert hf_metrics.load("perplexity", scorer=scorer).compute(predictions=["", "Ann saw a dog."])["empty"] == 1


def test_every_metric_of_an_evaluation_has_one(scorer, monkeypatch):
    import evaluate

    for name in METRICS:
        assert isinstance(hf_metrics.load(name, scorer=scorer), evaluate.Metric)
    words = Metric(lambda c: {"words": sum(len(text.split()) for text in c.texts)}, (SAMPLES,))  # a new row
    close = Metric(lambda c: {"equal": float(c.texts == c.references)}, (PAIRS,), needs=("references",))
    first = Metric(lambda c: {"first": len(c.candidates or ())}, (PAIRS,), needs=("candidates",))
    for name, row in {"words": words, "close": close, "first": first}.items():
        monkeypatch.setitem(METRICS, name, row)
    assert hf_metrics.load("words").compute(predictions=["a b", "c"]) == {"words": 3}
    assert hf_metrics.load("close").compute(predictions=["a"], references=["a"]) == {"equal": 1}
    assert hf_metrics.load("first").compute(predictions=[["a", "b"], ["c", "d"]]) == {"first": 2}


# Each against its library, on the same texts; some are equal to a reference, one is empty.
PREDICTIONS = ["Ann saw a dog.", "Tom fed two small cats at home", "", "Eva drew a fox. Then Eva went home."]
REFERENCES = ["Ann saw a dog.", "Tom fed a cat", "Ben lost a hen.", "Eva drew the fox and went home."]


def compute(name, predictions=PREDICTIONS, references=REFERENCES, **options):
    given = {"references": references} if hf_metrics.HF_METRICS[name].references else {}
    models = {key: options.pop(key) for key in ("scorer", "encoder") if key in options}
    return hf_metrics.load(name, **models).compute(predictions=predictions, **given, **options)


def test_bleu_agrees_with_sacrebleu():
    import sacrebleu

    for name in ("bleu", "sacrebleu"):
        theirs = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score
        assert compute(name)[name] == pytest.approx(theirs)
    theirs = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, PREDICTIONS]).score
    several = [[r, p] for r, p in zip(REFERENCES, PREDICTIONS, strict=True)]
    assert compute("bleu", references=several)["bleu"] == pytest.approx(theirs) and theirs > 99
    theirs = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES], tokenize="char").score
    assert compute("sacrebleu", tokenizer="char")["sacrebleu"] == pytest.approx(theirs)


def test_rouge_agrees_with_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    for name, prefix, stem in (("rouge", "", False), ("stem_rouge", "stem_", True)):
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stem)
        each = [scorer.score(r, p) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
        theirs = {f"{prefix}{key}": sum(one[key].fmeasure for one in each) / 4 for key in each[0]}
        assert compute(name) == pytest.approx(theirs)
    best = [max(scorer.score(r, p)["rouge1"].fmeasure for p in (a, b)) for a, b, r in
            zip(PREDICTIONS, REFERENCES, REFERENCES, strict=True)]  # fmt: skip
    candidates = [list(pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert compute("oracle_rouge", candidates)["oracle_rouge1"] == pytest.approx(sum(best) / 4) == 1


def test_words_agree_with_scikit_learn(stories):
    from sklearn.feature_extraction.text import CountVectorizer

    theirs = len(CountVectorizer().fit(stories).vocabulary_)
    assert compute("unique_wordcount", stories)["unique_wordcount"] == theirs


def test_diffuseq_agrees_with_nltk():
    nltk = pytest.importorskip("nltk.translate.bleu_score", reason="nltk comes with rouge-score")
    smooth = nltk.SmoothingFunction().method4
    theirs = [
        nltk.sentence_bleu([r.split()], p.split(), smoothing_function=smooth)
        for p, r in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert compute("diffuseq")["diffuseq_bleu"] == pytest.approx(sum(theirs) / 4)


def test_self_bleu_agrees_with_sacrebleu(stories):
    from sacrebleu.metrics import BLEU

    texts, metric = stories[:8], BLEU(effective_order=True)
    theirs = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    assert compute("self_bleu", texts)["self_bleu"] == pytest.approx(sum(theirs) / 8)


def test_perplexity_agrees_with_the_loss_of_the_model(scorer, stories):
    theirs = []
    for text in stories[:5]:
        ids = torch.tensor([[scorer.start_id, *scorer.tokenizer(text)["input_ids"]]])
        with torch.inference_mode():
            theirs.append(scorer.model(input_ids=ids, labels=ids).loss.exp().item())
    found = compute("perplexity", stories[:5], scorer=scorer)
    assert found["perplexity"] == pytest.approx(sum(theirs) / 5, rel=1e-5)


def test_mauve_agrees_with_mauve_text(scorer, encoder, stories):
    from mauve import compute_mauve

    even, odd = stories[::2], stories[1::2]
    for name, key, model, scaling in (
        ("mauve", "mauve", scorer, 5), ("mauve_embeddings", "mauve_embeddings_tiny-bert", encoder, 8),
    ):  # fmt: skip
        theirs = compute_mauve(
            p_features=model.features(even), q_features=model.features(odd), mauve_scaling_factor=scaling, verbose=False
        )
        role = "scorer" if name == "mauve" else "encoder"
        found = compute(name, even, odd, **{role: model})
        assert found[key] == pytest.approx(min(float(theirs.mauve), 1)) and found["scaling"] == scaling
    assert compute("mauve", even[:30], odd, scorer=scorer)["n"] == 30  # sets of different sizes


def test_the_rest_agrees_with_its_definition(stories):
    assert compute("exact_match")["exact_match"] == 0.25
    assert compute("empty")["empty"] == 1
    assert compute("linear_auc", stories[:40], stories[40:]) == linear_auc(stories[:40], stories[40:])
    candidates = [["a b", "a b", "c"], ["a", "b", "c"]]
    assert compute("distinct_candidates", candidates)["distinct_candidates"] == pytest.approx((2 / 3 + 1) / 2)
    assert compute("candidate_diversity", [["a b c d e"] * 2])["div4"] == pytest.approx(0.5)
    chosen = compute("mbr", [["a b c d", "a b c d", "x y z"]], ["a b c d"])
    assert chosen["rouge1"] == 1 and chosen["sacrebleu"] == pytest.approx(100)


def test_an_unequal_number_of_references_is_refused():
    with pytest.raises(UserError, match="4 predictions for 3 references"):
        compute("rouge", references=REFERENCES[:3])


def test_an_unavailable_metric_raises_an_error_of_one_line(scorer):
    with pytest.raises(UserError, match="is not a metric"):
        hf_metrics.load("taste")
    with pytest.raises(UserError, match="needs a scorer"):
        hf_metrics.load("mauve")
    with pytest.raises(UserError, match="needs an encoder"):
        hf_metrics.load("mauve_embeddings", scorer=scorer)
    with pytest.raises(UserError, match="did you mean self_bleu"):
        hf_metrics.load("selfbleu")


def test_the_package_imports_no_heavy_library():
    root = Path(__file__).parents[2]
    modules = " ,".join(f"evaluation.{path.stem}" for path in (root / "evaluation").glob("[a-z]*.py"))
    code = (
        f"import sys, {modules}\n"
        "heavy = set(sys.modules) & set('evaluate datasets mauve spacy bert_score matplotlib wandb'.split())\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
