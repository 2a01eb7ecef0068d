"""Tokenizers that are trained by default bring texts back as they were, in every script."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_utils.round_trip import respell, round_trip
from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.from_flags import make_tokenizer
from latent_models.tokenizers.options import TokenizerOptions
from latent_models.tokenizers.training import KINDS, TokenizerTraining, train_tokenizer

CASES = Path(__file__).resolve().parents[1] / "cases"
ENGLISH = [
    "Don't go to the well-known café: 3.5 km, 1,000 m or 20-25 (of 2nd rank).",
    "in 1984. 5 people read b2b, 1, 2, 3 and 10 000 of v1.5.",
    "What? Yes; no... [sic] {x}!",
]
SCRIPTS = [
    "हिन्दी में लिखा हुआ वाक्य।", "かぎを持って家に帰る。", "「東京」へ行く、明日。", "Cậu bé đi đến trường học.",
    "мой край и твой йод", "소년은 아침에 학교에 갔다", "เด็กผู้ชาย ไปโรงเรียน", "ক্ষুদ্র বৃক্ষ", "می‌روم به خانه",
    "1️⃣ 2 👨‍👩‍👧 ok", "Ω and ﬁ", "two\nlines\tand a tab", "10\u00a0km, 10\u202fm", "學 校 12 34",
]  # fmt: skip


def texts_of(name: str) -> list[str]:
    lines = (CASES / name).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line] if name.endswith("jsonl") else [{"text": x} for x in lines if x]
    return [row[column] for row in rows for column in ("text", "source", "target") if column in row]


def default_tokenizer(texts, **options):
    return make_tokenizer(TokenizerOptions(**options), texts, 64)


@pytest.mark.parametrize("name", [
    "cased.jsonl", "pairs_russian.jsonl", "pairs_chinese.jsonl", "scripts.txt", "spaces_and_joiners.txt",
    "line_breaks.jsonl",
])  # fmt: skip
@pytest.mark.parametrize("kind", [*KINDS, "default"])
def test_every_case_comes_back_unchanged(kind, name):
    texts = texts_of(name)
    tokenizer = default_tokenizer(texts) if kind == "default" else train_tokenizer(texts, kind, 10_000, 64)
    found = round_trip(tokenizer, texts)
    assert found.is_exact, found.first_change


@pytest.mark.parametrize("text", [*ENGLISH, *SCRIPTS])
@pytest.mark.parametrize("individual_digits", [False, True])
def test_no_default_changes_a_letter(text, individual_digits):
    options = TokenizerTraining(2000, individual_digits=individual_digits)
    found = round_trip(train_tokenizer([text], "word", options, 64), [text])
    assert found.is_exact, found.first_change


@pytest.mark.parametrize("kind", ["word", "word-level"])
def test_words_are_composed(kind):
    text = "Cậu bé 한국 é"
    tokenizer = default_tokenizer([text])
    assert respell(tokenizer, [unicodedata.normalize("NFD", text)]) == [text]


def test_digits_of_numbers_stand_alone_and_words_with_digits_stay_whole():
    tokenizer = default_tokenizer(ENGLISH)
    assert tokenizer.tokenize("3.5 or 1,000 (of 20-25 1 2nd b2b") == (
        ["3", ".5", "or", "1", ",0", "0", "0", "(", "of", "2", "0", "-2", "5", " ", "1", " ", "2nd", "b2b"]
    )


def test_characters_of_scripts_without_blanks_are_tokens():
    tokenizer = default_tokenizer(texts_of("pairs_chinese.jsonl"))
    assert tokenizer.tokenize("我去学校。") == ["我", "去", "学", "校", "。"]
    assert round_trip(tokenizer, ["学校我去。"]).is_exact  # a sentence that is not in the corpus


def test_asking_for_fewer_letters_changes_latin_letters_only():
    text = "Café Việt мой かぎ हिन्दी 한국"
    tokenizer = default_tokenizer([text], vocab_lowercase=True, vocab_strip_accents=True)
    assert respell(tokenizer, [text]) == ["cafe viet мой かぎ हिन्दी 한국"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Cc", "Co"]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_a_second_round_trip_changes_nothing(text):
    for individual_digits in (False, True):
        options = TokenizerTraining(2000, individual_digits=individual_digits)
        tokenizer = train_tokenizer([text, "x"], "word", options, 64)
        once = respell(tokenizer, [text])
        # letters and digits survive, whatever becomes of blanks and signs; a form may be composed
        assert [c for c in once[0] if c.isalnum()] == [c for c in unicodedata.normalize("NFC", text) if c.isalnum()]


# ---- special tokens that a text spells ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_special_tokens_in_a_text_are_plain_text(kind, tmp_path):
    texts = texts_of("special_tokens.txt")
    made = train_tokenizer(texts, kind, 2000, 64)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, load_tokenizer(str(tmp_path), 64)):
        special = set(tokenizer.all_special_ids)
        for ids in tokenizer(texts[:20], add_special_tokens=False)["input_ids"]:
            assert special.isdisjoint(ids)
        found = round_trip(tokenizer, texts)
        assert found.num_special == found.num_unknown == 0
        after = respell(tokenizer, texts[:1])[0]
        assert after.replace(" ", "") == texts[0].replace(" ", "")
        assert found.is_exact == (KINDS[kind].train.__name__ == "subwords")


def test_special_tokens_that_a_word_list_cannot_spell_are_counted(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    found = round_trip(load_tokenizer(str(tmp_path / "vocab.txt"), 16), ["a b", "a [END] b", "b [PAD]"])
    assert (found.num_special, found.first_special_row) == (2, 1)
