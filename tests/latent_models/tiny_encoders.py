"""Tiny text encoders of several families with random weights, saved as ordinary folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

WIDTH, MAX_LENGTH = 16, 48
SIZES = {
    "bert": dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
    "roberta": dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
    "modernbert": dict(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, local_attention=8
    ),
    "t5": dict(d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2),
    "bart": dict(
        d_model=WIDTH, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32,
    ),
    "gpt2": dict(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=MAX_LENGTH),
    "llama": dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
}  # fmt: skip
FAMILIES = tuple(SIZES)
CAUSAL = ("gpt2", "llama")


def word_piece(texts: Sequence[str]):
    """A WordPiece tokenizer with [CLS] and [SEP], as BERT has."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=300, show_progress=False)
    around = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer._tokenizer.post_processor = BertProcessing(*around)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip


def byte_level(texts: Sequence[str], family: str):
    """A byte-level tokenizer: of GPT-2 and Llama without special tokens around a text, else with <s> and </s>."""
    if family not in CAUSAL:
        from latent_models.tokenizers.training import train_tokenizer

        return train_tokenizer(list(texts), "bpe", 300, MAX_LENGTH)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def make_encoder(family: str, folder: Path, texts: Sequence[str], head: bool = False) -> Path:
    """Write a model of a family with its tokenizer. head: with that of masked language models, as BERT is published."""
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    tokenizer = word_piece(texts) if family in ("bert", "modernbert") else byte_level(texts, family)
    ids = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    if family == "modernbert":
        ids |= dict(cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id)
    positions = {} if family in ("t5", "gpt2") else dict(max_position_embeddings=MAX_LENGTH + 2 * (family == "roberta"))
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **SIZES[family], **positions)
    torch.manual_seed(0)
    model = (AutoModelForMaskedLM if head else AutoModel).from_config(config)
    with torch.no_grad():  # weights as large as trained ones
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
