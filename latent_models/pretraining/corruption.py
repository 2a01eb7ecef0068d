"""What stage 0 shows the encoder: the text with spans hidden, the plain text, or a drill of random tokens.

BART's text infilling (Lewis et al. 2020, arXiv:1910.13461, section 2.2) replaces a span of tokens by one mask. Here each
hidden token keeps its place, which a small model learns far sooner, and much of a batch stays clean: the frozen model
has to copy through its states above all. Drills, strings of random tokens, can be solved only by copying.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hide_spans(
    ids: Tensor, mask: Tensor, special: int, mask_id: int, share: float, mean_span: float, uniform: Tensor
) -> Tensor:
    """Hide about `share` of the tokens in spans of geometric length `mean_span`.

    ids, mask: (B, T). special: ids below it are never hidden. uniform: (2, B, T) in [0, 1).
    """
    start = uniform[0] < share / mean_span
    hidden = start
    for _ in range(2 * round(mean_span)):  # a span goes on with probability 1 - 1 / mean_span
        carried = torch.nn.functional.pad(hidden, (1, 0))[:, :-1]
        hidden = start | (carried & (uniform[1] < 1 - 1 / mean_span))
    return torch.where(hidden & mask & (ids >= special), mask_id, ids)


def drill(ids: Tensor, special: int, vocab_size: int, uniform: Tensor) -> Tensor:
    """Every ordinary token replaced by a random one; length and special tokens stay. uniform: (B, T) in [0, 1)."""
    random = special + (uniform * (vocab_size - special)).long().clamp(max=vocab_size - special - 1)
    return torch.where(ids >= special, random, ids)
