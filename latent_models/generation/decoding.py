"""Decoding strategies as data: arguments of transformers' generate.

`beam` and `nucleus` carry the published settings of the latent diffusion systems. `greedy` is plain arg-max decoding
without penalties: a latent already encodes the whole text, so search gains little, and greedy costs a tenth of it.
Missing arguments come from the model's own generation_config.json, as in the published systems; `greedy` sets all of
them, because BART's file sets beam search and forbids repeated trigrams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from latent_models.generation.options import TokenDecodingOptions
from utils.errors import UserError

DECODING: dict[str, dict[str, Any]] = {
    "beam": dict(do_sample=False, num_beams=4, no_repeat_ngram_size=3, repetition_penalty=1.2, min_length=5),
    "nucleus": dict(
        do_sample=True, top_p=0.95, num_beams=1, no_repeat_ngram_size=3, repetition_penalty=1.2, min_length=5
    ),
    "greedy": dict(
        do_sample=False, num_beams=1, no_repeat_ngram_size=0, repetition_penalty=1.0, min_length=0, early_stopping=False
    ),
}


# Of a decoder of latents (--decoder_model), and of the causal baseline. It knows the language, and latents decide most
# of a text, so that nothing keeps it from repeating itself but itself.
PLAIN: dict[str, Any] = dict(repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=0)
CAUSAL_DECODING: dict[str, dict[str, Any]] = {
    "beam": dict(do_sample=False, num_beams=4, **PLAIN),
    "nucleus": dict(do_sample=True, top_p=0.95, top_k=0, temperature=1.0, num_beams=1, **PLAIN),
    "greedy": dict(do_sample=False, num_beams=1, **PLAIN),
}

# The strategies that a flag of DecodingOptions has an effect on; a flag that is not here has one on all of them.
SEARCH, SAMPLING = ("beam",), ("nucleus",)
ONLY_WITH = {
    "num_beams": SEARCH,
    "length_penalty": SEARCH,
    "top_p": SAMPLING,
    "top_k": SAMPLING,
    "temperature": SAMPLING,
}


def given_settings(options: TokenDecodingOptions) -> dict[str, Any]:
    """The flags that differ from the published settings, for the protocol of an evaluation."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def decoding_settings(options: TokenDecodingOptions, causal: bool = False) -> dict[str, dict[str, Any]]:
    """The settings of every strategy, with those of the flags in place of its own.

    causal: of a causal language model, such as the decoder of a DecodedSpace.
    """
    given, found = given_settings(options), {}
    if "min_new_tokens" in given:
        given["min_length"] = given.pop("min_new_tokens") + 1  # transformers counts the start token
    for name, settings in (CAUSAL_DECODING if causal else DECODING).items():
        own = {key: value for key, value in given.items() if name in ONLY_WITH.get(key, DECODING)}
        found[name] = {**settings, **own}
    return found


def changed_settings(name: str, decoding: Mapping[str, Mapping[str, Any]], causal: bool = False) -> dict[str, Any]:
    """The settings of a strategy that differ from the published ones; causal: see decoding_settings."""
    own = (CAUSAL_DECODING if causal else DECODING)[name]
    return {key: value for key, value in decoding[name].items() if value != own.get(key)}


def check_decoding(names: Sequence[str], given: Mapping[str, Any], max_length: int) -> None:
    """UserError for a flag that has no effect on any of the strategies, and for flags that contradict each other.

    given: flags of DecodingOptions with their values. max_length: longest text in tokens.
    """
    chosen = ",".join(names)
    for flag, value in given.items():
        needed = ONLY_WITH.get(flag, tuple(DECODING))
        if not set(needed) & set(names):
            what = "searches with beams" if needed == SEARCH else "samples tokens"
            raise UserError(
                f"--{flag} {value} and --decoding {chosen} contradict each other, since only --decoding {needed[0]} "
                f"{what}: add --decoding {needed[0]}, or leave --{flag} out"
            )
    if given.get("num_beams") == 1 and "length_penalty" in given:
        raise UserError("--length_penalty compares beams, and --num_beams 1 leaves one: drop one of them")
    if given.get("min_new_tokens", 0) > max_length:
        raise UserError(
            f"--min_new_tokens {given['min_new_tokens']} is more than --max_seq_len {max_length}, where texts end: "
            "give less"
        )


def strategies(names: str) -> dict[str, dict[str, Any]]:
    """The strategies of a comma-separated list, in its order; UserError for an unknown one."""
    chosen = {}
    for name in (part.strip() for part in names.split(",")):
        if name not in DECODING:
            raise UserError(f"--decoding {name!r} is not a decoding strategy: choose from {', '.join(DECODING)}")
        chosen[name] = DECODING[name]
    return chosen


def one_strategy(name: str) -> str:
    """The name of a single strategy; UserError for several or an unknown one."""
    chosen = list(strategies(name))
    if len(chosen) > 1:
        raise UserError(f"--decoding {name} names {len(chosen)} strategies, and one is needed: give one")
    return chosen[0]
