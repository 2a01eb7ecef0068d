"""Tiny encoder-decoder language models with random weights, and their tokenizers, saved as ordinary folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "bart": dict(
        d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, decoder_start_token_id=2,
    ),
    "t5": dict(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2, decoder_start_token_id=0
    ),
}  # fmt: skip
SIZES["mt5"] = SIZES["t5"] | dict(tie_word_embeddings=False)  # as published
FAMILIES = tuple(SIZES)


def seq2seq_tokenizer(family: str, texts: Sequence[str]):
    """BART: <s> text </s>; T5 and mT5: text </s>, and an unknown word."""
    if family == "bart":
        from latent_models.tokenizers.training import train_tokenizer

        return train_tokenizer(list(texts), "bpe", 300, 64)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_seq2seq(folder: Path, family: str, texts: Sequence[str], std: float = 0.2, **sizes: Any) -> Path:
    """A folder with a model and a tokenizer of texts. std: of its weights, as large as those of trained ones, so that
    tokens differ in probability. sizes: in place of those of SIZES."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    tokenizer = seq2seq_tokenizer(family, texts)
    ids = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    extra = 0 if family == "bart" else 5  # rows that no token has, as published
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer) + extra, **ids, **{**SIZES[family], **sizes})
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
