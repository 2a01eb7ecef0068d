"""The precision that a run computes in, where nobody gave --mixed_precision."""

from __future__ import annotations

import sys
from typing import Any

import torch

from utils import distributed
from utils.cli.args_io import PRECISION_CHOSEN
from utils.cli.settings import Settings
from utils.terminal import single_line

DEVICE = "device"  # source of --mixed_precision where the device chose it
_NAMES = {"bf16": "bfloat16", "no": "float32"}


def is_chosen(settings: Settings[Any]) -> bool:
    """Whether --mixed_precision was chosen by a device, of this invocation or of the training, and given by nobody."""
    source = settings.origins["mixed_precision"]
    return source == DEVICE or (source == "saved" and bool(settings.checkpoint_args.get(PRECISION_CHOSEN, False)))


def resolve_precision(settings: Settings[Any], device: torch.device) -> None:
    """Set --mixed_precision where nobody gave it: bf16 where the device computes it fast, else no.

    It is chosen anew where a trained run is used, since what another device chose may be slow here. Training that is
    resumed keeps its precision. One line on stderr, of rank 0, says bf16, and what differs from the training.
    """
    before, here = settings.get("mixed_precision"), "bf16" if distributed.has_bf16(device) else "no"
    if before is not None and not is_chosen(settings):
        return
    speed = "computes bfloat16 fast" if here == "bf16" else "has no fast bfloat16"
    if before is not None and settings.mode == "resume_training":
        if before != here:
            _say(
                f"training goes on with --mixed_precision {before}, which another device chose, and this one {speed}: "
                f"add --mixed_precision {here} for steps in {_NAMES[here]}"
            )
        return
    settings.set("mixed_precision", here, source=DEVICE)
    trained = settings.checkpoint_args.get("mixed_precision")
    if before is None and here == "bf16":
        _say("mixed precision in bfloat16, which this device computes fast; --mixed_precision no for float32")
    elif before not in (None, here) and here != trained:
        _say(
            f"{settings.get('resume_dir')} is used with --mixed_precision {here}, since this device {speed}; it was "
            f"trained with {trained}, which another device chose: add --mixed_precision {trained} for that"
        )


def _say(text: str) -> None:
    if distributed.current().is_main:
        print(single_line(f"note: {text}"), file=sys.stderr, flush=True)
