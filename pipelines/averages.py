"""Averages of the weights: those of --ema_decay and of --ema_decays, and which of them validation prefers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.rules import parse_decays
from pipelines.run_context import RunContext
from utils.cli.settings import Settings
from utils.ema import EMA
from utils.state import State


def make_averages(settings: Settings[DiffusionConfig], state: State) -> None:
    """Give a state averages that start from its weights as they are now."""
    options, foreach = settings.config.ema, not settings.config.optimizer.no_fused_optimizer

    def make(decay: float) -> EMA:
        return EMA(state.model, decay, options.ema_update_every, foreach=foreach)

    others = [decay for decay in parse_decays(options.ema_decays) if decay != options.ema_decay]
    state.ema, state.more_emas = make(options.ema_decay), {str(decay): make(decay) for decay in others}


def choose_average(run: RunContext[DiffusionConfig], state: State, losses: Mapping[str, float]) -> float:
    """Choose the average with the lowest validation loss, and return that loss. Says so when it is another one.

    All averages are measured on the same texts with the same noise, so that their differences are small but not noise.
    losses: of compute_validation_losses.
    """
    found = {name: losses[ema_loss(name)] for name in state.emas}
    chosen = min(found, key=lambda name: math.inf if math.isnan(found[name]) else found[name])
    if chosen != state.ema_chosen:
        values = ", ".join(f"{ema.decay:g} {found[name]:.4g}" for name, ema in state.emas.items())
        run.log(
            f"step {state.step}: of the averaged weights those of decay {state.emas[chosen].decay:g} are used from now "
            f"on (validation losses by decay: {values})"
        )
    state.ema_chosen = chosen
    return found[chosen]


def ema_loss(name: str | None) -> str:
    """The key of the validation loss of an average of State.emas."""
    return "val_ema_loss" if name is None else f"val_ema_loss_{name}"
