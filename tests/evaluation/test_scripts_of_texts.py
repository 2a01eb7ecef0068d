"""Words of every script in every metric that splits texts: a text equals itself, whatever it is written in."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from evaluation import mbr
from evaluation.diffuseq import candidate_diversity, reference_scores, sentence_bleu4
from evaluation.diversity import ngram_diversity
from evaluation.local_classifier import load_local, train_local
from evaluation.memorization import memorization
from evaluation.overlap import (
    ROUGES,
    bertscore_each,  # noqa: F401 the import must stay cheap
    bleu,
    bleu_tokenizer_name,
    check_bleu_tokenizer,
    chrf,
    exact_match,
    rouge,
    rouge_each,
    self_bleu,
    sentence_bleu,
)
from evaluation.protocols import evaluate_pairs, evaluate_reconstruction
from evaluation.report import notes
from evaluation.text_tokens import tokens, unspaced_scripts, vocabulary, word_rule, words
from utils.errors import UserError

CASES = Path(__file__).resolve().parents[1] / "cases"
SENTENCES = {
    "Arabic": "ذهب الولد إلى المدرسة في الصباح",
    "Armenian": "Տղան առավոտյան գնաց դպրոց ուրախ",
    "Bengali": "ছেলেটি সকালে স্কুলে গিয়েছিল আজ",
    "Chinese": "我今天去学校。",
    "Emoji": "👍 🎉 👨‍👩‍👧 🇫🇷 ☀️",
    "Georgian": "ბიჭი დილით სკოლაში წავიდა დღეს",
    "Greek": "Το αγόρι πήγε στο σχολείο",
    "Hebrew": "הילד הלך לבית הספר בבוקר",
    "Hindi": "लड़का सुबह स्कूल गया था",
    "Japanese": "少年は朝、学校へ行った。",
    "Khmer": "ក្មេងប្រុសទៅសាលារៀន",
    "Korean": "소년은 아침에 학교에 갔다 오늘",
    "Lao": "ເດັກນ້ອຍໄປໂຮງຮຽນ",
    "Burmese": "ကောင်လေးကျောင်းသွားတယ်",
    "Persian": "پسر می‌رود به مدرسه صبح",
    "Russian": "Он утром купил новую книгу.",
    "Tamil": "சிறுவன் காலையில் பள்ளிக்குச் சென்றான் இன்று",
    "Thai": "เด็กผู้ชายไปโรงเรียน",
    "Tibetan": "བུ་ཆུང་སློབ་གྲྭར་སོང་།",
    "Vietnamese": "Cậu bé đi đến trường học",
}
LETTERS = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Lm", "Nd"]), min_size=1, max_size=12)


def targets(name: str) -> list[str]:
    return [json.loads(line)["target"] for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("script", SENTENCES)
def test_identical_texts_score_full_marks_and_other_texts_do_not(script):
    text = SENTENCES[script]
    other = " ".join(reversed(words(text)))
    scores = rouge_each(text, text)
    assert scores == dict.fromkeys(ROUGES, 1.0)
    assert rouge_each(text, "zzz")["rouge1"] == 0
    assert rouge_each(text, other)["rougeL"] < 1
    assert bleu([text], [text]) == pytest.approx(100) and sentence_bleu(text, text) == pytest.approx(100)
    assert sentence_bleu4(text, text) == pytest.approx(1)
    assert reference_scores([text], [text])["mean_length"] >= 4
    assert memorization([text], [text]) == {"memorization": 1.0, "train_copy_rate": 1.0}
    assert ngram_diversity([text, text])["4gram_repitition"] >= 0.5
    assert self_bleu([text, text]) == pytest.approx(100)
    assert script == "Emoji" or len(vocabulary([text])) >= 4


@pytest.mark.parametrize("name", ["pairs_russian.jsonl", "pairs_chinese.jsonl"])
def test_a_corpus_of_pairs_against_itself(name):
    texts = targets(name)
    assert rouge(texts, texts) == pytest.approx(dict.fromkeys(ROUGES, 1.0))
    assert bleu(texts, texts) == pytest.approx(100)
    assert bleu(texts, texts[1:] + texts[:1]) < 100
    found = evaluate_pairs([[text] * 2 for text in texts], texts, texts, None)
    assert found["rouge2"] == 1 and found["sacrebleu"] == pytest.approx(100) and found["mbr_ties"] == 0
    of_characters = name == "pairs_chinese.jsonl"
    assert found["protocol"]["words"] == ("words; characters of Han" if of_characters else "words")
    assert found["protocol"]["bleu_tokenizer"] == ("13a; characters of Han" if of_characters else "13a")
    assert evaluate_reconstruction(texts, texts)["bleu"] == pytest.approx(100)


@pytest.mark.parametrize("utility", ["rouge1", "rougeL", "sacrebleu", "diffuseq_bleu", "chrf"])
@pytest.mark.parametrize("script", ["Russian", "Chinese", "Thai", "Hindi", "Korean"])
def test_mbr_selects_the_candidate_that_agrees_with_the_others(script, utility):
    text = SENTENCES[script]
    row = ["zzz", text, text + " x", "x " + text]
    chosen = mbr.select([row], utility)
    assert chosen.texts[0] != "zzz" and chosen.tie_share == 0


def test_ties_of_mbr_are_counted_and_said():
    rows = [["a b", "c d", "e f"], ["a b c", "a b d", "x y z"], ["same"] * 3]
    assert mbr.select(rows, "rouge2").tie_share == pytest.approx(1 / 3)
    result = evaluate_pairs(rows[:1], ["a b"], [], None)
    assert result["mbr_ties"] == 1 and result["protocol"]["mbr_ties"] == 1
    assert any("100% of the sources differ" in note and "--mbr_utility" in note for note in notes(result))
    assert not any("MBR" in note for note in notes(evaluate_pairs(rows[1:2], ["a b c"], [], None)))


def test_the_rule_of_words_is_named():
    assert word_rule(["plain", "naïve", "Он"]) == "words"
    assert unspaced_scripts(["あア", "学校", "ไทย"]) == ["Han", "Hiragana", "Katakana", "Thai"]
    assert bleu_tokenizer_name("13a", ["学校"]) == "13a; characters of Han"
    assert bleu_tokenizer_name("zh", ["学校"]) == "zh"


def test_a_composed_and_a_decomposed_letter_are_one():
    text = "Cậu bé đi đến trường học"
    other = unicodedata.normalize("NFD", text)
    assert other != text
    assert rouge_each(text, other)["rougeLsum"] == 1 and bleu([text], [other]) == pytest.approx(100)
    assert exact_match([text], [other]) == 1 and memorization([text], [other])["train_copy_rate"] == 1
    assert sentence_bleu4(text, other) == pytest.approx(1) and chrf(text, other) == pytest.approx(100)


def test_joiners_and_marks_are_parts_of_words():
    assert words("می\u200cروم") == ["می\u200cروم"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("👍🏽 👨‍👩‍👧") == ["👍🏽", "👨‍👩‍👧"]
    assert words("ラーメン") == list("ラーメン")


def test_the_classifier_reads_words_of_every_script(tmp_path):
    texts = ["学校好", "学校美", "电影坏", "电影丑"] * 10
    labels = [0, 0, 1, 1] * 10
    folder = train_local(texts, labels, ["good", "bad"], tmp_path / "classifier")
    assert load_local(folder)(["我的学校", "他的电影"]).argmax(1).tolist() == [0, 1]


# ---- several references ------------------------------------------------------------------------------------------


def test_several_references_of_one_prediction():
    prediction, references = "the cat sat on the mat", ["a dog ran", "the cat sat on the mat"]
    assert bleu([prediction, "x"], [references, ["x"]]) == pytest.approx(100)
    expected = sacrebleu.corpus_bleu(["the cat sat", "x"], [["a dog ran", "x"], [prediction, None]]).score
    assert bleu(["the cat sat", "x"], [references, ["x"]]) == pytest.approx(expected)
    assert rouge([prediction], [references])["rouge2"] == 1
    assert rouge_each(prediction, references) == rouge_each(prediction, prediction)
    assert exact_match([prediction, "y"], [references, ["x", "z"]]) == 0.5
    assert sentence_bleu4(prediction, references) == pytest.approx(1)
    assert chrf(prediction, references) == pytest.approx(100)
    assert mbr.oracle([["a", prediction]], [references])["rouge1"] == 1
    assert evaluate_pairs([[prediction]], [references], [], None)["sacrebleu"] == pytest.approx(100)
    with pytest.raises(ValueError, match="no text"):
        bleu([prediction], [[]])


@given(st.lists(st.text("abc .\n", max_size=30), min_size=1, max_size=4), st.text("abc .\n", max_size=30))
@settings(max_examples=50, deadline=None)
def test_one_reference_in_a_list_is_that_reference(references, prediction):
    predictions = [prediction] * len(references)
    wrapped = [[reference] for reference in references]
    assert bleu(predictions, wrapped) == bleu(predictions, references)
    assert rouge(predictions, wrapped) == rouge(predictions, references)
    assert exact_match(predictions, wrapped) == exact_match(predictions, references)
    assert reference_scores(predictions, wrapped) == reference_scores(predictions, references)
    # more references never lower the best one
    assert rouge_each(prediction, references)["rouge1"] == max(rouge_each(prediction, r)["rouge1"] for r in references)


# ---- published numbers -------------------------------------------------------------------------------------------


@given(st.text(st.characters(max_codepoint=127), max_size=60), st.text(st.characters(max_codepoint=127), max_size=60))
@settings(max_examples=300, deadline=None)
def test_texts_in_ascii_have_the_published_words_and_scores(prediction, reference):
    for stem in (False, True):
        published = RougeScorer(list(ROUGES), use_stemmer=stem).score(reference, prediction)
        assert rouge_each(prediction, reference, stem=stem) == {k: published[k].fmeasure for k in ROUGES}
    assert sentence_bleu(prediction, reference) == sacrebleu.sentence_bleu(prediction, [reference]).score
    assert vocabulary([prediction]) == set(re.findall(r"(?u)\b\w\w+\b", prediction.lower()))
    # the rules of ASCII and of all scripts agree: a word of another script elsewhere in the text changes no word
    assert words(f"{prediction} \u044f") == [*words(prediction), "\u044f"]
    assert vocabulary([f"{prediction} \u044f\u044f"]) == vocabulary([prediction]) | {"\u044f\u044f"}


def test_spaced_scripts_keep_the_bleu_of_sacrebleu():
    generator = random.Random(0)
    texts = [text for name, text in SENTENCES.items() if not unspaced_scripts([text]) and name != "Emoji"]
    mixed = [" ".join(generator.sample(text.split(), len(text.split()) - 1)) for text in texts]
    assert bleu(mixed, texts) == sacrebleu.corpus_bleu(mixed, [texts]).score


@given(LETTERS)
@settings(max_examples=200, deadline=None)
def test_letters_and_digits_of_any_script_are_words(text):
    assert words(text)
    assert rouge_each(text, text)["rouge1"] == 1
    assert "".join(tokens(text)) and sentence_bleu4(text, text) > 0


def test_a_tokenizer_of_bleu_without_its_package_is_refused_in_one_line():
    try:
        check_bleu_tokenizer("ja-mecab")
    except UserError as error:
        assert "pip install 'sacrebleu[ja]'" in str(error) and "bleu_tokenizer=13a" in str(error)


def test_diversity_of_candidates_counts_characters():
    assert candidate_diversity([["我今天去学校", "我今天去学校"]])["div4"] == 0.5
