"""Attention with padded masks in half precision: outputs and gradients are finite, and equal to float32.

The bias is that of model/attention, without dropout. cuDNN's attention gave nan here: a gradient is nan where a padded
query's logsumexp is below -88.7, at key lengths that are 64 modulo 128.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from model.attention import HEAD_DIM, attend, mask_bias
from utils.kernels import set_kernels
from utils.options import KernelOptions

LENGTHS = (40, 64, 65, 128, 192)
HEADS = 12
# largest difference from float32, of the largest value: some ten roundings of 8 and of 11 bits of mantissa
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005}


def run(setting: Setting, report: Report) -> None:
    kinds = next(f for f in fields(KernelOptions) if f.name == "attention").metadata["choices"]
    for kind in kinds:
        set_kernels(KernelOptions(attention=kind), setting.device)
        for dtype, tolerance in TOLERANCE.items():
            for length in LENGTHS:
                _check(setting, report, kind, dtype, length, tolerance)


def _check(setting: Setting, report: Report, kind: str, dtype: torch.dtype, length: int, tolerance: float) -> None:
    title = f"{kind} attention, {str(dtype).removeprefix('torch.')}, {length} positions"
    inputs, gradient, mask = _draw(setting, dtype, length)
    try:
        ours = _attend(inputs, gradient, mask, dtype)
        # as in training: no gradient comes from padding, whose weights differ between kernels
        of_text = _attend(inputs, gradient * mask[..., None], mask, dtype)
    except RuntimeError as error:
        report.check(title, False, str(error).splitlines()[0])
        return
    reference = _attend(inputs, gradient * mask[..., None], mask, torch.float32)
    finite = all(bool(x.isfinite().all()) for x in (*ours, *of_text))
    # the output at padding is not compared, since it is used nowhere
    pairs = [
        (of_text[0] * mask[..., None], reference[0] * mask[..., None]),
        *zip(of_text[1:], reference[1:], strict=True),
    ]
    largest = max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in pairs)
    report.check(
        title, finite and largest <= tolerance, f"finite: {finite}; difference {largest:.2g}, at most {tolerance}"
    )


def _draw(setting: Setting, dtype: torch.dtype, length: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values (B, H, L, 64), rounded to dtype; a gradient (B, L, H * 64); a mask (B, L)."""
    generator = torch.Generator().manual_seed(length)
    batch = setting.scale.attention_batch
    shape = (batch, HEADS, length, HEAD_DIM)
    inputs = [torch.randn(shape, generator=generator).to(setting.device, dtype) for _ in range(3)]
    gradient = torch.randn(batch, length, HEADS * HEAD_DIM, generator=generator).to(setting.device, dtype)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0], lengths[-1] = length, 1  # a text without padding, and one of a single token
    mask = torch.arange(length)[None, :] < lengths[:, None]
    return inputs, gradient, mask.to(setting.device)


def _attend(inputs: list[Tensor], gradient: Tensor, mask: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output (B, L, H * 64), and the gradients of queries, keys and values."""
    q, k, v = (x.to(dtype).detach().requires_grad_() for x in inputs)
    out = attend(q, k, v, mask_bias(mask, mask, dtype))
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), gradient.to(dtype))]
