"""Importance sampling of training timesteps by their loss, with weights that keep the mean loss unbiased.

    sampler = LossSecondMoment(timesteps=2000)      timesteps=None: continuous time
    t, weight = sampler(n, generator, max_time=1.0) as the samplers of diffusion/time_sampling
    sampler.update(t, loss)                         of all ranks and micro-batches, unweighted, in equal order
    sampler.state_dict(), sampler.load_state_dict() tensors, for checkpoints
    sample_fixstep(n, generator, ...)               half as often in the noisy half; has no state

All operations are tensor operations on one device, so the host never waits, and equal updates in equal order give equal
times on every rank. The caller gathers the losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

NUM_BINS = 100  # bins of continuous time, which has no steps


class LossSecondMoment:
    """p(t) ~ sqrt(mean of the last ten losses squared at t), mixed with a little of the uniform distribution.

    Uniform until every bin is full.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18; Gong et al. 2023, arXiv:2210.08933, section 4.
    """

    def __init__(
        self,
        timesteps: int | None = None,
        *,
        bins: int | None = None,
        history: int = 10,
        uniform: float = 0.001,
        device: torch.device | str = "cpu",
    ) -> None:
        """timesteps: T of the chain; None draws from continuous time.

        bins: neighboring steps that share one history. None: one bin for each step, as published, which
            samples uniformly until every step has ten losses (more than 20,000 texts at T = 2000). With 100 bins about
            2,000 texts are enough; the loss is smooth in t, so coarse bins change little.
        history: losses stored per bin. uniform: share of uniform draws, so that every time keeps being sampled.
        """
        cells = timesteps or NUM_BINS
        bins = min(bins or cells, cells)
        if bins < 1 or history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"bins {bins}, history {history} and uniform {uniform} must be positive, uniform at most 1"
            )
        self.timesteps, self.cells, self.bins = timesteps, cells, bins
        self.history, self.uniform = history, uniform
        self.bin_of = torch.arange(cells, device=device) * bins // cells  # (cells,)
        self.losses = torch.zeros(bins, history, device=device)  # ring buffers; zero where empty
        self.counts = torch.zeros(bins, dtype=torch.long, device=device)  # losses recorded so far

    def probabilities(self) -> Tensor:
        """p of each cell, (cells,), summing to 1. A cell is a step of the chain, or a hundredth of continuous time."""
        root = self.losses.square().mean(1).sqrt()  # (bins,)
        mass = root[self.bin_of]
        uniform = torch.full_like(mass, 1 / self.cells)
        total = mass.sum()
        p = (1 - self.uniform) * mass / total + self.uniform * uniform
        warm = (self.counts >= self.history).all() & (total > 0)
        return torch.where(warm, p, uniform)

    def __call__(
        self, n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """t (n,) and weight (n,), on the device of the losses. timesteps: must be that of the constructor."""
        if timesteps != self.timesteps:
            raise ValueError(f"times of {self.timesteps or 'continuous time'} cannot be sampled for T = {timesteps}")
        return sample_bins(self.probabilities(), n, generator, max_time=max_time, timesteps=self.timesteps)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the losses (n,) at times (n,); a bin keeps its last `history` losses.

        Losses that are not finite are ignored: with one of them, only its time would be sampled.
        """
        t, loss = t.detach().to(self.losses.device), loss.detach().to(self.losses)
        cell = (t * self.cells - (0.5 if self.timesteps else 0)).floor().long().clamp(0, self.cells - 1)
        # sorted by bin, otherwise in the given order; ignored losses are in an additional last bin
        bins = torch.where(loss.isfinite(), self.bin_of[cell], self.bins)
        order = bins.argsort(stable=True)
        bins, loss = bins[order], loss[order].nan_to_num(0, 0, 0)
        new = torch.zeros(self.bins + 1, dtype=torch.long, device=bins.device).index_add_(
            0, bins, torch.ones_like(bins)
        )
        rank = torch.arange(len(bins), device=bins.device) - (new.cumsum(0) - new)[bins]
        counts = torch.cat([self.counts, self.counts.new_zeros(1)])
        slot = bins * self.history + (counts[bins] + rank) % self.history
        is_stored = (bins < self.bins) & (rank >= new[bins] - self.history)  # so that no slot is written twice
        slot = torch.where(is_stored, slot, self.bins * self.history)  # others are written behind the last buffer
        flat = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)]).scatter(0, slot, loss)
        self.losses = flat[:-1].view_as(self.losses)
        self.counts = self.counts + new[:-1]

    def state_dict(self) -> dict[str, Tensor]:
        """losses (bins, history) float32 and counts (bins,) int64."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """ValueError if the state is of another number of bins or another history."""
        if state["losses"].shape != self.losses.shape:
            saved, own = (" x ".join(map(str, x.shape)) for x in (state["losses"], self.losses))
            raise ValueError(
                f"the checkpoint holds losses by timestep of shape {saved}, but this run needs {own}: "
                "use the bins and the noise schedule of the checkpoint"
            )
        self.losses = state["losses"].to(self.losses).clone()
        self.counts = state["counts"].to(self.counts).clone()


def sample_fixstep(
    n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
) -> tuple[Tensor, Tensor]:
    """t (n,) from the noisy half of the chain half as often as from the clean half, weight (n,). Gong et al. 2023."""
    cells = timesteps or NUM_BINS
    mass = torch.ones(cells, device=generator.device if generator is not None else "cpu")
    mass[cells // 2 :] = 0.5
    return sample_bins(mass / mass.sum(), n, generator, max_time=max_time, timesteps=timesteps)


def sample_bins(
    p: Tensor, n: int, generator: torch.Generator | None, *, max_time: float = 1.0, timesteps: int | None = None
) -> tuple[Tensor, Tensor]:
    """t (n,) by the probabilities p (cells,) of equal parts of [0, 1], weight (n,) = 1 / (cells p), float32.

    Stratified: each t has the right distribution, and all n are evenly spread over it, in random order.
    timesteps: T = cells, for nodes t = (i + 1) / T; None: uniform within a cell. max_time: the upper end of the range;
    p is limited to it, and weights are relative to the uniform distribution over it.
    """
    generator_device = generator.device if generator is not None else torch.device("cpu")
    device = p.device  # random numbers are drawn on the device of the generator and copied to that of p
    p = p.double() if device.type != "mps" else p
    cells = len(p)
    num_cells = max_time * cells if timesteps is None else max(1, round(max_time * cells))
    bin_overlap = (num_cells - torch.arange(cells, device=device)).clamp(0, 1).to(p)  # share of a cell in the range
    mass = p * bin_overlap
    mass = mass / mass.sum()
    offset = torch.rand(1, generator=generator, device=generator_device, dtype=p.dtype).to(device)
    order = torch.randperm(n, generator=generator, device=generator_device).to(device)
    u = (offset + order.to(p) / n).remainder(1)  # (n,)
    below = mass.cumsum(0)
    last = max(0, math.ceil(num_cells) - 1)  # so that rounding of the sum does not leave the range
    cell = torch.searchsorted(below, u, right=True).clamp(max=last)
    weight = bin_overlap[cell] / bin_overlap.sum() / mass[cell]
    if timesteps is not None:
        return ((cell + 1) / timesteps).float(), weight.float()
    # u is uniform between the bounds of its cell, and so is the time
    inside = ((u - (below - mass)[cell]) / mass[cell]).clamp(0, 1) * bin_overlap[cell]
    return ((cell + inside) / cells).float(), weight.float()
