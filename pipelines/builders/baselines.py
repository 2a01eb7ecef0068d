"""Parts of the baselines' builders: the tokenizer of a model from scratch, and the folder base/ of a run.

base/ holds configuration and tokenizer, from which the model is built again before its weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latent_models.options import BaselineModelOptions
from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.training import train_tokenizer
from utils.errors import UserError, library_message

BASE = "base"  # folder in a run folder
TRAINED = ("word", "bpe")  # kinds of tokenizers that are trained on the corpus
_NAMES_AMONG = 20  # of so many texts one name of a class is added, so that a vocabulary of the commonest words has it


def make_tokenizer(options: BaselineModelOptions, texts: Sequence[str], class_names: Sequence[str]) -> Any:
    """The tokenizer of a model from scratch: trained on texts, with the names of classes, or loaded from a folder."""
    if options.tokenizer not in TRAINED:
        return load_tokenizer(options.tokenizer, options.max_seq_len, "--tokenizer")
    names = list(class_names) * (1 + len(texts) // _NAMES_AMONG)
    return train_tokenizer([*texts, *names], options.tokenizer, options.vocab_size, options.max_seq_len)


def largest_tokenizer(options: BaselineModelOptions) -> Any:
    """A tokenizer of the largest vocabulary, for a dry run, which reads no texts."""
    words = [f"word{i}" for i in range(options.vocab_size)]
    return train_tokenizer(words, "word", options.vocab_size, options.max_seq_len)


def save_base(model: Any, tokenizer: Any, run: Path) -> None:
    """Write configuration and tokenizer. model: of transformers."""
    model.config.save_pretrained(run / BASE)
    tokenizer.save_pretrained(run / BASE)


def read_base(run: Path, kind: Any) -> tuple[Any, Any]:
    """The model, with fresh weights, and the tokenizer. kind: an AutoModel class. UserError without the files."""
    import transformers

    folder = run / BASE
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no configuration and tokenizer ({library_message(error)}): the run folder is incomplete, "
            "so restore this folder, or train again"
        ) from error
    return kind.from_config(config, dtype=torch.float32), tokenizer
