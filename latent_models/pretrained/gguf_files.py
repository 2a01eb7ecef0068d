"""A GGUF file of a language model of Llama's layout as a Hugging Face folder: float32 weights and a fast tokenizer.

transformers dequantizes the weights by the package gguf. Its version of the tokenizer lacks one step for this family:
SmolLM2 splits numbers into digits.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.errors import UserError

SEPARATOR = "<|endoftext|>"  # between documents in pretraining: begins and ends a text
SPLITS_DIGITS = ("smollm", "starcoder", "refact", "command-r")  # values of tokenizer.ggml.pre


def convert(package: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the only GGUF file in `package` to `folder`."""
    file = next(iter(sorted(package.glob("*.gguf"))))
    with redirect_stderr(StringIO()):  # a bar of two seconds
        model = AutoModelForCausalLM.from_pretrained(
            str(package), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    tokenizer = AutoTokenizer.from_pretrained(str(package), gguf_file=file.name, trust_remote_code=False)
    if SEPARATOR not in tokenizer.get_vocab():
        raise UserError(
            f"{file}: its vocabulary has no {SEPARATOR}, which separates texts: it is another kind of model"
        )
    _set_up_tokenizer(tokenizer, file)
    _plain_model(model, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _set_up_tokenizer(tokenizer: Any, file: Path) -> None:
    """Split digits where the file asks for it, and let texts begin and end with the separator."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in SPLITS_DIGITS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = SEPARATOR
    tokenizer.chat_template = None


def _plain_model(model: Any, tokenizer: Any) -> Any:
    """Return a model of the same weights whose configuration says nothing of quantization or chats."""
    config = model.config
    settings = config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):  # the name is that of an unfinished model
        settings.pop(name, None)
    settings["rms_norm_eps"] = float(f"{config.rms_norm_eps:.6g}")  # 1e-5, which the file holds as a float32
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings[role] = tokenizer.eos_token_id
    plain = AutoModelForCausalLM.from_config(type(config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain
