"""The causal language model of the flags: new, or that of a run folder.

A run folder holds configuration and tokenizer in base/, and the trained weights in its checkpoints. With LoRA these are
the adapters alone, so the pretrained model is loaded from where the flags found it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latent_models.causal.model import CausalLM
from latent_models.causal.options import CausalModelOptions
from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.training import train_tokenizer
from utils.errors import UserError, library_message
from utils.seeding import derive_seed

BASE = "base"  # folder in a run folder: configuration and tokenizer
TRAINED = ("word", "bpe")  # kinds of tokenizers that are trained on the corpus
_BETWEEN = 4  # tokens between a prompt and its text, at most
_NAMES_AMONG = 20  # of so many texts one name of a class is added, so that a vocabulary of the commonest words has it


def new_causal_lm(options: CausalModelOptions, tokenizer: Any, longest_prompt: int, seed: int) -> CausalLM:
    """A model to train: pretrained, also with fresh adapters, or from scratch.

    tokenizer: of a model from scratch, see make_tokenizer. longest_prompt: in tokens; such a model gets as many
    positions as the longest prompt and the longest text need.
    """
    if options.model is not None:
        lm = CausalLM.from_pretrained(options.model)
    else:
        torch.manual_seed(derive_seed(seed, "weights"))
        lm = CausalLM.from_scratch(options, tokenizer, positions(options, longest_prompt), "the new model")
    _prepare(lm, options, seed)
    return lm


def saved_causal_lm(options: CausalModelOptions, run: Path, seed: int) -> CausalLM:
    """The model of a run folder, before its weights are loaded."""
    if options.model is not None and options.lora_rank:
        lm = CausalLM.from_pretrained(options.model)
    else:
        lm = _from_base(run / BASE)
    _prepare(lm, options, seed)
    return lm


def meta_causal_lm(options: CausalModelOptions, run: Path | None, longest_prompt: int) -> CausalLM:
    """The model on the meta device, for a dry run: with the largest vocabulary. run: the folder of a trained run."""
    if options.model is not None:
        lm = CausalLM.from_pretrained(options.model, meta=True)
        if options.lora_rank:
            with torch.device("meta"):
                lm.add_adapters(options.lora_rank, options.lora_alpha)
        return lm
    with torch.device("meta"):
        if run is not None:
            return _from_base(run / BASE)
        words = [f"word{i}" for i in range(options.vocab_size)]
        tokenizer = train_tokenizer(words, "word", options.vocab_size, options.max_seq_len)
        return CausalLM.from_scratch(options, tokenizer, positions(options, longest_prompt), "the new model")


def save_base(lm: CausalLM, run: Path) -> None:
    """Write configuration and tokenizer, from which saved_causal_lm builds the model again."""
    lm.model.config.save_pretrained(run / BASE)
    lm.tokenizer.save_pretrained(run / BASE)


def _prepare(lm: CausalLM, options: CausalModelOptions, seed: int) -> None:
    limit = lm.max_length
    if limit is not None and options.max_seq_len > limit:
        raise UserError(
            f"--max_seq_len {options.max_seq_len} is more than the {limit} tokens of {lm.name}: give {limit} or less"
        )
    if options.lora_rank and options.model is not None:
        torch.manual_seed(derive_seed(seed, "adapters"))
        lm.add_adapters(options.lora_rank, options.lora_alpha)


def _from_base(folder: Path) -> CausalLM:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no configuration and tokenizer ({library_message(error)}): the run folder is incomplete, "
            "so restore this folder, or train again"
        ) from error
    return CausalLM(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, str(folder))


def positions(options: CausalModelOptions, longest_prompt: int) -> int:
    """Tokens of the longest sequence of a model from scratch."""
    return options.max_seq_len + (longest_prompt + _BETWEEN if longest_prompt else 0)


def make_tokenizer(options: CausalModelOptions, texts: Sequence[str], class_names: Sequence[str]) -> Any:
    """The tokenizer of a model from scratch: trained on texts, with the names of classes, or loaded from a folder."""
    if options.tokenizer not in TRAINED:
        return load_tokenizer(options.tokenizer, options.max_seq_len, "--tokenizer")
    names = list(class_names) * (1 + len(texts) // _NAMES_AMONG)
    return train_tokenizer([*texts, *names], options.tokenizer, options.vocab_size, options.max_seq_len)
