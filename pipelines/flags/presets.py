"""How to sample, by one word: --preset. A table of flags; a flag that is typed goes before its preset.

What each is worth stands in benchmarks/records; benchmarks/quality_speed.py measures it for any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # stochastic and of second order, most steps where there is noise: 25 network calls
    "fast": {"sampler": "dpmpp_sde", "time_grid": "shifted", "sampling_timesteps": 25, "decoding": "greedy"},
    "balanced": {"sampler": "dpmpp_sde", "time_grid": "shifted", "sampling_timesteps": 50, "decoding": "greedy"},
    # the published setting
    "best": {"sampler": "ddpm", "time_grid": "uniform", "sampling_timesteps": 250, "decoding": "beam"},
}
