from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from evaluation.diversity import ngram_diversity, unique_wordcount
from evaluation.fluency import perplexity
from evaluation.memorization import NgramIndex, memorization
from evaluation.text_tokens import ngrams, tokens, vocabulary


def test_vocabulary_is_that_of_scikit_learn(stories):
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [*stories, "I'm a CAT, a cat; don't e-mail 42 Ω naïve_x", ""]
    vectoriser = CountVectorizer().fit(texts)
    assert vocabulary(texts) == set(vectoriser.vocabulary_)
    assert unique_wordcount(texts) == {"unique_wordcount": len(vectoriser.vocabulary_)}


def test_words_equal_those_of_spacy():
    assert tokens("Don't go, Tom.") == ["Do", "n't", "go", ",", "Tom", "."]
    assert tokens("") == []


def test_ngrams():
    assert list(ngrams("abcd", 2)) == list(pairwise("abcd"))
    assert list(ngrams("ab", 3)) == []


def test_diversity_equals_the_value_computed_by_hand():
    # a b a b c | a b: bigrams ab ba ab bc ab: 3 of 5 new; trigrams aba bab abc: all 3; 4-grams abab babc: both
    found = ngram_diversity(["a b a b c", "a b"])
    assert found["2gram_repitition"] == pytest.approx(1 - 3 / 5)
    assert found["3gram_repitition"] == 0 and found["4gram_repitition"] == 0
    assert found["diversity"] == pytest.approx(3 / 5)


def test_diversity_of_copies_is_one_over_their_number_cubed():
    found = ngram_diversity(["a b c d e"] * 4)
    assert found["diversity"] == pytest.approx(4**-3)
    assert found["4gram_repitition"] == pytest.approx(3 / 4)


def test_diversity_ignores_empty_texts_and_is_defined_without_texts():
    assert ngram_diversity(["", "a b a b c", "a b", " "])["2gram_repitition"] == pytest.approx(2 / 5)
    assert all(math.isnan(value) for value in ngram_diversity(["", ""]).values())
    assert all(math.isnan(value) for value in ngram_diversity([]).values())
    assert unique_wordcount([]) == {"unique_wordcount": 0}


def test_memorization_equals_the_value_computed_by_hand():
    training = ["a b c d e", "f g h"]
    assert memorization(["a b c d"], training)["memorization"] == 1
    # b c d e is known, c d e x and d e x y are not
    assert memorization(["b c d e x y"], training)["memorization"] == pytest.approx(1 / 3)
    assert memorization(["d c b a"], training)["memorization"] == 0  # order counts
    # no 4-gram crosses from one training text to the next
    assert memorization(["d e f g"], training)["memorization"] == 0
    # every occurrence counts, pooled over texts: 1 of 1 and 0 of 2
    assert memorization(["a b c d", "v w x y z"], training)["memorization"] == pytest.approx(1 / 3)


def test_exact_copies_ignore_blanks_and_empty_texts():
    found = memorization(["f  g h ", "f g", "", "a b c d e"], ["a b c d e", "f g h", ""])
    assert found["train_copy_rate"] == pytest.approx(2 / 4)


def test_memorization_equals_sets_of_tuples():
    generator = np.random.default_rng(0)
    training, texts = ([" ".join(generator.choice(list("abc"), 9)) for _ in range(n)] for n in (20, 30))
    seen = {gram for text in training for gram in ngrams(text.split(), 4)}
    grams = [gram for text in texts for gram in ngrams(text.split(), 4)]
    expected = sum(gram in seen for gram in grams) / len(grams)
    assert 0.1 < expected < 1
    assert memorization(texts, NgramIndex(training))["memorization"] == pytest.approx(expected)


def test_memorization_is_defined_without_texts():
    assert math.isnan(memorization([], ["a b c d"])["memorization"])
    assert math.isnan(memorization([], [])["train_copy_rate"])
    found = memorization(["", "a b"], ["a b c d"])
    assert math.isnan(found["memorization"]) and found["train_copy_rate"] == 0
    assert memorization(["a b c d"], [])["memorization"] == 0
    assert memorization(["a b c d"], ["a b"])["memorization"] == 0


def test_metrics_use_the_ngram_index_of_their_context():
    memory = NgramIndex(["a b c d"])
    assert NgramIndex.from_texts(memory) is memory and memory.num_texts == 1


def test_perplexity_is_the_mean_over_texts(scorer):
    texts = ["Ann saw a dog.", "", "dog dog dog"]
    nll = scorer.nll(texts)
    each = [math.exp(nll.nll[i] / nll.tokens[i]) for i in (0, 2)]
    found = perplexity(texts, scorer)
    assert found["perplexity"] == pytest.approx(sum(each) / 2)
    assert found["corpus_perplexity"] == pytest.approx(
        math.exp((nll.nll[0] + nll.nll[2]) / (nll.tokens[0] + nll.tokens[2]))
    )
    assert found["empty"] == 1


def test_perplexity_is_defined_without_texts(scorer):
    assert perplexity(["", " "], scorer)["empty"] == 2
    assert math.isnan(perplexity(["", " "], scorer)["perplexity"])
    assert math.isnan(perplexity([], scorer)["corpus_perplexity"])
