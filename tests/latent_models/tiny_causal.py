"""Tiny causal language models of three families with random weights, and their tokenizers of bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

SIZES = {
    "gpt2": dict(n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "llama": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
    "qwen2": dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32
    ),
}
FAMILIES = tuple(SIZES)


def byte_tokenizer(family: str, texts: Sequence[str]):
    """GPT-2 and Qwen: <|endoftext|> alone, which begins and ends; Llama: <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"] if family == "llama" else ["<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    roles = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>") if family == "llama" else {}
    if family == "gpt2":
        roles = dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    elif family == "qwen2":
        roles = dict(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def make_causal(folder: Path, family: str, texts: Sequence[str], std: float = 0.3, **sizes: int) -> Path:
    """A folder with a model and a tokenizer of texts. std: of its weights, as large as those of trained ones, so that
    tokens differ in probability. sizes: in place of those of SIZES."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer(family, texts)
    # more rows than tokens, as Qwen has
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer) + 5,
        bos_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        **{**SIZES[family], **sizes},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_special_tokens(folder: Path, target: Path, special: bool = True, **roles: str) -> Path:
    """A copy of a model's folder whose tokenizer has more tokens, <image0> to <image7>, than the model embeddings.

    special: whether they are special ones. roles: of tokens, such as pad_token="<image7>".
    """
    from transformers import AutoTokenizer

    shutil.copytree(folder, target)
    tokenizer, tokens = AutoTokenizer.from_pretrained(folder), [f"<image{i}>" for i in range(8)]
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    else:
        tokenizer.add_tokens(tokens)
    for role, token in roles.items():
        setattr(tokenizer, role, token)
    tokenizer.save_pretrained(target)
    return target
