"""How to sample, by one word: --preset. A table of flags; a flag that is typed goes before its preset, and a preset
before what a run was trained with.

What each is worth stands in benchmarks/records; benchmarks/quality_speed.py measures it for any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROWS: Mapping[str, Mapping[str, Any]] = {
    # stochastic and of second order, most steps where there is noise: 25 network calls
    "fast": {"sampler": "dpmpp_sde", "time_grid": "shifted", "sampling_timesteps": 25, "decoding": "greedy"},
    "balanced": {"sampler": "dpmpp_sde", "time_grid": "shifted", "sampling_timesteps": 50, "decoding": "greedy"},
    # the published setting
    "best": {"sampler": "ddpm", "time_grid": "uniform", "sampling_timesteps": 250, "decoding": "beam"},
}

# A run may have been trained with a shift or a respacing of its own: beside these the grid would not be the preset's.
PRESETS = {name: {**row, "grid_shift": None, "timestep_respacing": None} for name, row in _ROWS.items()}
