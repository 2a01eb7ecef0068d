"""Attention in torch's fused kernel, as matrix products, and as `auto` chooses: milliseconds by shape, on this CPU.

    python benchmarks/attention_kernels.py [--threads 2] [--dtypes bfloat16,float32] [--rounds 7]

Shapes: texts x heads x queries x keys x size of a head, with and without the backward pass. The last column is the time
of `auto` in units of the faster kernel. utils/kernels holds the rule.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import attend_by_products
from utils.argparse_utils import OneLineParser
from utils.errors import exit_on_user_error
from utils.kernels import by_products

SHAPES = {  # (texts, heads, queries, keys, head): of what
    (64, 3, 8, 8, 64): "denoiser of the quickstart",
    (128, 12, 32, 32, 64): "denoiser of the paper",
    (32, 2, 8, 48, 64): "autoencoder, small",
    (64, 12, 32, 96, 64): "autoencoder of the paper",
    (64, 4, 32, 32, 32): "language model of the quickstart",
    (64, 12, 64, 64, 64): "BART-base",
    (250, 4, 1, 8, 32): "decoding, states of the encoder",
    (250, 4, 1, 32, 32): "decoding, tokens so far",
    (1000, 4, 1, 32, 32): "decoding, four beams",
    (1, 2, 8, 8, 64): "one text",
}
SCORES = 2e6  # in one measurement, at least


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def measure(attention: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, backward: bool) -> float:
    """Milliseconds of one call, the mean of several."""
    rows, heads, queries, keys, width = shape

    def states(length: int) -> Tensor:  # heads of one projection, as models make them
        x = torch.randn(rows, length, heads, width).to(dtype).requires_grad_(backward)
        return x.transpose(1, 2)

    q, k, v = states(queries), states(keys), states(keys)
    calls = max(1, round(SCORES / (rows * heads * queries * keys)))
    for warm in (True, False):
        began = time.perf_counter()
        for _ in range(1 if warm else calls):
            out = attention(q, k, v)
            if backward:
                torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    return 1000 * (time.perf_counter() - began) / calls


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=7, help="of all kernels, interleaved; medians are printed")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"{'shape':<22}{'':<34}{'dtype':<10}{'pass':<10}{'fused ms':>10}{'products ms':>13}{'auto / faster':>15}")
    for dtype in (getattr(torch, name) for name in args.dtypes.split(",")):
        for shape, title in SHAPES.items():
            for backward in (False, True) if shape[2] > 1 else (False,):
                print(row(shape, title, dtype, backward, args.rounds), flush=True)
    return 0


def row(shape: tuple[int, ...], title: str, dtype: torch.dtype, backward: bool, rounds: int) -> str:
    kernels = {"fused": fused, "products": attend_by_products}
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(rounds):
        for name, attention in kernels.items():
            times[name].append(measure(attention, shape, dtype, backward))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows, heads, queries, keys, width = shape
    with torch.set_grad_enabled(backward):
        q, k = (torch.empty(rows, heads, n, width, dtype=dtype, requires_grad=backward) for n in (queries, keys))
        chosen = "products" if by_products(q, k) else "fused"
    share = medians[chosen] / min(medians.values())
    cells = f"{medians['fused']:>10.3f}{medians['products']:>13.3f}{share:>15.2f}"
    kind = "both" if backward else "forward"
    return f"{'x'.join(map(str, shape)):<22}{title:<34}{str(dtype)[6:]:<10}{kind:<10}{cells}"


if __name__ == "__main__":
    raise SystemExit(main())
