"""The training step of diffusion in a space of token embeddings, whose vectors train with the denoiser.

    x0 ~ N(Emb(w), sigma_0^2),   L = |x0 - x0_hat(z_t, t)|^2 - log p(w | x0) + |alpha(1) x0|^2

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217, eq. 2; Gong et al. 2023 (DiffuSeq), arXiv:2210.08933, eq. 4.
Each step starts from token ids, since the embeddings change. Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataset_utils.packing import null_sources, reveal_prefix
from diffusion.absorbing import AbsorbingNoise
from diffusion.denoisers import Denoise
from diffusion.guidance import with_known_positions
from diffusion.loss import (
    BoundNetwork,
    DenoisingResult,
    denoising_loss,
    loss_terms,
    term_weights,
    unbias_bound,
    weighted_total,
)
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.tokenizers.special_ids import filler_id
from pipelines.builders.diffusion_process import DiffusionProcess
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.tokens import TokenSplit
from pipelines.options import EmbeddingLossOptions
from pipelines.steps.describe import describe_rows, describe_times
from pipelines.steps.diffusion import TimestepSampler, bind_denoiser, drop_conditions, rows_on, split_by_quarter
from utils.records import Batch, Condition, KnownPositions, Latents
from utils.seeding import SelectedRows, StepRNG


@dataclass
class StepNoise:
    """The random numbers of a micro-batch, drawn by the caller for the global batch."""

    t: Tensor  # (B,) timesteps
    eps: Tensor  # (B, L, D) noise of the process
    embedding_noise: Tensor  # (B, L, D) noise of x0 around its embedding, standard normal
    self_cond_rows: SelectedRows | None  # rows that receive the network's own estimate; None: no self-conditioning
    mask_uniform: Tensor | None = None  # (B, L) in [0, 1): positions that become the absorbing state; None: no position
    estimate_noise: Tensor | None = None  # (B, L, D), added to the estimates of self-conditioning, see denoising_loss


class EmbeddingLoss(nn.Module):
    """All trained parts as one module: if ranks share a batch, DDP averages the gradients of its forward."""

    def __init__(
        self,
        denoiser: nn.Module,
        space: EmbeddingSpace,
        process: DiffusionProcess,
        absorbing: nn.Parameter | None = None,
        denoise_rate: float = 0.0,
        learned_variance: bool = False,
    ) -> None:
        """absorbing: (D,), the absorbing state. denoise_rate: share of tokens replaced by it at full noise.

        learned_variance: whether the denoiser returns a variance.
        """
        super().__init__()
        self.denoiser, self.space, self.process = denoiser, space, process
        self.absorbing, self.denoise_rate = absorbing, denoise_rate
        self.terms = term_weights({"tT_loss": 1.0, **process.hybrid_weights(learned_variance)})

    def forward(self, batch: Batch, noise: StepNoise, condition: Condition | None) -> dict[str, Tensor]:
        """Losses (B,) by name: diffusion; those of the space (decoder_nll); LOSS_TERMS; with an absorbing state its
        norm; and, to log only, rounding_nll of the generated positions, without gradient."""
        space = self.space
        latents = space.add_sigma0_noise(space.encode(batch), noise.embedding_noise)
        known = space.known_positions(batch, latents)
        result, x0_hat = self.denoise(latents, known, noise, condition)
        losses = {
            "diffusion": self.process.weight_losses(result.loss, noise.t),
            **space.losses(batch, latents, x0_hat),
            **loss_terms(result, self.terms),
            "rounding_nll": self.rounding_nll(batch, x0_hat, self.loss_mask(latents, known)),
        }
        if self.absorbing is not None:
            losses["absorbing_norm"] = self.absorbing.norm().expand(len(result.loss))
        return losses

    def denoise(
        self, latents: Latents, known: KnownPositions | None, noise: StepNoise, condition: Condition | None
    ) -> tuple[DenoisingResult, Tensor]:
        """Corrupt, self-condition, predict and compare; and x0_hat (B, L, D) with the values of known positions."""
        space, process = self.space, self.process
        mask, loss_mask = latents.mask if space.variable_length else None, self.loss_mask(latents, known)
        absorbing = None
        if self.absorbing is not None:
            absorbing = AbsorbingNoise.of(self.absorbing, loss_mask, noise.mask_uniform, self.denoise_rate)

        def bind(rows: Tensor | None) -> BoundNetwork:
            network = bind_denoiser(self.denoiser, mask, condition, rows)
            return with_known_input(network, known if known is None or rows is None else known[rows])

        def keep_known(denoise: Denoise, rows: Tensor) -> Denoise:
            if known is None:
                return denoise
            kept = known[rows]
            return with_known_positions(denoise, kept.value, kept.mask)

        estimate_noise = noise.estimate_noise
        if estimate_noise is not None and known is not None:
            estimate_noise = estimate_noise.masked_fill(known.mask[..., None], 0)  # known positions stay clean
        result = denoising_loss(
            bind,
            latents.x0,
            noise.t,
            noise.eps,
            process.loss_config,
            mask=loss_mask,
            self_cond=None if noise.self_cond_rows is None else rows_on(noise.self_cond_rows, latents.x0.device),
            wrap=keep_known,
            absorbing=absorbing,
            mean=latents.mean,
            with_x0_hat=True,
            estimate_noise=estimate_noise,
        )
        assert result.x0_hat is not None
        return result, fill_known(result.x0_hat, known)

    def loss_mask(self, latents: Latents, known: KnownPositions | None) -> Tensor | None:
        """(B, L) bool: the positions that are noised and learned, without the known ones; None for all."""
        if known is None:
            return latents.mask if self.space.variable_length else None
        return latents.mask & ~known.mask

    @torch.no_grad()
    def rounding_nll(self, batch: Batch, x0_hat: Tensor, loss_mask: Tensor | None) -> Tensor:
        """-log p(w | x0_hat), (B,), nats per generated token: the distance of the estimates from the texts."""
        return self.space.nll(batch, x0_hat, loss_mask)


@dataclass(frozen=True)
class TokenReader:
    """(rows, draws) -> the token ids of a batch: texts, packed pairs, or blocks of running text with a known prefix."""

    data: TokenSplit
    space: EmbeddingSpace
    device: torch.device
    max_prefix_fraction: float | None = None
    """Of blocks of running text, the largest share of a block that is known. None: texts or pairs."""
    null_source_prob: float = 0.0
    """Share of packed pairs whose source is hidden, for guidance."""

    def __call__(self, rows: Tensor, draws: StepRNG) -> Batch:
        batch = self.data.batch(rows, self.space.length).to(self.device)
        if self.max_prefix_fraction is not None:
            batch = reveal_prefix(batch, draws.uniform("prefix"), self.max_prefix_fraction)
        if self.null_source_prob:
            hidden, tokenizer = draws.uniform("source") < self.null_source_prob, self.space.tokenizer
            batch = null_sources(batch, hidden, filler_id(tokenizer), tokenizer.all_special_ids)
        return batch


class EmbeddingStep:
    """(step, micro) -> losses (B,), and values (B,) to log: every loss by name, and that of diffusion by quarter."""

    logs_quarters = True

    def __init__(
        self,
        network: nn.Module,
        loss: EmbeddingLoss,
        data: TokenSplit,
        batch_sampler: BatchSampler,
        num_steps: int,
        options: EmbeddingLossOptions,
        *,
        device: torch.device,
        self_condition: bool,
        class_conditional: bool,
        reg_rate: float = 0.0,
        max_prefix_fraction: float | None = None,
        null_source_prob: float = 0.0,
        timestep_sampler: TimestepSampler | None = None,
    ) -> None:
        """network: `loss`, or the wrapper that averages its gradients over ranks. num_steps: number of steps of the
        whole run.

        reg_rate: weight of the norm of an absorbing state. max_prefix_fraction: for blocks of running text, the largest
        share of a block that is known; None: texts or pairs. null_source_prob: share of packed pairs whose source is
        hidden, for guidance; 0: none, or texts without sources. timestep_sampler: sampler of training timesteps; None:
        stratified.
        """
        self.network, self.loss, self.data, self.batch_sampler = network, loss, data, batch_sampler
        self.num_steps, self.timestep_sampler = num_steps, timestep_sampler
        self.device = device
        self.read = TokenReader(data, loss.space, device, max_prefix_fraction, null_source_prob)
        self.self_condition, self.class_conditional = self_condition, class_conditional
        self.weights = {
            **loss.terms,
            **loss.space.loss_weights,
            "decoder_nll": options.decoder_nll_weight,
            "tT_loss": options.tT_loss_weight,
            "absorbing_norm": reg_rate,
        }

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        texts = describe_rows(self.batch_sampler, len(self.data), step, micro, positions)
        draw = (self.timestep_sampler or self.loss.process.make_time_sampler)(step, self.num_steps)
        return f"{texts}; {describe_times(self.batch_sampler, draw, step, micro, positions, self.device)}"

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        process, space = self.loss.process, self.loss.space
        draws = self.batch_sampler.rng(step, micro, self.device)
        batch = self.read(self.batch_sampler.rows(step, micro, len(self.data)), draws)
        make_sampler = self.timestep_sampler or process.make_time_sampler
        t, weight = draws.sample_global(make_sampler(step, self.num_steps), "time")
        selected = draws.select_rows("self_condition", process.options.train_prob_self_cond)
        perturb = process.options.self_cond_noise if self.timestep_sampler is not None else 0.0  # in training
        shape = (space.length, space.dim)
        noise = StepNoise(
            t,
            draws.normal("noise", *shape),
            draws.normal("spread", *shape),  # part of the seed: renaming it would change the noise
            selected if self.self_condition else None,
            draws.uniform("discrete noise", space.length) if self.loss.denoise_rate else None,
            perturb * draws.normal("estimate noise", *shape) if self.self_condition and perturb else None,
        )
        condition = None
        if self.class_conditional:
            assert batch.class_id is not None, "a class-conditional run was built on a corpus without labels"
            condition = drop_conditions(Condition.of(class_id=batch.class_id), draws, process.options)
        losses = self.network(batch, noise, condition)
        if self.timestep_sampler is not None:
            self.timestep_sampler.record_losses(t, losses["diffusion"], micro)
        # Differs from the published code: only what depends on t has importance weights.
        loss_weight = weight if self.timestep_sampler is None else self.timestep_sampler.loss_weight(weight)
        diffusion = losses["diffusion"] * loss_weight
        terms = {name: loss for name, loss in losses.items() if name not in ("diffusion", "rounding_nll")}
        terms = unbias_bound(terms, loss_weight)
        logged = {name: loss.detach() for name, loss in losses.items()}
        quarters = split_by_quarter(
            "loss", losses["diffusion"].detach() * weight, t, process.max_time(step, self.num_steps)
        )
        return weighted_total(diffusion, terms, self.weights), logged | quarters


def fill_known(x: Tensor, known: KnownPositions | None) -> Tensor:
    """x (B, L, D) with the values of known positions."""
    return x if known is None else torch.where(known.mask[..., None], known.value, x)


def with_known_input(network: BoundNetwork, known: KnownPositions | None) -> BoundNetwork:
    """The network, which receives known positions clean."""

    def with_known(
        z: Tensor, time: Tensor, x0_self_cond: Tensor | None = None, self_cond_mask: Tensor | None = None
    ) -> Tensor:
        return network(fill_known(z, known), time, x0_self_cond, self_cond_mask)

    return with_known
