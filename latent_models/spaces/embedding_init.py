"""A space of token embeddings from flags: random vectors, or the input embeddings of a pretrained language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel

from latent_models.options import EmbeddingOptions
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.tokenizers.files import ALIASES
from utils.errors import UserError, one_line_text
from utils.hub import hub_kwargs


@torch.no_grad()
def input_embeddings(name: str, tokenizer: Any, flag: str = "--embedding_init") -> Tensor:
    """(V, d) vectors of the tokens of `tokenizer`, float32, from the model in a local folder or on the hub.

    tokenizer: that of the model. Errors: UserError where there is no such model, or its vocabulary is another one.
    """
    local = Path(name).is_dir()
    where: dict[str, Any] = {} if local else hub_kwargs()
    try:
        model = AutoModel.from_pretrained(
            ALIASES.get(name, name), trust_remote_code=False, dtype=torch.float32, **where
        )
        table = model.get_input_embeddings().weight
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        hint = "" if local else ": give a local folder, or a hub id where the hub can be reached"
        raise UserError(f"{flag} {name} cannot be read ({one_line_text(error)[:200]}){hint}") from error
    known, needed = len(table), max(tokenizer.get_vocab().values()) + 1
    if not known / 2 < needed <= known:
        raise UserError(
            f"{flag} {name} has {known} embeddings, but the tokenizer knows {needed} tokens: "
            "take the tokenizer of that model"
        )
    return table[:needed].clone()


def make_embedding_space(
    tokenizer: Any,
    options: EmbeddingOptions,
    max_seq_len: int,
    sigma_0: float = 0.0,
    *,
    trained_width: int | None = None,
) -> EmbeddingSpace:
    """The space of the flags, with weights of the moment.

    trained_width: `space.vectors.width` of a trained run whose weights are going to be filled in: then no language
    model is looked for, even where --embedding_init names one.
    """
    pretrained = None
    if options.embedding_init != "random":
        if trained_width is None:
            pretrained = input_embeddings(options.embedding_init, tokenizer)
        else:
            pretrained = torch.randn(max(tokenizer.get_vocab().values()) + 1, trained_width)
    return EmbeddingSpace(tokenizer, options, max_seq_len, sigma_0, pretrained)
