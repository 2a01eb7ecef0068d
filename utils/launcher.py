"""Settings of `accelerate launch` and `accelerate config`, which reach the programs as environment variables.

They replace defaults: a flag that is typed, in --config or saved with the run has precedence. Imports no torch.
"""

from __future__ import annotations

import os
from typing import Any

from utils.errors import UserError

PRECISIONS = ("no", "fp16", "bf16")
_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": ("FSDP", "choose plain multi-GPU there, and shard with --fsdp"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "choose plain multi-GPU there, and shard with --fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "choose plain multi-GPU there"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism configuration", "choose plain multi-GPU there"),
}


def launcher_defaults() -> dict[str, Any]:
    """Values by flag name: mixed_precision, device and compile, where accelerate was configured for other than its own.

    Raises UserError if accelerate is configured for a feature that these programs lack.
    """
    for name, (what, advice) in _UNSUPPORTED.items():
        if _is_on(name):
            raise UserError(f"accelerate is configured for {what}, which these programs do not use: {advice}")
    found: dict[str, Any] = {}
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in PRECISIONS:
        raise UserError(
            f"accelerate is configured for {precision}, and these programs compute in {', '.join(PRECISIONS)}: "
            "choose one of these there"
        )
    if precision != "no":
        found["mixed_precision"] = precision
    if _is_on("ACCELERATE_USE_CPU"):
        found["device"] = "cpu"
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() == "inductor":  # the backend that --compile uses
        found["compile"] = "on"
    return found


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "yes")
