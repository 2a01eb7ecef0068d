"""The training step of joint training: autoencoder and denoiser learn together, from trained weights.

    L = |target(x0, eps) - f(z_t, t)|^2  +  weight * (-log p(w | sqrt(1 - s^2) x0 + s noise) + the autoencoder's others)

The first term reaches the encoder only after a warm-up: a denoiser that is not yet at home in moving latents would pull
them together. The decoder reads noised latents, which keeps them apart: latents that collapse lose their texts in the
noise. Both as in LDLM, arXiv:2605.07933, where naive joint training fails; its mean square error of the decoder is
--feature_matching_weight of the autoencoder, and its adaptive times are --schedule_sampler adaptive.
Shapes: B texts, T tokens, L latents of D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.autoencoders.augmentations import BatchAugmentation
from latent_models.autoencoders.variational import sample
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from pipelines.cli.configs import DiffusionConfig
from pipelines.components import Components
from pipelines.data.batch_sampler import BatchSampler, TrainingSampler, ValidationSampler
from pipelines.data.cached_latents import ConditionalLatents
from pipelines.data.datamodule import DataModule
from pipelines.data.latent_datamodule import LatentDataModule
from pipelines.data.tokens import TokenSplit
from pipelines.options import JointOptions
from pipelines.run_context import RunContext
from pipelines.steps.diffusion import DiffusionStep, TimestepSampler
from pipelines.steps.teacher import Teacher
from utils.distributed import DistContext
from utils.float64 import widened
from utils.hooks import StepResult
from utils.records import Condition, Latents
from utils.seeding import StepRNG
from utils.state import State

MOMENTUM = 0.01  # share of a batch in the running statistics


class JointNetwork(nn.Module):
    """All that trains. Called like the denoiser; DDP averages the gradients of every parameter that takes part."""

    def __init__(self, denoiser: nn.Module, space: CompressedSpace) -> None:
        super().__init__()
        self.denoiser, self.space = denoiser, space

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        condition: Condition | None = None,
        x0_self_cond: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
    ) -> Tensor:
        return self.denoiser(z, time, mask, condition, x0_self_cond, self_cond_mask)


class JointAugmentation(BatchAugmentation):
    """Noise on the latents that the decoder reads; keeps the clean ones, with gradient, for the denoiser."""

    def __init__(self, space: CompressedSpace, rng: StepRNG, max_noise: float) -> None:
        self.space, self.rng = space, rng
        self.sigma = max_noise * rng.uniform("joint_noise_size")
        self.clean: Tensor | None = None

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        self.clean = mean
        return sample(mean, log_variance, self._normal("joint_variational", mean))

    def __call__(self, x0: Tensor, mask: Tensor | None = None) -> Tensor:
        assert self.sigma is not None
        if self.clean is None:
            self.clean = x0
        return self.space.add_latent_noise(x0, self._normal("joint_noise", x0), self.sigma, mask)

    def _normal(self, purpose: str, like: Tensor) -> Tensor:
        """Drawn for all positions, so that the noise of a text does not depend on the padding of its batch."""
        return self.rng.normal(purpose, self.space.length, like.shape[-1])[:, : like.shape[1]].to(like.dtype)


class JointLatents:
    """Latents of a split, encoded with gradient; see LatentSource.

    losses: those of the autoencoder on the rows of the last call, (B,) by name.
    """

    def __init__(self, latents: ConditionalLatents, options: JointOptions) -> None:
        self.latents, self.options, self.space = latents, options, latents.space
        inner = latents.space.space
        assert isinstance(inner, CompressedSpace)
        self.compressed = inner
        self.losses: dict[str, Tensor] = {}
        self.recorded: list[Latents] | None = None  # of the micro-batches of a step, without gradient; None: not kept
        self.rng: StepRNG | None = None
        self.share = 0.0  # of the gradient that reaches the encoder

    @property
    def device(self) -> torch.device:
        return self.latents.device

    @property
    def tokens(self) -> TokenSplit:
        return self.latents.tokens

    def __len__(self) -> int:
        return len(self.latents)

    def begin(self, rng: StepRNG, step: int) -> None:
        """Before a micro-batch is read."""
        self.rng = rng
        self.share = self.options.joint_gradient if step >= self.options.joint_warmup_steps else 0.0

    def __call__(self, rows: Tensor) -> tuple[Latents, Condition | None]:
        assert self.rng is not None
        batch = self.tokens.batch(rows).to(self.device)
        augment = JointAugmentation(self.compressed, self.rng, self.options.joint_noise)
        self.losses = self.compressed(batch, augment)
        assert augment.clean is not None
        found = self._padded(scale_gradient(augment.clean.float(), self.share), batch.attention_mask)
        if self.recorded is not None:
            self.recorded.append(Latents(found.x0.detach(), found.mask))
        return self.space.normalize(found), self.latents.condition(rows)

    def _padded(self, x0: Tensor, mask: Tensor) -> Latents:
        if not self.compressed.variable_length:
            return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device))
        short = self.compressed.length - x0.shape[1]
        return Latents(F.pad(x0, (0, 0, 0, short)), F.pad(mask.bool(), (0, short)))


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """x, whose gradient is multiplied by share."""
    if share == 1:
        return x
    return x.detach() if share == 0 else x.detach() + share * (x - x.detach())


class JointStep(DiffusionStep):
    """(step, micro) -> losses (B,), and values (B,) to log: those of a diffusion step, `diffusion`, and each loss of
    the autoencoder by its name.

    Until joint_warmup_steps the diffusion loss does not reach the autoencoder.
    """

    def __init__(
        self,
        network: nn.Module,
        latents: JointLatents,
        components: Components,
        batch_sampler: BatchSampler,
        num_steps: int,
        self_condition: bool,
        timestep_sampler: TimestepSampler | None,
        weights: dict[str, float] | None,
    ) -> None:
        super().__init__(
            network, latents, components.process, batch_sampler, num_steps, self_condition, timestep_sampler, weights
        )
        self.joint = latents

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.joint.recorded and micro == 0:  # a step that failed begins again
            self.joint.recorded.clear()
        self.joint.begin(self.batch_sampler.rng(step, micro, self.joint.device), step)
        diffusion, logged = super().__call__(step, micro)
        by_name = self.joint.losses
        total = self.joint.compressed.total_loss(by_name)
        logged = {"diffusion": diffusion.detach()} | logged | {name: x.detach() for name, x in by_name.items()}
        return diffusion + self.joint.options.joint_reconstruction_weight * total, logged


class RunningStatistics:
    """A hook after every step: mean and scale of the latents follow those of the global batch."""

    def __init__(self, statistics: LatentStatistics, latents: JointLatents, dist: DistContext) -> None:
        self.statistics, self.dist = statistics, dist
        self.recorded: list[Latents] = []
        latents.recorded = self.recorded

    @torch.no_grad()
    def __call__(self, state: State, report: StepResult) -> None:
        valid = widened(torch.cat([part.x0[part.mask] for part in self.recorded]))  # (n, D)
        count = valid.new_tensor([len(valid)])
        own = torch.cat([count, valid.sum(0), valid.square().sum(0)])
        count, total, squares = self.dist.gather(own).sum(0).split([1, valid.shape[1], valid.shape[1]])
        mean = total / count
        scale = (squares / count - mean.square()).mean().clamp(min=0).sqrt()
        self.statistics.mean.lerp_(mean.to(self.statistics.mean), MOMENTUM)
        self.statistics.scale.lerp_(scale.to(self.statistics.scale), MOMENTUM)
        self.recorded.clear()


class JointSteps:
    """Makes the training step and the validation step; see StepFactory. hooks: to be called after every step."""

    def __init__(
        self,
        run: RunContext[DiffusionConfig],
        components: Components,
        data: DataModule,
        timestep_sampler: TimestepSampler,
        teacher: Teacher | None = None,
    ) -> None:
        assert teacher is None and isinstance(data, LatentDataModule)
        self.run, self.components, self.data, self.timestep_sampler = run, components, data, timestep_sampler
        space: NormalizedSpace = components.space
        assert isinstance(space.space, CompressedSpace)
        self.network = JointNetwork(components.model.denoiser, space.space)
        self.hooks: list[RunningStatistics] = []

    def __call__(self, network: nn.Module, sampler: TrainingSampler | ValidationSampler) -> JointStep:
        config, training = self.run.settings.config, isinstance(sampler, TrainingSampler)
        latents = JointLatents(self.data.latents["train" if training else "valid"], config.joint)
        if training and config.joint.joint_statistics == "running" and config.latents.normalize_latent:
            self.hooks = [RunningStatistics(self.components.model.statistics, latents, self.run.dist)]
        return JointStep(
            network,
            latents,
            self.components,
            sampler,
            config.loop.num_train_steps,
            config.denoiser.self_condition,
            self.timestep_sampler if training else None,
            self.components.process.hybrid_weights(config.denoiser.learned_variance),
        )
