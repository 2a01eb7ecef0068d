"""Corruption of the encoder's input in stage 0: masked spans, or a text of random tokens.

BART's text infilling (Lewis et al. 2020, arXiv:1910.13461, section 2.2) replaces a span of tokens by one mask. Here
each masked token keeps its position, which a small model learns far sooner, and many texts stay uncorrupted, since the
frozen model is mainly used to copy through its states. Random tokens can be predicted only by copying.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_spans(
    ids: Tensor, mask: Tensor, special: int, mask_id: int, share: float, mean_span: float, uniform: Tensor
) -> Tensor:
    """Mask `share` of the tokens, on average, in spans of geometric length.

    Whether a token is masked is a stationary Markov chain along the text: a span continues with probability
    1 - 1 / mean_span, and adjacent spans merge, so that masked runs are slightly longer.
    ids, mask: (B, T). special: ids below it are never masked. mean_span: in tokens, 1 or more. uniform: (2, B, T) in
    [0, 1).
    """
    stay = 1 - 1 / mean_span
    start = uniform[0] < share * (1 - stay) / (1 - share * stay) if share < 1 else torch.ones_like(mask)
    continues = uniform[1] < stay
    masked = torch.empty_like(start)
    masked[:, 0] = uniform[0, :, 0] < share
    for t in range(1, ids.shape[1]):
        masked[:, t] = start[:, t] | (masked[:, t - 1] & continues[:, t])
    return torch.where(masked & mask & (ids >= special), mask_id, ids)


def random_tokens(ids: Tensor, special: int, vocab_size: int, uniform: Tensor) -> Tensor:
    """Replace every ordinary token by a random one; length and special tokens stay. uniform: (B, T) in [0, 1)."""
    random = special + (uniform * (vocab_size - special)).long().clamp(max=vocab_size - special - 1)
    return torch.where(ids >= special, random, ids)
