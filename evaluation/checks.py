"""Checks of a pretrained scorer or classifier: transformers silently initializes weights that a file lacks."""

from __future__ import annotations

from typing import Any

import torch

from utils.errors import UserError


def check_weights_complete(model: Any, missing: set[str], what: str, kind: str) -> None:
    """Raise UserError if a parameter of the model was not in its file. missing: the keys that from_pretrained reports.

    what: flag and name of the model; kind: what the model has to be. Both are for the message.
    """
    # only parameters count: tied ones, and buffers that old files lack, are reported as missing too
    lacking = sorted(missing & {name for name, _ in model.named_parameters()})
    if lacking:
        raise UserError(
            f"{what} is not a {kind}: its file lacks {len(lacking)} weights of one, such as {lacking[0]}; name another "
            "model"
        )


@torch.inference_mode()
def check_causal(model: Any, what: str) -> None:
    """Raise UserError if the logits of a position depend on later tokens: such a model has no perplexity."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[:, 1].float()
    if not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{what} is not a causal language model: its logits depend on later tokens; name a causal language model"
        )
