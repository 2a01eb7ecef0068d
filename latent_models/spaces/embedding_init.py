"""A space of token embeddings: random, or initialized from the input embeddings of a pretrained language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.options import EmbeddingOptions
from latent_models.tokenizers.files import ALIASES
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs


@torch.no_grad()
def input_embeddings(name: str, tokenizer: Any, flag: str = "--embedding_init") -> Tensor:
    """Input embeddings (V, d) of a model in a local folder or on the hub, float32, for the tokens of its tokenizer.

    Raises UserError if there is no such model, or where its vocabulary does not match the tokenizer.
    """
    local = Path(name).is_dir()
    where: dict[str, Any] = {} if local else hub_kwargs()
    try:
        model = AutoModel.from_pretrained(
            ALIASES.get(name, name), trust_remote_code=False, dtype=torch.float32, **where
        )
        table = model.get_input_embeddings().weight
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        hint = "" if local else ": give a local folder, or a hub id where the hub can be reached"
        raise UserError(f"{flag} {name} cannot be read ({library_message(error)}){hint}") from error
    known, needed = len(table), max(tokenizer.get_vocab().values()) + 1
    if not known / 2 < needed <= known:
        raise UserError(
            f"{flag} {name} has {known} embeddings, but the tokenizer has {needed} tokens: "
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
    """A space with initial weights.

    trained_width: `space.vectors.width` of a trained run whose weights will be loaded; then the language model of
    --embedding_init is not needed.
    """
    pretrained = None
    if options.embedding_init != "random":
        if trained_width is None:
            pretrained = input_embeddings(options.embedding_init, tokenizer)
        else:
            pretrained = torch.randn(max(tokenizer.get_vocab().values()) + 1, trained_width)
    return EmbeddingSpace(tokenizer, options, max_seq_len, sigma_0, pretrained)
