"""EMA: the exponential moving average of trained weights, for evaluation and sampling.

accelerate has no EMA of this kind: its averages are torch's AveragedModel, a second module on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARMUP_UPDATES = 100  # until then the average is a plain copy, since early weights differ most from the final ones
POWER = 3 / 4


def decay_at(update: int, cap: float = 0.9999) -> float:
    """Weight of the old average at update k = 1, 2, ...: 0 at first, then min(cap, 1 - (1 + (k - 101))^(-3/4)).

    Source: ema_pytorch 0.0.10 with power 3/4, inv_gamma 1, update_after_step 100.
    """
    age = update - WARMUP_UPDATES - 1
    return 0.0 if age <= 0 else min(cap, 1 - (1 + age) ** -POWER)


class EMA:
    """The average of a module's trainable parameters and floating-point buffers, by name. Each rank keeps its own.

    Frozen parameters are left out. decay: the cap of decay_at. update_every: only every n-th call of update() changes
    the average, while the decay counts all calls. foreach: one kernel for all tensors instead of one for each, with
    bit-identical results.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999, update_every: int = 1, *, foreach: bool = True):
        self.decay, self.update_every, self.foreach = decay, update_every, foreach
        self.updates = 0
        self._module = module
        self._applied = False
        self.tensors = {name: x.detach().clone() for name, x in ema_tensors(module).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the module's current weights. Called once per optimizer step."""
        assert not self._applied, "the averaged weights are in the module: an update would average the average"
        self.updates += 1
        if (self.updates - 1) % self.update_every:
            return
        old, new = self._pairs(self._module)
        decay = decay_at(self.updates, self.decay)
        if not self.foreach:
            for average, x in zip(old, new, strict=True):
                average.copy_(x) if decay == 0 else average.lerp_(x, 1 - decay)
        elif decay == 0:
            torch._foreach_copy_(old, new)
        else:
            torch._foreach_lerp_(old, new, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], updates: int | None = None) -> None:
        """Load saved averages and their number of updates. ValueError if names or shapes differ."""
        missing, extra = self.tensors.keys() - tensors.keys(), tensors.keys() - self.tensors.keys()
        if missing or extra:
            wrong = sorted(missing or extra)[0]
            raise ValueError(
                f"the averaged weights {'lack' if missing else 'have an unknown'} {wrong}: they are of another model"
            )
        for name, x in self.tensors.items():
            if x.shape != tensors[name].shape:
                raise ValueError(
                    f"averaged {name} has shape {tuple(tensors[name].shape)}, but the model has {tuple(x.shape)}"
                )
            x.copy_(tensors[name])
        if updates is not None:
            self.updates = updates

    @contextmanager
    def applied(self, module: nn.Module | None = None) -> Iterator[None]:
        """Context manager: inside it the module has the averaged weights. module: None for the averaged module."""
        averages, weights = self._pairs(module if module is not None else self._module)
        with torch.no_grad():
            # Copied, not exchanged: captured CUDA graphs and fused optimizers keep the addresses of weights.
            kept = [x.clone() for x in weights]
            torch._foreach_copy_(weights, averages)
        torch.clear_autocast_cache()  # it holds casts of the previous weights
        self._applied = True
        try:
            yield
        finally:
            self._applied = False
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)
            torch.clear_autocast_cache()

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """(averages, the module's tensors), in one order."""
        # not ema_tensors(module): looking up only the known names takes half the host time, at each step
        present: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        assert present.keys() >= self.tensors.keys(), "the module lacks names that were averaged"
        return list(self.tensors.values()), [present[name] for name in self.tensors]


def ema_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that an EMA of the module averages: trainable parameters (tied ones once) and saved float buffers."""
    found: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    saved = module.state_dict(keep_vars=True).keys()
    found |= {name: b for name, b in module.named_buffers() if name in saved and b.is_floating_point()}
    return found
