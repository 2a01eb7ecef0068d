"""Whether a pretrained judge is what it is taken for: transformers makes up weights that a file lacks, and goes on."""

from __future__ import annotations

from typing import Any

import torch

from utils.errors import UserError


def check_weights_complete(model: Any, missing: set[str], what: str, kind: str) -> None:
    """UserError where a model has parameters that its file lacks. missing: those that from_pretrained reports.

    what: flag and name, for the message; kind: what the model was to be.
    """
    # keyed by parameters: tied ones, and buffers that old files lack, are reported too
    lacking = sorted(missing & {name for name, _ in model.named_parameters()})
    if lacking:
        raise UserError(
            f"{what} is no {kind}: its file lacks {len(lacking)} weights of one, such as {lacking[0]}; name another"
        )


@torch.inference_mode()
def check_causal(model: Any, what: str) -> None:
    """UserError where what a model says of a token depends on later ones: it is not causal, and scores nothing."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[:, 1].float()
    if not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4):
        raise UserError(f"{what} is no causal language model: it sees the words that it is to foretell; name another")
