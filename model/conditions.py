"""Inputs of a denoiser besides z_t: class, source text, self-conditioning. Each has a learned null,
which replaces it in the examples where it is dropped; shapes stay the same.

Shapes: B texts, S tokens, C channels of a source state, D width of the denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.records import Condition


def drop_to_null(tokens: Tensor, mask: Tensor, keep: Tensor | None, null: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of examples that keep their condition, the null token for the others.

    tokens: (B, S, D); mask: (B, S) bool; keep: (B,) bool, None for all; null: (1, D). Returns tokens and mask of the
    same shapes. The null token fills the row of a dropped example, but only its first copy is visible: it counts once,
    and the tokens of a dropped example do not reach padded queries, which attend to every key. An example without any
    token counts as dropped.
    """
    has_tokens = mask.any(dim=1)
    keep = has_tokens if keep is None else keep & has_tokens
    first = torch.arange(tokens.shape[1], device=tokens.device) == 0
    tokens = torch.where(keep[:, None, None], tokens, null.to(tokens.dtype))
    return tokens, torch.where(keep[:, None], mask, first)


def null_tokens(rows: int, null: Tensor) -> tuple[Tensor, Tensor]:
    """A memory of the null token alone: (B, 1, D) and its mask, all True."""
    return null.expand(rows, 1, -1), torch.ones(rows, 1, dtype=torch.bool, device=null.device)


def concat_self_cond(z: Tensor, x0_self_cond: Tensor | None, self_cond_mask: Tensor | None, start: Tensor) -> Tensor:
    """z and the estimate of self-conditioning, concatenated: (B, L, 2 d). Chen et al. 2022, arXiv:2208.04202.

    start: (1, d), replaces the estimate where there is none.
    Differs from the paper: a learned vector instead of zeros.
    """
    start = start.to(z.dtype)
    if x0_self_cond is None:
        previous = start.expand_as(z)
    elif self_cond_mask is None:
        previous = x0_self_cond
    else:
        previous = torch.where(self_cond_mask[:, None, None], x0_self_cond, start)
    return torch.cat([z, previous], dim=-1)


class ClassLabels(nn.Module):
    """Condition -> one vector per text. Row num_classes of the table is the null class."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.null = num_classes
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, condition: Condition | None, rows: int) -> Tensor:
        """Returns (B, D)."""
        label = torch.full((rows,), self.null, device=self.table.weight.device)
        if condition is not None and condition.class_id is not None:
            keep = condition.keep_class
            label = condition.class_id if keep is None else torch.where(keep, condition.class_id, label)
        return self.table(label)


class SourceTokens(nn.Module):
    """Condition -> memory tokens of the source: its encoder states, projected; the null token where there is none."""

    def __init__(self, source_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(source_dim, dim)
        self.null = nn.Parameter(torch.randn(1, dim))

    def forward(self, condition: Condition | None, rows: int) -> tuple[Tensor, Tensor]:
        """Returns tokens (B, S, D) and their mask (B, S); S is 1 without a source."""
        if condition is None or condition.source is None:
            return null_tokens(rows, self.null)
        source, mask = condition.source, condition.source_mask
        if mask is None:
            mask = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
        return drop_to_null(self.proj(source), mask, condition.keep_source, self.null)


def check_classes(class_conditional: bool, num_classes: int) -> int:
    """The number of classes of the network, 0 for an unconditional one. UserError if the corpus has none."""
    if class_conditional and num_classes < 1:
        raise UserError(
            "--class_conditional needs a corpus with class labels, and this one has none: "
            "use another --dataset_name, or omit the flag"
        )
    return num_classes if class_conditional else 0


def check_length(length: int, max_len: int) -> None:
    """UserError for a length beyond the position table."""
    if length > max_len:
        raise UserError(f"length {length} exceeds the denoiser's {max_len} positions: raise --max_seq_len")


def check_condition(condition: Condition | None, labels: nn.Module | None, source: nn.Module | None) -> None:
    """ValueError for a condition that the network does not support."""
    if condition is None:
        return
    if condition.class_id is not None and labels is None:
        raise ValueError("this denoiser was built without classes: train with --class_conditional to condition on them")
    if condition.source is not None and source is None:
        raise ValueError("this denoiser was built without a source: train on a corpus that has them")
