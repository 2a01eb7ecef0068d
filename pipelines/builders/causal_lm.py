"""The causal language model of the flags: new, or that of a run folder.

A run folder holds configuration and tokenizer in base/, and the trained weights in its checkpoints. With LoRA these are
the adapters alone, so the pretrained model is loaded from where the flags found it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latent_models.causal.model import CausalLM
from latent_models.causal.options import CausalModelOptions
from pipelines.builders.baselines import BASE, largest_tokenizer, read_base
from utils.checkpoints import fingerprint
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.seeding import derive_seed

FINGERPRINT = "base_fingerprint"  # of args.json
_BETWEEN = 4  # tokens between a prompt and its text, at most


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
    """The model of a run folder, before its weights are loaded. UserError if --model names another one by now."""
    adapted = options.model if options.lora_rank else None  # its weights are not in the run folder
    lm = _from_base(run) if adapted is None else CausalLM.from_pretrained(adapted)
    _prepare(lm, options, seed)
    expected = read_args(run).get(FINGERPRINT)
    if expected is not None and base_fingerprint(lm) != expected:
        raise UserError(
            f"--model {adapted} is not the model that {run} was trained with (its weights differ): name the folder of "
            "that one"
        )
    return lm


def base_fingerprint(lm: CausalLM) -> str | None:
    """A hash of the weights that adapters stand beside, which are not in the run folder; None without adapters."""
    frozen = {name: p for name, p in lm.named_parameters() if not p.requires_grad}
    return fingerprint(frozen) if frozen else None


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
            return _from_base(run)
        tokenizer = largest_tokenizer(options)
        return CausalLM.from_scratch(options, tokenizer, positions(options, longest_prompt), "the new model")


def _prepare(lm: CausalLM, options: CausalModelOptions, seed: int) -> None:
    limit = lm.max_length
    if limit is not None and options.max_seq_len > limit:
        raise UserError(
            f"--max_seq_len {options.max_seq_len} is more than the {limit} tokens of {lm.name}: give {limit} or less"
        )
    if options.lora_rank and options.model is not None:
        torch.manual_seed(derive_seed(seed, "adapters"))
        lm.add_adapters(options.lora_rank, options.lora_alpha)


def _from_base(run: Path) -> CausalLM:
    import transformers

    return CausalLM(*read_base(run, transformers.AutoModelForCausalLM), str(run / BASE))


def positions(options: CausalModelOptions, longest_prompt: int) -> int:
    """Tokens of the longest sequence of a model from scratch."""
    return options.max_seq_len + (longest_prompt + _BETWEEN if longest_prompt else 0)
