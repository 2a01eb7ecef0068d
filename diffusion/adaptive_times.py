"""Training times at which the error of x0 is even: equally many where it grows by an equal amount.

    sampler = EvenLoss(timesteps=2000)              timesteps=None: continuous time
    t, weight = sampler(n, generator, max_time=1.0) as the samplers of diffusion/time_sampling
    sampler.update(t, error)                        of all ranks and micro-batches: squared errors of x0, in equal order
    sampler.state_dict(), sampler.load_state_dict() tensors, for checkpoints

The error of the best estimate of x0 grows with the noise. With F(t) the share of its growth below t, u = F(t) is
uniform, so that as a function of u the expected error is a straight line: a bin of u has the same part of the error as
any other. Noise levels at which nothing is decided, since the text is plain or out of sight, are rarely drawn.

Source: Dieleman et al. 2022, arXiv:2211.15089 (CDCD), time warping; with bins of an averaged loss, Meshchaninov et al.
2026, arXiv:2605.07933 (LDLM). Differs from them: the average covers the last few hundred errors of a bin, so that runs
of a thousand steps adapt, and a twentieth of the times stays uniform.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion.importance_sampling import NUM_BINS, sample_bins


class EvenLoss:
    """p(t) ~ d error(t) / dt, mixed with a little of the uniform distribution. Uniform until every bin has errors."""

    def __init__(
        self,
        timesteps: int | None = None,
        *,
        bins: int | None = None,
        decay: float = 0.998,
        uniform: float = 0.05,
        warm: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        """timesteps: T of the chain; None draws from continuous time. bins: bins of neighboring times, each with one
        average; None: one for each step.

        decay: of the average, for each error: it covers about the last 1 / (1 - decay) errors of a bin. uniform: share
        of uniform draws, so that every time keeps being measured. warm: errors that each bin needs first.
        """
        cells = timesteps or NUM_BINS
        bins = min(bins or cells, cells)
        if bins < 1 or not 0 < decay < 1 or not 0 < uniform <= 1:
            raise ValueError(f"bins {bins}, decay {decay} and uniform {uniform}: bins from 1, the others in (0, 1)")
        self.timesteps, self.cells, self.bins = timesteps, cells, bins
        self.decay, self.uniform, self.warm = decay, uniform, warm
        self.bin_of = torch.arange(cells, device=device) * bins // cells  # (cells,)
        self.bin_cells = (self.bin_of == torch.arange(bins, device=device)[:, None]).sum(1)  # (bins,)
        self.sums = torch.zeros(bins, device=device)  # of errors, those before multiplied by decay
        self.weights = torch.zeros(bins, device=device)  # of ones, likewise
        self.counts = torch.zeros(bins, dtype=torch.long, device=device)  # errors recorded so far

    def errors(self) -> Tensor:
        """The average error of each bin, (bins,), made to grow with the bin as it does without randomness."""
        return isotonic(self.sums / self.weights.clamp(min=torch.finfo(self.weights.dtype).tiny))

    def probabilities(self) -> Tensor:
        """p of each cell, (cells,), summing to 1. A cell is a step of the chain, or a hundredth of continuous time."""
        growth = growth_by_bin(self.errors())[self.bin_of]
        per_cell = growth / self.bin_cells[self.bin_of]
        even = torch.full_like(per_cell, 1 / self.cells)
        total = per_cell.sum()
        p = (1 - self.uniform) * per_cell / total + self.uniform * even
        return torch.where((self.counts >= self.warm).all() & (total > 0), p, even)

    def __call__(
        self, n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """t (n,), and the weight (n,) that would undo the choice, on the device of the errors."""
        if timesteps != self.timesteps:
            raise ValueError(f"times of {self.timesteps or 'continuous time'} cannot be sampled for T = {timesteps}")
        return sample_bins(self.probabilities(), n, generator, max_time=max_time, timesteps=self.timesteps)

    def update(self, t: Tensor, error: Tensor) -> None:
        """Record squared errors of x0 (n,) at times (n,). Those that are not finite are ignored."""
        t, error = t.detach().to(self.sums.device), error.detach().to(self.sums)
        cell = (t * self.cells - (0.5 if self.timesteps else 0)).floor().long().clamp(0, self.cells - 1)
        bins = torch.where(error.isfinite(), self.bin_of[cell], self.bins)
        member = bins == torch.arange(self.bins, device=bins.device)[:, None]  # (bins, n)
        new = member.sum(1)
        # sums of products, in a fixed order: adding at indices may differ from rank to rank on a GPU
        total = (member * error.nan_to_num(0, 0, 0)).sum(1)
        kept = self.decay**new
        mean = total / new.clamp(min=1)
        self.sums = kept * self.sums + (1 - kept) * mean
        self.weights = kept * self.weights + (1 - kept)
        self.counts = self.counts + new

    def state_dict(self) -> dict[str, Tensor]:
        """sums and weights (bins,) float32, counts (bins,) int64."""
        return {"sums": self.sums.clone(), "weights": self.weights.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """ValueError if the state is of another number of bins."""
        if state["sums"].shape != self.sums.shape:
            raise ValueError(
                f"the checkpoint holds errors of {len(state['sums'])} bins of time, but this run needs {self.bins}: "
                "use the bins and the noise schedule of the checkpoint"
            )
        for name in ("sums", "weights", "counts"):
            own = getattr(self, name)
            setattr(self, name, state[name].to(own).clone())


def isotonic(x: Tensor) -> Tensor:
    """The nearest sequence (n,) that never falls, in least squares. Barlow et al. 1972.

    max over i <= k of min over j >= k of mean(x[i..j]), on (n, n) matrices, so that the host never waits.
    """
    n = len(x)
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    first = torch.arange(n, device=x.device)
    length = first[None, :] - first[:, None] + 1  # (i, j)
    means = (sums[1:][None, :] - sums[:-1][:, None]) / length.clamp(min=1)
    means = torch.where(length >= 1, means, torch.inf)
    smallest = means.flip(1).cummin(1).values.flip(1)  # (i, k): min over j >= k
    return torch.where(length >= 1, smallest, -torch.inf).amax(0)


def growth_by_bin(errors: Tensor) -> Tensor:
    """How much the error grows within each bin, (bins,), from its averages (bins,): between neighboring midpoints.

    The ends continue the slope beside them, but no error is below 0. A single bin has all of it.
    """
    if len(errors) == 1:
        return torch.ones_like(errors)
    middle = (errors[1:] + errors[:-1]) / 2
    start = (errors[:1] - (errors[1:2] - errors[:1]) / 2).clamp(min=0)
    end = errors[-1:] + (errors[-1:] - errors[-2:-1]) / 2
    return torch.cat([start, middle, end]).diff().clamp(min=0)
