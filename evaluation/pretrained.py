"""Loads the pretrained models that judge texts: scorers, encoders and classifiers, from a folder or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.checks import check_weights_complete
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs, quiet_transformers
from utils.local_models import check_intact


@dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer, as transformers loads them."""

    model: Any
    tokenizer: Any
    name: str  # that of the folder or hub id, for metric keys


def load_pretrained(
    auto_class: str,
    source: str | Path,
    *,
    what: str,
    flag: str,
    kind: str,
    unused: tuple[str, ...] = (),
    hint: str = "",
) -> Pretrained:
    """Load a model by a class of transformers such as "AutoModelForCausalLM", in float32, with its tokenizer.

    what: begins messages, as in "scorer"; flag: the flag that names the model; kind: what the model has to be, as in
    "causal language model". unused: beginnings of parameter names that may be absent. hint: end of messages.
    Raises UserError, in one line, whatever a library raises over the folder. No code of a folder is run.
    """
    import transformers

    path, named = Path(source), f"{what} {source}"
    if not path.is_dir() and (path.is_absolute() or str(source).startswith((".", "~"))):
        raise UserError(f"{named}: there is no such folder; {flag} takes a folder or a hub id of {_a(kind)}{hint}")
    record = check_intact(path, flag)
    options: dict[str, Any] = {"trust_remote_code": False} | ({} if path.is_dir() else hub_kwargs())
    try:
        with quiet_transformers():
            model, info = getattr(transformers, auto_class).from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(source), **options)
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        reason = library_message(error).split(". ")[0].rstrip(".")
        raise UserError(
            f"{named} cannot be loaded ({reason}): {flag} takes a local folder, or a hub id where the hub is "
            f"reachable, of {_a(kind)}{hint}"
        ) from error
    missing = {key for key in info["missing_keys"] if not key.startswith(unused)} if unused else info["missing_keys"]
    check_weights_complete(model, set(missing), named, kind)
    return Pretrained(model, tokenizer, record["name"] if record else str(source).rstrip("/").split("/")[-1])


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
