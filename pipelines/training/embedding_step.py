"""Stage 2 in a space of token embeddings: tokens to losses, at every step anew, since the vectors change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dataset_utils.packing import with_prefix
from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.tokens import TokenSplit
from pipelines.flags.options import EmbeddingLossOptions
from pipelines.training.embedding_loss import Drawn, EmbeddingLoss
from pipelines.training.training_times import TrainingTimes
from utils.records import Batch, Condition


class EmbeddingStep:
    """(step, micro) -> losses (B,), and values to log: each loss apart, that of diffusion also by quarter of noise."""

    def __init__(
        self,
        network: nn.Module,
        loss: EmbeddingLoss,
        data: TokenSplit,
        plan: BatchPlan,
        num_steps: int,
        options: EmbeddingLossOptions,
        *,
        device: torch.device,
        self_condition: bool,
        class_conditional: bool,
        reg_rate: float = 0.0,
        prefix_share: float | None = None,
        times: TrainingTimes | None = None,
    ) -> None:
        """network: `loss`, or the wrapper that averages its gradients over ranks. num_steps: of the whole run.

        reg_rate: weight of the norm of an absorbing state. prefix_share: of blocks of running text, the largest share
        that is given; None: texts or pairs. times: which times it looks at; None: evenly spread ones.
        """
        self.network, self.loss, self.data, self.plan, self.num_steps = network, loss, data, plan, num_steps
        self.times = times
        self.options, self.device, self.reg_rate, self.prefix_share = options, device, reg_rate, prefix_share
        self.self_condition, self.class_conditional = self_condition, class_conditional

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        process, space = self.loss.process, self.loss.space
        batch = self.data.batch(self.plan.rows(step, micro, len(self.data)), space.length).to(self.device)
        draws = self.plan.draws(step, micro, self.device)
        if self.prefix_share is not None:
            batch = with_prefix(batch, draws.uniform("prefix"), self.prefix_share)
        t, weight = draws.rows((self.times or process.draw_times)(step, self.num_steps), "time")
        shown = draws.chosen_rows("self_condition", process.options.train_prob_self_cond)
        shape = (space.length, space.dim)
        drawn = Drawn(
            t,
            draws.normal("noise", *shape),
            draws.normal("spread", *shape),
            shown if self.self_condition else None,
            draws.uniform("discrete noise", space.length) if self.loss.denoise_rate else None,
        )
        losses = self.network(batch, drawn, self.condition(batch, step, micro))
        if self.times is not None:
            self.times.saw(t, losses["diffusion"])
        o = self.options
        # Differs from the published code: times are weighted where they matter, and not in terms that have none.
        total = (
            losses["diffusion"] * weight
            + o.decoder_nll_weight * losses["decoder_nll"]
            + o.terminal_weight * losses["terminal"]
            + self.reg_rate * losses.get("absorbing_norm", 0.0)
        )
        quarter = (4 * t / process.t_max(step, self.num_steps)).ceil().clamp(1, 4)
        by_quarter = {f"loss_q{q}": 4 * losses["diffusion"].detach() * weight * (quarter == q) for q in (1, 2, 3, 4)}
        return total, {name: loss.detach() for name, loss in losses.items()} | by_quarter

    def condition(self, batch: Batch, step: int, micro: int) -> Condition | None:
        """The classes of the batch, some dropped."""
        if not self.class_conditional:
            return None
        assert batch.class_id is not None, "a class-conditional run was built on a corpus without labels"
        uniform = self.plan.draws(step, micro, self.device).uniform("class")
        options = self.loss.process.options
        return Condition.of(class_id=batch.class_id).drop(uniform, options.class_unconditional_prob, None, 0)
