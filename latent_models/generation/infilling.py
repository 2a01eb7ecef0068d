"""Tokens for the blanks of given texts: beam search in which the given tokens are forced.

A decoder writes from left to right, so a blank is filled before the text behind it is read; but hypotheses are ranked
by the likelihood of everything so far, the given tokens included, and the best whole text wins. Each blank takes one
forward pass, since nothing has to be generated between blanks.
Shapes: B texts, T tokens, K beams, V words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from latent_models.language_models import LanguageModel

BEAMS = 4


def visible_tokens(tokenizer: Any, size: int) -> Tensor:
    """(size,) bool: the ids that can fill a blank: no special tokens, blanks alone, or parts of a character."""
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = tokenizer.batch_decode([[i] for i in ids])
    kept = [i for i, text in zip(ids, texts, strict=True) if i < size and text.strip() and "\ufffd" not in text]
    visible = torch.zeros(size, dtype=torch.bool)
    visible[kept] = True
    return visible


@torch.no_grad()
def fill_tokens(
    model: LanguageModel,
    states: Tensor,
    states_mask: Tensor | None,
    ids: Tensor,
    known: Tensor,
    lengths: Tensor,
    beams: int = BEAMS,
) -> Tensor:
    """ids (B, T) whose unknown positions hold the tokens that make the whole text likeliest.

    states: (B, S, d_lm), states_mask: (B, S) or None: what the decoder attends to. ids: (B, T), with special tokens and
    any ids at the blanks. known: (B, T) bool, False at the blanks. lengths: (B,) tokens of each text.
    """
    count, length = ids.shape
    rows, positions = torch.arange(count, device=ids.device), torch.arange(length, device=ids.device)
    blank = ~known & (positions < lengths[:, None])
    number = blank.sum(1)
    order = (blank.long() * (length - positions)).argsort(1, descending=True)  # (B, T), the blanks first, in order
    states = states.repeat_interleave(beams, 0)
    states_mask = None if states_mask is None else states_mask.repeat_interleave(beams, 0)
    sequences = ids[:, None].repeat(1, beams, 1)  # (B, K, T)
    alive = torch.zeros(count, beams, dtype=torch.bool, device=ids.device)
    alive[:, 0] = True  # all hypotheses are equal at first

    def read(until: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder states (B, K, T, d_lm), and the log-likelihood (B, K) of the tokens before `until` (B,)."""
        labels = sequences.flatten(0, 1)
        hidden = model.decoder_states(states, states_mask, labels)
        nll = model.token_nll(hidden, labels).view(count, beams, length)
        score = -nll.masked_fill(positions >= until[:, None, None], 0).sum(-1)
        return hidden.view(count, beams, length, -1), score.masked_fill(~alive, -torch.inf)

    visible: Tensor | None = None
    for k in range(int(number.max())):
        at = order[:, k]
        hidden, score = read(at)
        logits = model.logits_of_states(hidden[rows, :, at]).float()  # (B, K, V)
        if visible is None:
            visible = visible_tokens(model.tokenizer, logits.shape[-1]).to(ids.device)
        total = score[..., None] + logits.masked_fill(~visible, -torch.inf).log_softmax(-1)
        best, index = total.flatten(1).topk(beams)  # (B, K)
        chosen = sequences[rows[:, None], index // logits.shape[-1]]
        chosen[rows, :, at] = index % logits.shape[-1]
        open_rows = (k < number)[:, None]
        sequences = torch.where(open_rows[..., None], chosen, sequences)
        alive = torch.where(open_rows, best > -torch.inf, alive)
    _, score = read(lengths)
    return sequences[rows, score.argmax(1)]
