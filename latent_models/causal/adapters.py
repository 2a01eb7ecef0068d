"""LoRA adapters in a language model: Hu et al. 2021, arXiv:2106.09685.

The wrappers of causal and of encoder-decoder models share this class, which trains adapters, merges and saves them.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.hub import quiet_transformers


class WithAdapters:
    """A wrapper of a model of transformers whose linear layers may have LoRA adapters."""

    model: Any  # of transformers
    tokenizer: Any
    has_adapters = False
    adapter_task = "CAUSAL_LM"  # as peft names it
    _tuner: Any = ()  # peft's, in a list: as an attribute it would be a module that is registered twice

    def train_all(self) -> None:
        """Let all weights train."""
        self.model.requires_grad_(True)

    def adapted_layers(self) -> str:
        """The layers that get adapters, as peft's target_modules: here all linear ones but the output layer."""
        return "all-linear"

    def add_adapters(self, rank: int, alpha: int) -> None:
        """Freeze the weights, and add LoRA adapters. Fresh adapters change nothing.

        Raises UserError without the package peft.
        """
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError:
            raise UserError("--lora_rank needs a package that is not installed: pip install peft") from None
        is_transposed = any(type(layer).__name__ == "Conv1D" for layer in self.model.modules())  # GPT-2's layers
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=self.adapted_layers(),
            fan_in_fan_out=is_transposed,
            task_type=self.adapter_task,
        )
        self._tuner = [LoraModel(self.model, config, "default")]
        self.has_adapters = True
        for layer in self.model.modules():  # adapters take inputs in the dtype they have: peft would cast them twice
            if hasattr(layer, "lora_A"):
                layer.cast_input_dtype_enabled = False

    def merged_model(self) -> Any:
        """A copy of the model of transformers, with the adapters merged into its weights."""
        return deepcopy(self._tuner[0]).merge_and_unload() if self.has_adapters else deepcopy(self.model)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write an ordinary Hugging Face folder of model and tokenizer, adapters merged."""
        model = self.merged_model() if self.has_adapters else self.model
        with quiet_transformers():
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
