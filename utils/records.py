"""Records of tensors that packages pass to each other: token batches, latents, conditions, known positions;
and copies of tensors between devices that do not block the host.

Shapes: B texts, T tokens, L latent positions, D channels of a latent, S source tokens, C channels of a source state.
Masks are boolean and True where there is text. Records are not changed in place; every method returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

PINNED_FROM = 2**16  # bytes; the CUDA driver copies smaller tensors at once


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """x on a device.

    To CUDA the host does not wait: large tensors go through pinned memory, since a copy from pageable memory starts
    only when the GPU has reached it. To the CPU it waits, because the values are read next. To other devices too: a
    non-blocking copy to MPS may read memory that has been reused (torch issue 189690).
    """
    kind = torch.device(device).type
    if kind == "cuda" and x.device.type == "cpu" and x.nbytes >= PINNED_FROM:
        x = x.pin_memory()
    return x.to(device, non_blocking=kind == "cuda")


class _Record:
    """Moves, slices and repeats every tensor of a dataclass along its first dimension."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """A copy with fn applied to every tensor that is not None."""
        values: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            values[f.name] = fn(value) if isinstance(value, Tensor) else value
        return type(self)(**values)

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda x: to_device(x, device))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return self.map(lambda x: x[rows])

    def repeat(self, times: int) -> Self:
        """Each row `times` times in a row: (B, ...) -> (B * times, ...), example-major."""
        return self.map(lambda x: x.repeat_interleave(times, dim=0))

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after the other. A field is None where it is in the first part."""
        columns = ([getattr(part, f.name) for part in parts] for f in fields(cls))  # type: ignore[arg-type]
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))

    def __len__(self) -> int:
        return next(len(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None)  # type: ignore[arg-type]


@dataclass
class Batch(_Record):
    """Token ids of texts, with their sources and classes."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool
    class_id: Tensor | None = None  # (B,) int64
    known_mask: Tensor | None = None  # (B, T) bool, True at known tokens: a source packed before the text
    prompt: Tensor | None = None  # as in Latents


@dataclass
class Latents(_Record):
    """Clean latents."""

    x0: Tensor  # (B, L, D)
    mask: Tensor  # (B, L) bool
    mean: Tensor | None = None  # (B, L, D), the noise-free embedding if x0 has noise added (sigma_0)
    prompt: Tensor | None = None  # (B, P) int64, tokens that a text decoder reads beside the latents; -1 before them


@dataclass
class Condition(_Record):
    """The condition of the denoiser: class and source. Where keep is False, the network uses its learned null."""

    class_id: Tensor | None = None  # (B,) int64
    keep_class: Tensor | None = None  # (B,) bool
    source: Tensor | None = None  # (B, S, C)
    source_mask: Tensor | None = None  # (B, S) bool
    keep_source: Tensor | None = None  # (B,) bool

    @classmethod
    def of(
        cls, class_id: Tensor | None = None, source: Tensor | None = None, source_mask: Tensor | None = None
    ) -> Condition:
        """A condition in which every row keeps its class and its source."""

        def all_kept(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else torch.ones(len(rows), dtype=torch.bool, device=rows.device)

        return cls(class_id, all_kept(class_id), source, source_mask, all_kept(source))

    def drop(
        self, class_uniform: Tensor | None, p_class: float, source_uniform: Tensor | None, p_source: float
    ) -> Condition:
        """Null each example's class with probability p_class and its source with p_source, independently.

        class_uniform, source_uniform: (B,) uniform in [0, 1), drawn by the caller for the global batch, so that the
        dropped rows do not depend on how the batch is split.
        """
        kept = replace(self)
        if self.keep_class is not None and class_uniform is not None:
            kept.keep_class = self.keep_class & (class_uniform >= p_class)
        if self.keep_source is not None and source_uniform is not None:
            kept.keep_source = self.keep_source & (source_uniform >= p_source)
        return kept

    def null(self) -> Condition:
        """The same condition with class and source of every row dropped."""
        return replace(
            self,
            keep_class=None if self.keep_class is None else torch.zeros_like(self.keep_class),
            keep_source=None if self.keep_source is None else torch.zeros_like(self.keep_source),
        )

    @staticmethod
    def stack(first: Condition, second: Condition) -> Condition:
        """Both conditions in one batch, (2B, ...): for classifier-free guidance in one forward pass."""
        joined: dict[str, Any] = {}
        for f in fields(Condition):
            a, b = getattr(first, f.name), getattr(second, f.name)
            if (a is None) != (b is None):
                raise ValueError(f"conditions to stack must have the same parts; only one of them has {f.name}")
            joined[f.name] = None if a is None else torch.cat([a, b])
        return Condition(**joined)


@dataclass
class KnownPositions(_Record):
    """Known positions, which stay clean while sampling: a source prefix, or the text around blanks."""

    value: Tensor  # (B, L, D)
    mask: Tensor  # (B, L) bool, True where the value is known
    null: Tensor | None = None  # (B, L, D), the value without the source; None: the network never trains without it
