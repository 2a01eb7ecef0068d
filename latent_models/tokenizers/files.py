"""Loading tokenizers: a Hugging Face folder or hub id, a file of the tokenizers library, or a word list."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from latent_models.tokenizers.special_ids import end_id
from latent_models.tokenizers.special_tokens import LAYOUTS, VOCABULARY_FILE, wrap_fast
from utils.errors import UserError, is_of_a_library, library_message, one_line_text
from utils.hub import hub_kwargs

ALIASES = {"bert": "bert-base-uncased"}  # the published spelling
SUBWORD_MARKS = ((r"(@@|__)( |$)", ""),)  # marks in word lists: the next token continues the word


def load_tokenizer(name: str, max_length: int, flag: str = "--vocab") -> PreTrainedTokenizerFast:
    """The tokenizer of a name, with padding and end tokens. max_length: in tokens.

    name: a folder that save_pretrained wrote, a hub id, a .json file of the tokenizers library, or any other file with
    one token per line. Raises UserError, in one line.
    """
    path = Path(name)
    if path.is_file():
        return from_json(path, max_length) if path.suffix == ".json" else from_word_list(path, max_length)
    tokenizer = _from_folder_or_hub(name, flag)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{flag} {name} has no fast tokenizer (tokenizer.json): save one with transformers first")
    for what, found in (("padding", tokenizer.pad_token_id), ("end", end_id(tokenizer))):
        if found is None:
            raise UserError(f"the tokenizer of {flag} {name} has no {what} token, which texts in embeddings need")
    # where the files of a tokenizer are absent, transformers silently makes one of a few special tokens
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids) + 1:
        raise UserError(f"{flag} {name} holds only special tokens: the files of its tokenizer are absent")
    tokenizer.model_max_length = max_length
    tokenizer.split_special_tokens = True  # "</s>" in a text is text
    return tokenizer


def _from_folder_or_hub(name: str, flag: str) -> Any:
    local = Path(name).is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"{flag} {name}: no such file or folder")
    try:
        where = {} if local else hub_kwargs()
        return AutoTokenizer.from_pretrained(ALIASES.get(name, name), trust_remote_code=False, **where)
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        if local or not isinstance(error, OSError):
            raise UserError(f"{flag} {name} holds no tokenizer that can be read: {library_message(error)}") from error
        raise UserError(
            f"{flag} {name} is neither a local file or folder nor in the local cache, and the hub cannot be reached or "
            "does not have it: give a local folder, or train one with python -m latent_models.tokenizers"
        ) from error


def from_json(path: Path, max_length: int) -> PreTrainedTokenizerFast:
    """A file of the tokenizers library, such as word-level-vocab.json; its special tokens determine its layout."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} is not a file of the tokenizers library: {one_line_text(error)}") from error
    layout = next(
        (row for row in LAYOUTS if all(tokenizer.token_to_id(token) is not None for token in row.tokens)), None
    )
    if layout is None:
        raise UserError(
            f"{path} lacks special tokens: it needs {' or '.join(', '.join(row.tokens) for row in LAYOUTS)}"
        )
    return wrap_fast(tokenizer, layout, max_length)


def from_word_list(path: Path, max_length: int) -> PreTrainedTokenizerFast:
    """One token per line, up to the first blank; ids 0 to 3 are [START], [END], [UNK], [PAD] whether listed or not.

    Texts are split at whitespace; decoding joins tokens that "@@" or "__" mark as pieces of one word.
    """
    ids = {token: i for i, token in enumerate(VOCABULARY_FILE.tokens)}
    try:
        # a mark at the beginning is no part of a token, and U+2028 and the like end no line
        lines = re.split(r"\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: give a file with one token per line") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        token = line.split(" ")[0].strip()
        if not token:
            continue
        if token in seen:
            raise UserError(f"{path}, line {number}: the token {one_line_text(token)!r} comes twice: remove the line")
        seen.add(token)
        ids.setdefault(token, len(ids))
    if len(ids) == len(VOCABULARY_FILE.tokens):
        raise UserError(f"{path} holds no tokens: give a file with one token per line")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=VOCABULARY_FILE.unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    joins = [decoders.Replace(Regex(pattern), content) for pattern, content in SUBWORD_MARKS]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="\0", cleanup=False), decoders.Fuse(), *joins])
    return wrap_fast(tokenizer, VOCABULARY_FILE, max_length)
