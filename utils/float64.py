"""Sums in double precision where the device has it."""

from __future__ import annotations

from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in float64; in float32 on the GPU of an Apple computer, which has no float64."""
    return x.float() if x.device.type == "mps" else x.double()
