"""Averaged weights: an exponential moving average of what trains, for evaluation and sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

COPIED_UPDATES = 100  # until then the average is a plain copy: early weights are far from what they become
POWER = 3 / 4


def decay_at(update: int, cap: float = 0.9999) -> float:
    """Share that the old average keeps at update k = 1, 2, ...: 0 at first, then min(cap, 1 - (1 + (k - 101))^(-3/4)).

    Source: ema_pytorch 0.0.10 with power 3/4, inv_gamma 1, update_after_step 100.
    """
    age = update - COPIED_UPDATES - 1
    return 0.0 if age <= 0 else min(cap, 1 - (1 + age) ** -POWER)


class EMA:
    """The average of a module's trainable parameters and floating-point buffers, by name. Each rank keeps its own.

    Frozen parameters are left out: their average is themselves. decay: the cap. every: only each so many-th call of
    update() changes the average, while the decay counts all calls. together: all tensors in one kernel where the device
    has one, instead of one by one, to the same numbers.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999, every: int = 1, *, together: bool = True):
        self.decay, self.every, self.together = decay, every, together
        self.updates = 0
        self._module = module
        self._applied = False
        self.tensors = {name: x.detach().clone() for name, x in averaged(module).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the module's present weights. To be called once per optimizer step."""
        assert not self._applied, "the averaged weights are swapped in: training now would average the average"
        self.updates += 1
        if (self.updates - 1) % self.every:
            return
        old, new = self._pairs(self._module)
        decay = decay_at(self.updates, self.decay)
        if not self.together:
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
        """Take over saved averages, and how many updates they have seen."""
        missing, extra = self.tensors.keys() - tensors.keys(), tensors.keys() - self.tensors.keys()
        if missing or extra:
            wrong = sorted(missing or extra)[0]
            raise ValueError(
                f"the averaged weights {'lack' if missing else 'hold an unknown'} {wrong}: another model's?"
            )
        for name, x in self.tensors.items():
            if x.shape != tensors[name].shape:
                raise ValueError(
                    f"averaged {name} has shape {tuple(tensors[name].shape)}, but the model wants {tuple(x.shape)}"
                )
            x.copy_(tensors[name])
        if updates is not None:
            self.updates = updates

    @contextmanager
    def applied(self, module: nn.Module | None = None) -> Iterator[None]:
        """Within, the module (the averaged one, or one of the same names) holds the averaged weights."""
        averages, weights = self._pairs(module if module is not None else self._module)
        with torch.no_grad():
            # Copied, not exchanged: captured CUDA graphs and fused optimizers hold on to the addresses of weights.
            kept = [x.clone() for x in weights]
            torch._foreach_copy_(weights, averages)
        torch.clear_autocast_cache()  # it would go on with the weights as they were when it cast them
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
        # not averaged(module): at every step only the names that are known are looked up, which costs the host half
        present: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        assert present.keys() >= self.tensors.keys(), "the module has not the names that were averaged"
        return list(self.tensors.values()), [present[name] for name in self.tensors]


def averaged(module: nn.Module) -> dict[str, Tensor]:
    """What an EMA of the module holds: trainable parameters (tied ones once), and saved buffers of floats."""
    found: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    saved = module.state_dict(keep_vars=True).keys()
    found |= {name: b for name, b in module.named_buffers() if name in saved and b.is_floating_point()}
    return found
