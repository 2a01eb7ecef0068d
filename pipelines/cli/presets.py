"""Named settings for sampling (--preset): tables of flags.

A typed flag overrides the preset, and the preset overrides the values with which a run was trained.
benchmarks/records holds their quality and speed; benchmarks/quality_speed.py measures them for any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Reset the shift and the respacing of a trained run, which would change the grid of the preset.
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
