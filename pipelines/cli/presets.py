"""How to sample, by one word: --preset. A table of flags; a flag that is typed goes before its preset, and a preset
before what a run was trained with.

benchmarks/records holds their quality and speed; benchmarks/quality_speed.py measures them for any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A run may have been trained with a shift or a respacing of its own: beside these the grid would not be the preset's.
_PLAIN_GRID = {"grid_shift": None, "timestep_respacing": None}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # stochastic and of second order, most steps where there is noise: 25 network calls
    "fast": {
        "sampler": "dpmpp_sde", "time_grid": "shifted", "sampling_timesteps": 25, "decoding": "greedy", **_PLAIN_GRID
    },
    "balanced": {
        "sampler": "dpmpp_sde", "time_grid": "shifted", "sampling_timesteps": 50, "decoding": "greedy", **_PLAIN_GRID
    },
    # the published setting
    "best": {
        "sampler": "ddpm", "time_grid": "uniform", "sampling_timesteps": 250, "decoding": "beam", **_PLAIN_GRID
    },
}  # fmt: skip
