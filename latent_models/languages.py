"""Language codes: how a model of many languages with one vocabulary (mBART) is told which of them a text is in.

Its tokenizer puts a code beside each text, and its decoder has to be given the same one:

    mBART-50    code text </s>    decoding starts with </s>, and its first token is forced to be the code
    mBART       text </s> code    decoding starts with the code

Liu et al. 2020, arXiv:2001.08210; Tang et al. 2020, arXiv:2008.00401. Which of the two a tokenizer follows is seen in
what it does, not in what it is called.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from utils.errors import UserError

FLAG = "--target_language"


class DecodingStart(NamedTuple):
    """What decoding in one language begins with; None: what the configuration of the model says."""

    start_id: int | None = None
    forced_bos_id: int | None = None


def codes(tokenizer: Any) -> list[str]:
    """The codes of a tokenizer that are in its vocabulary; empty where it has no languages."""
    known = getattr(tokenizer, "lang_code_to_id", None) or {}
    return sorted(code for code, number in known.items() if number not in (None, tokenizer.unk_token_id))


def resolve_language(tokenizer: Any, wanted: str | None, name: str, flag: str = FLAG) -> str | None:
    """The code of the language that is wanted, else the one that the tokenizer was saved with.

    wanted: a code (de_DE), its first part (de), or None. None is returned for a tokenizer without languages.
    UserError, in one line, where it does not know the language, or where nothing says which.
    """
    known = codes(tokenizer)
    if not known:
        return None
    # the class has English as its default, without a word; only what a file says counts
    wanted = wanted or tokenizer.init_kwargs.get("src_lang")
    if not wanted:
        raise UserError(
            f"{name} reads many languages, and nothing says which one the texts are in: give {flag}, one of "
            f"{', '.join(known)}"
        )
    wish = wanted.lower().replace("-", "_")
    found = [code for code in known if wish in (code.lower(), code.lower().partition("_")[0])]
    if not found:
        raise UserError(f"{name} does not know the language {wanted!r}: give {flag}, one of {', '.join(known)}")
    return found[0]


def set_language(tokenizer: Any, code: str) -> DecodingStart:
    """Have a tokenizer mark its texts with a code; how decoding in that language begins."""
    tokenizer.src_lang = tokenizer.tgt_lang = code
    number = tokenizer.lang_code_to_id[code]
    before_the_text = tokenizer("")["input_ids"][0] == number
    return DecodingStart(forced_bos_id=number) if before_the_text else DecodingStart(start_id=number)
