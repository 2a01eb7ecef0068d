"""A hash of 64-bit numbers."""

from __future__ import annotations

import numpy as np


def scramble(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer (Steele et al. 2014), a bijection of uint64 in which each bit affects all bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
