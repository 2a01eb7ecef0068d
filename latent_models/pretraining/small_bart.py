"""A small BART with random weights, sized by flags."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration

from latent_models.pretraining.options import PretrainingOptions
from utils.errors import UserError


def small_bart(options: PretrainingOptions, tokenizer: Any) -> BartForConditionalGeneration:
    """A BART of the given size for a tokenizer. UserError if the width is not divisible by the heads."""
    if options.d_model % options.heads:
        raise UserError(f"--d_model {options.d_model} is not divisible by --heads {options.heads}")
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=options.max_seq_len,
        d_model=options.d_model,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
        encoder_attention_heads=options.heads,
        decoder_attention_heads=options.heads,
        encoder_ffn_dim=4 * options.d_model,
        decoder_ffn_dim=4 * options.d_model,
        dropout=options.lm_dropout,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model = BartForConditionalGeneration(config)
    if options.pos_init == "sinusoidal":
        init_sinusoidal_positions(model)
    return model


@torch.no_grad()
def init_sinusoidal_positions(model: BartForConditionalGeneration) -> None:
    """Initialize the learned positions of encoder and decoder as the same sinusoids, scaled like the random ones.

    Copying pairs position i of the decoder with position i + 1 of the encoder. From random positions this
    is learned for each i separately; between sinusoids it is one rotation for all i (Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5). This helps on long texts; on short ones, neighbors are too similar at first.
    """
    for half in (model.model.encoder, model.model.decoder):
        table = half.embed_positions
        count, dim = len(table.weight) - table.offset, table.embedding_dim
        table.weight[table.offset :] = math.sqrt(2) * model.config.init_std * sinusoids(count, dim)


def sinusoids(count: int, dim: int) -> Tensor:
    """(count, dim): sines in the even channels, cosines in the odd ones, wavelengths from 2 pi to 10,000 * 2 pi."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2) / dim)
    phase = torch.arange(count)[:, None] * rates  # (count, ceil(dim / 2))
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)[:, :dim]
