"""Flags of decoding: published settings without them, and one line where they contradict."""

from __future__ import annotations

import pytest

from latent_models.generation.decoding import DECODING, check_decoding, decoding_settings, given_settings
from latent_models.generation.options import DecodingOptions
from utils.errors import UserError


def test_without_flags_the_settings_are_the_published_ones():
    assert decoding_settings(DecodingOptions()) == DECODING
    assert given_settings(DecodingOptions()) == {}


def test_a_flag_changes_the_strategies_that_it_is_for():
    options = DecodingOptions(
        num_beams=8, top_p=0.5, top_k=0, temperature=0.7, no_repeat_ngram_size=0, min_new_tokens=9
    )
    found = decoding_settings(options)
    assert found["beam"] == {**DECODING["beam"], "num_beams": 8, "no_repeat_ngram_size": 0, "min_length": 10}
    assert found["nucleus"] == {
        **DECODING["nucleus"],
        "top_p": 0.5, "top_k": 0, "temperature": 0.7, "no_repeat_ngram_size": 0, "min_length": 10,
    }  # fmt: skip
    assert found["greedy"] == {**DECODING["greedy"], "min_length": 10}
    assert DECODING["beam"]["num_beams"] == 4, "the table is unchanged"


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (
            "beam",
            {"top_p": 0.9},
            "--top_p 0.9 and --decoding beam contradict .* only --decoding nucleus samples tokens",
        ),
        ("greedy", {"temperature": 2.0}, "add --decoding nucleus, or leave --temperature out"),
        ("nucleus", {"num_beams": 8}, "--num_beams 8 and --decoding nucleus contradict .* searches with beams"),
        ("greedy,nucleus", {"length_penalty": 2.0}, "--decoding greedy,nucleus contradict"),
        ("beam", {"num_beams": 1, "length_penalty": 2.0}, "--num_beams 1 leaves one"),
        ("greedy", {"min_new_tokens": 41}, "--min_new_tokens 41 is more than --max_seq_len 40"),
    ],
)
def test_contradictory_flags_are_refused(names, given, message):
    with pytest.raises(UserError, match=message) as error:
        check_decoding(names.split(","), given, 40)
    assert "\n" not in str(error.value)


def test_a_flag_for_one_of_several_strategies_is_accepted():
    check_decoding(["beam", "nucleus"], {"num_beams": 8, "top_p": 0.9, "min_new_tokens": 40}, 40)
