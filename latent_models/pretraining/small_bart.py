"""A small BART with random weights, sized by flags."""

from __future__ import annotations

from typing import Any

from transformers import BartConfig, BartForConditionalGeneration

from latent_models.options import PretrainingOptions
from utils.errors import UserError


def small_bart(options: PretrainingOptions, tokenizer: Any) -> BartForConditionalGeneration:
    """BART of the asked size around a tokenizer. UserError where the width cannot be split among the heads."""
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
    return BartForConditionalGeneration(config)
