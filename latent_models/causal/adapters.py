"""LoRA layers for training under autocast on a CPU, where products with a narrow matrix are slow in bfloat16.

(672, 576) x (576, 16) takes 7 ms of a core in bfloat16 and 1 ms in float32, the frozen (576, 1536) layer itself 12 ms:
adapters of rank 16 took longer than the layers that they adapt. Here their narrow products are in float32, where their
weights are too, and their sums are fused with those of the frozen layer.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor


class CpuLoraLinear(Linear):
    """peft's layer with another forward pass where autocast is on: x W^T + scale (x A^T) B^T."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kind = x.device.type
        names = self.active_adapters
        if (
            kind != "cpu"
            or not torch.is_autocast_enabled(kind)
            or self.merged
            or self.disable_adapters
            or len(names) != 1
        ):
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        name = names[0]
        weight = base.weight if self.fan_in_fan_out else base.weight.t()  # (d_in, d_out)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        flat = x.flatten(0, -2)
        dtype = torch.get_autocast_dtype(kind)
        made: Tensor = _AdaptedLinear.apply(flat, weight, base.bias, a, b, self.scaling[name], dtype)
        return made.unflatten(0, x.shape[:-1])


class _AdaptedLinear(torch.autograd.Function):
    """(N, d_in), (d_in, d_out), (d_out,), (r, d_in), (d_out, r) -> (N, d_out) in dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, half = weight.to(dtype), x.to(dtype)
            y = half @ weight if bias is None else torch.addmm(bias.to(dtype), half, weight)
            narrow = x.float() @ a.t()  # (N, r)
            y.addmm_(narrow.to(dtype), b.t().to(dtype), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # (N, d_out)
        x, weight, a, b, narrow = ctx.saved_tensors
        full = grad.float()
        of_narrow = ctx.scale * (full @ b)  # (N, r)
        of_b = ctx.scale * (full.t() @ narrow)
        of_a = of_narrow.t() @ x.float()
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight.t()).addmm_(of_narrow.to(grad.dtype), a.to(grad.dtype)).to(x.dtype)
        return of_x, None, None, of_a, of_b, None, None


def use_cpu_layers(model: torch.nn.Module) -> None:
    """Exchange the forward pass of all plain LoRA layers of a model."""
    for layer in model.modules():
        if type(layer) is Linear and not any(layer.use_dora.values()):
            layer.__class__ = CpuLoraLinear
