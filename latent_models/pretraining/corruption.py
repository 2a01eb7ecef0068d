"""What stage 0 shows the encoder: the text with spans hidden, the plain text, or a drill of random tokens.

BART's text infilling (Lewis et al. 2020, arXiv:1910.13461, section 2.2) replaces a span of tokens by one mask. Here
each hidden token keeps its place, which a small model learns far sooner, and much of a batch stays clean: the frozen
model has to copy through its states above all. Drills, strings of random tokens, can be solved only by copying.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_spans(
    ids: Tensor, mask: Tensor, special: int, mask_id: int, share: float, mean_span: float, uniform: Tensor
) -> Tensor:
    """Hide `share` of the tokens, on average, in spans of geometric length.

    Along a text, whether a token is hidden is a Markov chain in its stationary state: a span that starts goes on with
    probability 1 - 1 / mean_span, and where two meet they become one, so that hidden runs are a little longer.
    ids, mask: (B, T). special: ids below it are never hidden. mean_span: in tokens, 1 or more. uniform: (2, B, T) in
    [0, 1).
    """
    on = 1 - 1 / mean_span
    start = uniform[0] < share * (1 - on) / (1 - share * on) if share < 1 else torch.ones_like(mask)
    goes_on = uniform[1] < on
    hidden = torch.empty_like(start)
    hidden[:, 0] = uniform[0, :, 0] < share
    for t in range(1, ids.shape[1]):
        hidden[:, t] = start[:, t] | (hidden[:, t - 1] & goes_on[:, t])
    return torch.where(hidden & mask & (ids >= special), mask_id, ids)


def random_tokens(ids: Tensor, special: int, vocab_size: int, uniform: Tensor) -> Tensor:
    """Every ordinary token replaced by a random one; length and special tokens stay. uniform: (B, T) in [0, 1)."""
    random = special + (uniform * (vocab_size - special)).long().clamp(max=vocab_size - special - 1)
    return torch.where(ids >= special, random, ids)
