"""Decoding strategies as data: arguments of transformers' generate.

`beam` and `nucleus` carry the published settings of the latent diffusion systems. `greedy` is plain arg-max decoding
without penalties: a latent already encodes the whole text, so search gains little, and greedy costs a tenth of it.
Missing arguments come from the model's own generation_config.json, as in the published systems; `greedy` sets all of
them, because BART's file sets beam search and forbids repeated trigrams.
"""

from __future__ import annotations

from typing import Any

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
