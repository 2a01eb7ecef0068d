"""What a tokenizer makes of texts: the share that comes back unchanged, and the first that does not."""

from __future__ import annotations

import unicodedata

import pytest

from dataset_utils.round_trip import format_round_trips, respell, round_trip, show_change
from latent_models.tokenizers.training import TokenizerTraining, train_tokenizer

CASED = ["Hugo left Cairo in the rain.", "Nora loves Quito. What a day!"] * 3


def tokenizer_of(texts, kind="word", **options):
    return train_tokenizer(texts, kind, TokenizerTraining(400, **options), 32)


@pytest.mark.parametrize("kind", ["word", "bpe", "word-level", "byte-level"])
def test_texts_that_come_back_unchanged(kind):
    found = round_trip(tokenizer_of(CASED, kind), CASED)
    assert (found.num_texts, found.num_unchanged, found.share, found.is_exact) == (6, 6, 1.0, True)
    assert found.first_change is None


def test_the_first_text_that_changes_is_kept_in_both_spellings():
    texts = ["all small .", *CASED]
    tokenizer = tokenizer_of(texts, lowercase=True)
    found = round_trip(tokenizer, texts)
    assert found.num_unchanged == 0
    assert found.first_change == ("all small .", "all small.") and found.first_row == 0
    assert respell(tokenizer, texts[1:2]) == ["hugo left cairo in the rain."]
    assert show_change(*round_trip(tokenizer, texts[1:]).first_change) == [
        "  before: Hugo left Cairo in the rain.", "  after:  hugo left cairo in the rain.",
    ]  # fmt: skip


def test_blanks_around_a_text_do_not_count():
    assert round_trip(tokenizer_of(CASED), [f"  {CASED[0]}\n"]).is_exact


def test_unknown_words_are_counted():
    found = round_trip(tokenizer_of(CASED), ["Hugo left Oslo.", *CASED])
    assert (found.num_unknown, found.first_change) == (1, ("Hugo left Oslo.", "Hugo left."))


def test_at_most_so_many_texts_are_measured_and_rows_are_those_of_all_texts():
    found = round_trip(tokenizer_of(CASED), CASED * 10 + ["Oslo"] * 60, max_texts=12)
    assert (found.num_texts, found.num_unchanged, found.first_row) == (12, 6, 60)
    assert round_trip(tokenizer_of(CASED), []).share == 1.0


def test_spellings_that_look_alike_are_shown_with_escapes():
    text = unicodedata.normalize("NFD", "caf\u00e9\u00a0x")
    tokenizer = tokenizer_of([text])
    result = round_trip(tokenizer, [text])
    assert not result.is_exact
    assert r"\u0301\xa0x" in show_change(*result.first_change)[0]


def test_what_is_shown_is_safe_for_a_terminal_and_short():
    before = "word " * 200 + "\x1b[31mRed " + "word " * 200
    shown = show_change(*round_trip(tokenizer_of([before], lowercase=True), [before]).first_change)
    assert all(line.isprintable() and len(line) < 200 for line in shown)
    assert "Red" in shown[0]


@pytest.mark.parametrize("kind", ["bpe", "byte-level"])
def test_special_tokens_that_a_text_spells_are_plain_text(kind):
    text = "before </s> then <unk> and <pad> <mask> <s> after"
    found = round_trip(tokenizer_of([text], kind), [text])
    assert found.is_exact and found.num_special == 0


def test_the_summary_names_shares_the_first_change_and_special_tokens():
    tokenizer = tokenizer_of(CASED, lowercase=True)
    good, bad = round_trip(tokenizer, ["hugo left cairo."]), round_trip(tokenizer, CASED)
    assert format_round_trips({"train": good.as_dict(), "valid": bad.as_dict()}) == [
        "the tokenizer brings back unchanged: train 100 %, valid 0 % (of at most 2,000 texts of a split)",
        "first text of valid that changes (number 1):",
        "  before: Hugo left Cairo in the rain.",
        "  after:  hugo left cairo in the rain.",
    ]
    spelled = {**good.as_dict(), "special_texts": 1, "first_special_row": 6, "measured": 100_000}
    assert format_round_trips({"test": spelled})[1] == (
        "warning: 0.01 % of the texts of test spell a special token, which the tokenizer cannot tell from that token "
        "(first: number 7): spell it otherwise in the file"
    )
