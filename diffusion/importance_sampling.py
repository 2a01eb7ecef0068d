"""Importance sampling of training timesteps by their loss, with weights that keep the mean loss unbiased.

    sampler = LossSecondMoment(timesteps=2000)      timesteps=None: continuous time
    t, weight = sampler(n, generator, max_time=1.0) as the samplers of diffusion/time_sampling
    sampler.update(t, loss)                         of all ranks and micro-batches, unweighted, in equal order
    sampler.state_dict(), sampler.load_state_dict() tensors, for checkpoints
    sample_fixstep(n, generator, ...)               half as often in the noisy half; without state

All operations are tensor operations on one device, so the host never waits, and equal updates in equal order give equal
times on every rank. The caller gathers the losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

NUM_BINS = 100  # of continuous time, where there are no steps to count


class LossSecondMoment:
    """p(t) ~ sqrt(mean of the last ten losses squared at t), mixed with a little of the uniform; uniform until warm.

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

        bins: neighbouring steps that share one history. None: one bin for each step, as published, which needs ten
            losses of every step before it leaves uniform (20,000 texts and many more at T = 2000). With 100 bins some
            2,000 texts are enough, and loss is smooth in t, so little is lost.
        history: losses remembered by each bin. uniform: share of uniform draws, so that no time is forgotten.
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
        self.losses = torch.zeros(bins, history, device=device)  # each row a ring; zero where nothing was seen
        self.counts = torch.zeros(bins, dtype=torch.long, device=device)  # losses ever seen

    def probabilities(self) -> Tensor:
        """p of each cell, (cells,), summing to 1. A cell is a step of the chain, or a hundredth of continuous time."""
        root = self.losses.square().mean(1).sqrt()  # (bins,)
        mass = root[self.bin_of]
        even = torch.full_like(mass, 1 / self.cells)
        total = mass.sum()
        p = (1 - self.uniform) * mass / total + self.uniform * even
        warm = (self.counts >= self.history).all() & (total > 0)
        return torch.where(warm, p, even)

    def __call__(
        self, n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """t (n,) and weight (n,), on the device of the losses. timesteps: T, given at construction already."""
        if timesteps != self.timesteps:
            raise ValueError(f"times of {self.timesteps or 'continuous time'} cannot be sampled for T = {timesteps}")
        return sample_bins(self.probabilities(), n, generator, max_time=max_time, timesteps=self.timesteps)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Remember the losses (n,) at times (n,), the last ones of a bin where there are more than it remembers.

        Losses that are not finite are left out: one of them would draw all times to its own.
        """
        t, loss = t.detach().to(self.losses.device), loss.detach().to(self.losses)
        cell = (t * self.cells - (0.5 if self.timesteps else 0)).floor().long().clamp(0, self.cells - 1)
        # rows of one bin side by side, in the order given; those not to be remembered in a bin of their own at the end
        bins = torch.where(loss.isfinite(), self.bin_of[cell], self.bins)
        order = bins.argsort(stable=True)
        bins, loss = bins[order], loss[order].nan_to_num(0, 0, 0)
        new = torch.zeros(self.bins + 1, dtype=torch.long, device=bins.device).index_add_(
            0, bins, torch.ones_like(bins)
        )
        rank = torch.arange(len(bins), device=bins.device) - (new.cumsum(0) - new)[bins]
        counts = torch.cat([self.counts, self.counts.new_zeros(1)])
        place = bins * self.history + (counts[bins] + rank) % self.history
        kept = (bins < self.bins) & (rank >= new[bins] - self.history)  # so no place is written twice
        place = torch.where(kept, place, self.bins * self.history)  # what is not kept goes behind the last ring
        flat = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)]).scatter(0, place, loss)
        self.losses = flat[:-1].view_as(self.losses)
        self.counts = self.counts + new[:-1]

    def state_dict(self) -> dict[str, Tensor]:
        """losses (bins, history) float32 and counts (bins,) int64."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """ValueError where the state is of another number of bins or another history."""
        if state["losses"].shape != self.losses.shape:
            found, wanted = (" x ".join(map(str, x.shape)) for x in (state["losses"], self.losses))
            raise ValueError(
                f"the checkpoint holds losses by timestep of shape {found}, but this run keeps {wanted}: "
                "use the bins and the noise schedule that it was trained with"
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

    Stratified: each t is of the right distribution by itself, the n of them evenly spread over it, in random order.
    timesteps: T = cells, for nodes t = (i + 1) / T; None: uniform within a cell. t_max: the upper end of the range;
    then p is limited to it, and weights are relative to the uniform distribution over it.
    """
    where = generator.device if generator is not None else torch.device("cpu")
    device = p.device  # the numbers come from where the generator is; nothing goes back there
    p = p.double() if device.type != "mps" else p
    cells = len(p)
    reached = max_time * cells if timesteps is None else max(1, round(max_time * cells))
    bin_overlap = (reached - torch.arange(cells, device=device)).clamp(0, 1).to(p)  # of each cell within the range
    mass = p * bin_overlap
    mass = mass / mass.sum()
    offset = torch.rand(1, generator=generator, device=where, dtype=p.dtype).to(device)
    order = torch.randperm(n, generator=generator, device=where).to(device)
    u = (offset + order.to(p) / n).remainder(1)  # (n,)
    below = mass.cumsum(0)
    last = max(0, math.ceil(reached) - 1)  # rounding of the sum must not lead beyond the range
    cell = torch.searchsorted(below, u, right=True).clamp(max=last)
    weight = bin_overlap[cell] / bin_overlap.sum() / mass[cell]
    if timesteps is not None:
        return ((cell + 1) / timesteps).float(), weight.float()
    # u is uniform between the two bounds of its cell: its place there serves as the place in time
    inside = ((u - (below - mass)[cell]) / mass[cell]).clamp(0, 1) * bin_overlap[cell]
    return ((cell + inside) / cells).float(), weight.float()
