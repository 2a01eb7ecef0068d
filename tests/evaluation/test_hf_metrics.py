from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import hf_metrics
from evaluation.diversity import ngram_diversity
from evaluation.mauve import mauve
from evaluation.overlap import bleu
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


def test_an_unavailable_metric_raises_an_error_of_one_line(scorer):
    with pytest.raises(UserError, match="is not a metric"):
        hf_metrics.load("taste")
    with pytest.raises(UserError, match="needs a scorer"):
        hf_metrics.load("mauve")


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
