"""Muon for hidden matrices and AdamW for all other parameters, as one optimizer with one state.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; scaled as in Liu et al. 2025, arXiv:2502.16982, so that
both use the learning rate and weight decay of AdamW.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import has_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a quintic, steepest at 0; singular values end between 0.7 and 1.2
ITERATIONS = 5
UPDATE_RMS = 0.2  # root mean square of an update per unit of learning rate, as AdamW's usually has

# Layers whose input or output is data rather than hidden states, by the last part of their module's name.
IO_LAYERS = ("input_proj", "output_proj", "lm_head", "output")


class Muon(torch.optim.Optimizer):
    """Groups with `muon: True` hold matrices (m, n) and are updated by Muon; the other groups by AdamW.

    momentum: Nesterov momentum of the matrices. betas, eps, fused, foreach: arguments of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
        foreach: bool | None = None,
    ) -> None:
        # the constructor of AdamW gives the defaults that its groups need in this version of torch
        probe = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr, betas, eps, weight_decay, fused=False)
        defaults = {**probe.defaults, "fused": fused, "foreach": foreach, "momentum": momentum, "muon": False}
        super().__init__(groups, defaults)
        self._adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr, betas, eps, weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon_update(group)
        # assigned at each step, since load_state_dict replaces the groups and the state
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _muon_update(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads = [p.grad for p in parameters]
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(parameters):
            by_shape[tuple(p.shape)].append(i)
        for (m, n), members in by_shape.items():  # matrices of one shape in one batch: few large products
            updates = newton_schulz(torch.stack([nesterov[i] for i in members]))
            scale = group["lr"] * UPDATE_RMS * math.sqrt(max(m, n))
            for i, update in zip(members, updates, strict=True):
                parameters[i].sub_(update, alpha=scale)


def newton_schulz(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Matrices (K, m, n) with all singular values brought near 1, by Newton-Schulz iterations.

    dtype: dtype of the iteration; the result has that of x. None: bfloat16 if the device has instructions for it
    (has_bf16), since the iteration tolerates its rounding errors; else float32.
    """
    if dtype is None:
        dtype = torch.bfloat16 if has_bf16(x.device) else torch.float32
    tall = x.shape[-2] > x.shape[-1]
    y = x.to(dtype).mT if tall else x.to(dtype)
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if tall else y).to(x.dtype)


def hidden_matrices(module: nn.Module) -> set[int]:
    """ids of the weights that Muon updates: all linear layers except input and output layers and tied embeddings."""
    embeddings = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    return {
        id(part.weight)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and name.rpartition(".")[2] not in IO_LAYERS
        and id(part.weight) not in embeddings
    }
