"""What a call of the pipeline returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from utils.records import Latents


@dataclass(eq=False)
class TextPipelineOutput(Sequence[str]):
    """Texts and their latents. It reads as the list of its texts: output[0], len(output), output == ["a", "b"].

    texts: n texts; empty where output_type="latent" asks for latents alone. latents: clean, normalized latents x0
    (n, L, D) with the mask (n, L) of their positions, as TextDiffusionPipeline.encode returns and decode takes them.
    """

    texts: list[str]
    latents: Latents = field(repr=False)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, TextPipelineOutput):
            other = other.texts
        return list(other) == self.texts if isinstance(other, list | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is mutable, as a list is

    def to_tuple(self) -> tuple[list[str], Latents]:
        """(texts, latents)."""
        return self.texts, self.latents
