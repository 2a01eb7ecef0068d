"""The kind of decoder that a language model makes of latents: by prefix vectors, or by encoder memory."""

from __future__ import annotations

from pathlib import Path

from latent_models.causal.memory_decoder import MemoryDecoder
from latent_models.causal.prefix_decoder import PrefixDecoder
from utils.errors import is_of_a_library
from utils.hub import hub_kwargs, quiet_transformers

DECODERS: dict[bool, type[PrefixDecoder] | type[MemoryDecoder]] = {  # by is_encoder_decoder of the configuration
    False: PrefixDecoder,
    True: MemoryDecoder,
}


def decoder_class(name: str) -> type[PrefixDecoder] | type[MemoryDecoder]:
    """The kind of decoder of a language model, a folder or a hub id.

    A model whose configuration cannot be read is left to PrefixDecoder, which says what is wrong with it.
    """
    from transformers import AutoConfig

    where = {} if Path(name).is_dir() else hub_kwargs()
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        return DECODERS[False]
    return DECODERS[bool(getattr(config, "is_encoder_decoder", False))]
