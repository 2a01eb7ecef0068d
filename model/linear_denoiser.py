"""The best linear denoiser of the training latents, in closed form, which a network is added to.

Were latents Gaussian, the expected value of x0 or of the noise given z_t would be linear in z_t (Wiener 1949); at most
noise levels that is most of what a trained network knows (Wang and Vastola 2024, arXiv:2412.09726). Given it from the
first step, the network learns the rest alone. With unit covariance this is the skip connection of Karras et al. 2022,
arXiv:2206.00364, section 5.
Shapes: B texts, L latent positions, d channels of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_NUMBERS = 2048  # L d of latents of one length whose whole covariance is kept, a matrix of its square
MOST_CORRELATED = 16  # positions; more are treated as independent, since the tables grow with their third power
FLOOR = 1e-4  # smallest variance of a direction: what never varied in training may vary a little

Amplitudes = tuple[Tensor, Tensor]  # alpha and sigma of z_t = alpha x0 + sigma eps
Coefficients = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


class LinearDenoiser(nn.Module):
    """z_t, time -> E[a x0 + b eps | z_t] for Gaussian latents; buffers only, which estimate() fills once.

    Where texts have one length, the covariance is that of all L d numbers (up to MOST_NUMBERS of them). Else it is
    modeled along the principal directions of a single latent: each direction has a covariance of its own between the
    positions, and directions are independent. Of a shorter text the first positions alone are visible.
    """

    mean: Tensor  # (L, d)
    directions: Tensor  # (d, d), columns
    mixtures: Tensor  # (L, d, L, L), for n + 1 visible positions and each direction: columns of uncorrelated mixtures
    variances: Tensor  # (L, d, L), theirs; (1, d, 1) and no mixtures where positions are independent
    num_latents: Tensor  # () int64, latents that it was estimated from; 0 before

    def __init__(
        self,
        dim: int,
        length: int,
        amplitudes: Callable[[Tensor], Amplitudes],
        coefficients: Coefficients,
        *,
        one_length: bool = False,
    ) -> None:
        """dim: d. length: L. amplitudes: time input of the network -> alpha and sigma. coefficients: alpha and sigma ->
        a and b of what the network predicts. one_length: all texts have L latents.
        """
        super().__init__()
        self.amplitudes, self.coefficients = amplitudes, coefficients
        self.shape = (length, dim)
        if one_length and length * dim <= MOST_NUMBERS:
            length, dim = 1, length * dim  # as one long latent
        self.length = length
        n = length if length <= MOST_CORRELATED else 1
        self.register_buffer("mean", torch.zeros(length, dim))
        self.register_buffer("directions", torch.eye(dim))
        self.register_buffer("mixtures", torch.eye(n).expand(n, dim, n, n).clone())
        self.register_buffer("variances", torch.ones(n, dim, n))
        self.register_buffer("num_latents", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def estimate(self, latents: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Set all buffers. latents: returns batches (B, L', d) and masks (B, L'), L' <= L; called more than once."""
        count, total, products = torch.zeros(self.length), torch.zeros(()), torch.zeros(())
        for x, mask in latents():
            x, mask = self._padded(x, mask)
            count, total = count + mask.sum(0), total + (x * mask[..., None]).sum(0)
        mean = total / count.clamp(min=1)[:, None]  # (L, d)
        for x, mask in latents():
            x, mask = self._padded(x, mask)
            centered = (x - mean)[mask.bool()]  # (n, d)
            products = products + centered.T @ centered
        whole = self._shrunk(products / count.sum(), int(count.sum()))
        values, directions = torch.linalg.eigh(whole)
        self.mean.copy_(mean)
        self.directions.copy_(directions)
        self.num_latents.fill_(int(count.sum()))
        n = self.variances.shape[-1]
        if n == 1:
            self.variances.copy_(values.clamp(min=FLOOR)[None, :, None])
            return
        pairs, moments = torch.zeros(()), torch.zeros(())
        for x, mask in latents():
            x, mask = self._padded(x, mask)
            along = ((x - mean) * mask[..., None]) @ directions  # (B, L, d)
            pairs = pairs + mask.T @ mask  # (n, n)
            moments = moments + torch.einsum("bld,bmd->dlm", along, along)
        covariance = moments / pairs.clamp(min=1)  # (d, n, n)
        for visible in range(1, n + 1):
            values, vectors = torch.linalg.eigh(covariance[:, :visible, :visible])
            self.variances[visible - 1, :, :visible] = values.clamp(min=FLOOR).to(self.variances)
            self.mixtures[visible - 1, :, :visible, :visible] = vectors.to(self.mixtures)

    @property
    def is_joint(self) -> bool:
        """Whether all positions are one long latent."""
        return self.length < self.shape[0]

    def _shrunk(self, covariance: Tensor, n: int) -> Tensor:
        """A joint covariance (L d, L d) of n texts, less sure between positions the fewer they are."""
        if not self.is_joint:
            return covariance
        length, dim = self.shape
        within = torch.block_diag(*[torch.ones(dim, dim)] * length).to(covariance)
        share = length * dim / (length * dim + n)
        return covariance * (share * within + 1 - share)

    def _padded(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_joint:
            x, mask = x.flatten(1)[:, None], mask[:, :1]
        missing = self.length - x.shape[1]
        return F.pad(x.cpu().double(), (0, 0, 0, missing)), F.pad(mask.cpu().double(), (0, missing))

    def forward(self, z: Tensor, time: Tensor, mask: Tensor | None = None) -> Tensor:
        """z: (B, L', d), L' <= L. time: (B,) or (1,). mask: (B, L') bool, the first positions of each text; None: all.

        Returns (B, L', d) in float32 at least, 0 outside the mask.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            if self.is_joint:
                return self._predict(z.flatten(1)[:, None], time, None).view_as(z)
            return self._predict(z, time, mask)

    def _predict(self, z: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        length = z.shape[1]
        alpha, sigma = (x.to(z)[:, None, None] for x in self.amplitudes(time))  # (B, 1, 1)
        a, b = self.coefficients(alpha, sigma)
        mean = self.mean[:length].to(z)
        y = (z - alpha * mean) @ self.directions.to(z)  # (B, L', d)
        if mask is not None:
            y = y * mask[..., None]
        mixtures, variances = self._tables(length, mask)
        y = _mix(y, mixtures)
        # E[x0 | y] = alpha v / (alpha^2 v + sigma^2) y, E[eps | y] = sigma / (alpha^2 v + sigma^2) y
        variances = variances.transpose(-1, -2).to(z)  # (B or 1, L' or 1, d)
        y = y * (a * alpha * variances + b * sigma) / (alpha**2 * variances + sigma**2)
        out = _mix(y, None if mixtures is None else mixtures.transpose(-1, -2)) @ self.directions.T.to(z)
        out = out + a * mean
        return out if mask is None else out * mask[..., None]

    def _tables(self, length: int, mask: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Mixtures (B or 1, d, L', L') and variances (B or 1, d, L') of each text; no mixtures: (1, d, 1)."""
        if self.variances.shape[-1] == 1:
            return None, self.variances[:1]
        if mask is None:
            return self.mixtures[length - 1, :, :length, :length][None], self.variances[length - 1, :, :length][None]
        visible = (mask.sum(1) - 1).clamp(min=0)
        return self.mixtures[visible, :, :length, :length], self.variances[visible, :, :length]


def add_linear(linear: LinearDenoiser | None, out: Tensor, z: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
    """The output (B, L, d), or (B, L, 2 d) with a learned variance, of a network, plus the linear prediction."""
    if linear is None:
        return out
    base = linear(z, time, mask)
    return out + F.pad(base, (0, out.shape[-1] - base.shape[-1]))


def _mix(y: Tensor, mixtures: Tensor | None) -> Tensor:
    """(B, L, d), (B or 1, d, L, M) -> (B, M, d), each direction by its own matrix."""
    if mixtures is None:
        return y
    return (y.permute(0, 2, 1)[:, :, None] @ mixtures.to(y))[:, :, 0].permute(0, 2, 1)
