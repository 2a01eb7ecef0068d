"""How a language model writes ids: what makes it fast and changes no text. What it writes is decoding.py's.

Texts end at different lengths, and transformers computes a batch to the end of its longest. So a row that has ended
leaves the batch, with its place in the cache; beams cannot leave one by one, so texts of like lengths, where those are
known, are searched together; and a model that writes in bfloat16 holds its weights so, since autocast would convert
frozen ones anew for every token. And where something can guess the whole text, guesses are verified instead of writing
token after token. Each has its flag (WritingOptions).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from latent_models.options import WritingOptions
from latent_models.writing.buckets import buckets
from latent_models.writing.leaving import rows_that_leave
from latent_models.writing.verifying import Passes, Verified
from utils.errors import UserError
from utils.sharding import is_sharded

STEP_ROWS = {"cpu": 32}  # one step of decoding costs as much as so many rows in it, however few there are
STEP_ROWS_ELSEWHERE = 256
Draft = Callable[[Tensor], Tensor]  # states (B, S, d_lm) -> ids (B, T) that greedy decoding might write
Loop = Callable[..., Tensor]  # of `generate(custom_generate=...)`


class Writer:
    """Writes ids from encoder states, with any of the strategies."""

    def __init__(self, options: WritingOptions | None = None) -> None:
        self.options = options or WritingOptions()
        self.drafts = Passes()  # what verifying them has cost
        self._copy: tuple[Any, Any] | None = None  # what it was made of, and the model in bfloat16

    def write(
        self,
        model: Any,
        states: Tensor,
        mask: Tensor | None,
        decoding: dict[str, Any],
        draft: Draft | None = None,
    ) -> list[Tensor]:
        """Ids of each text, with special tokens and perhaps padding.

        states: (B, S, d_lm); mask: (B, S), None where all of them may be attended to. decoding: of transformers'
        generate. A strategy that samples is written in one batch, so that its texts stay those of its seed. draft: is
        asked where the strategy is greedy and mask is None.
        """
        device, autocast = states.device, torch.is_autocast_enabled(states.device.type)
        ragged = self.options.decoding_cache == "dynamic" and not self.options.whole_batches
        drafts = ragged and self.options.drafting == "auto" and mask is None and _greedy(decoding)
        drafted = draft(states) if drafts and draft is not None else None
        precision = self.options.decoding_precision
        if precision == "run" and autocast and torch.get_autocast_dtype(device.type) == torch.bfloat16:
            precision = "bf16"
        dtype, copied = None, precision == "bf16" and not is_sharded(model)
        if precision == "bf16" and not copied:  # pieces of weights cannot be copied
            dtype, autocast = torch.bfloat16, True
        with torch.autocast(device.type, dtype, enabled=autocast and precision != "fp32" and not copied):
            model = self._in_bfloat16(model) if copied else model
            states = states.to(model.dtype)
            written: list[Tensor | None] = [None] * len(states)
            for rows in self._buckets(states, mask, decoding) if ragged else [torch.arange(len(states))]:
                loop: Loop | None = None if drafted is None else Verified(drafted[rows.to(device)], self.drafts)
                some, seen = states[rows.to(device)], None if mask is None else mask[rows.to(device)]
                if seen is not None and ragged:
                    positions = torch.arange(1, seen.shape[1] + 1, device=device)
                    longest = max(1, int((seen.any(0) * positions).max()))
                    some, seen = some[:, :longest], seen[:, :longest]
                if loop is None and ragged and decoding.get("num_beams", 1) == 1:
                    loop = rows_that_leave
                for row, ids in zip(rows.tolist(), self._generate(model, some, seen, decoding, loop), strict=True):
                    written[row] = ids
        return [ids for ids in written if ids is not None]

    def passes(self) -> tuple[int, int]:
        """(passes, texts): how often drafts were verified since this was last asked, summed over so many texts."""
        drafts, self.drafts = self.drafts, Passes()
        return drafts.passes, drafts.texts

    def _generate(
        self,
        model: Any,
        states: Tensor,
        mask: Tensor | None,
        decoding: dict[str, Any],
        loop: Loop | None,
    ) -> Any:
        """Ids (B, T) of one batch. loop: in the place of transformers' own."""
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        how: dict[str, Any] = {}
        if loop is not None:
            how["custom_generate"] = loop
        elif self.options.decoding_cache == "static":
            how["cache_implementation"] = "static"
        return model.generate(
            # a fresh output each call: generate expands it in place for beams
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask.long(),
            **how,
            **decoding,
        )

    def _buckets(self, states: Tensor, mask: Tensor | None, decoding: dict[str, Any]) -> list[Tensor]:
        """Rows that are written together: all, but for beams of known lengths, which cannot leave one by one.

        Lengths of compressed texts are unknown: a greedy pass that asks for them costs what they save. Drafts tell
        them, but where drafts are worth little, every part would be written token by token by itself.
        """
        beams = decoding.get("num_beams", 1)
        if beams == 1 or mask is None or decoding.get("do_sample"):
            return [torch.arange(len(states))]
        return buckets(mask.sum(1).cpu(), STEP_ROWS.get(states.device.type, STEP_ROWS_ELSEWHERE) / beams)

    def _in_bfloat16(self, model: Any) -> Any:
        """A copy in bfloat16, made anew whenever the weights have changed, and filled anew where they train."""
        version = (model, [(id(p), p._version) for p in model.parameters()])
        if self._copy is None or self._copy[0] != version:
            self._copy = version, deepcopy(model).requires_grad_(False).to(torch.bfloat16).eval()
        elif any(p.requires_grad for p in model.parameters()):  # fused optimizers leave versions as they are
            with torch.no_grad():
                for own, p in zip(self._copy[1].parameters(), model.parameters(), strict=True):
                    own.copy_(p)
        return self._copy[1]


def _greedy(decoding: dict[str, Any]) -> bool:
    return decoding.get("num_beams", 1) == 1 and not decoding.get("do_sample", False)


def writer(options: WritingOptions, model: Any, name: str) -> Writer:
    """A writer for a model; UserError where transformers has no static cache for its family."""
    if options.decoding_cache == "static" and not getattr(model, "_can_compile_fullgraph", False):
        raise UserError(
            f"--decoding_cache static: transformers has no static cache for {name} ({model.config.model_type}): "
            "leave it out"
        )
    return Writer(options)
