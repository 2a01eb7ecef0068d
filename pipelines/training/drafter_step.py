"""A drafter: latents of texts, some of them noised, to the loss of naming all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_models.compressed import CompressedSpace
from latent_models.decoding import DECODING
from latent_models.drafting import Drafter, draft_nll
from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.cached_latents import Encoded
from pipelines.training.autoencoder_step import Disturbance

JUDGED = ("loss", "tokens_right", "texts_right", "passes")


class DrafterStep:
    """(step, micro) -> losses (B,) in nats per token of what is to be drafted, and nothing else to log."""

    def __init__(
        self, space: CompressedSpace, drafter: nn.Module, texts: Encoded, plan: BatchPlan, disturbance: Disturbance
    ) -> None:
        """drafter: memory -> hidden, perhaps in the wrapper that averages its gradients. texts: as latents."""
        self.space, self.drafter, self.texts, self.plan = space, drafter, texts, plan
        self.disturbance = disturbance

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.plan.rows(step, micro, len(self.texts.data))
        x0 = self.texts(rows).x0
        if self.disturbance:
            x0 = self.disturbance.of(self.space, self.plan.draws(step, micro, x0.device), x0.device)(x0)
        return self.losses(rows, self.memory(x0)), {}

    @torch.no_grad()
    def memory(self, x0: Tensor) -> Tensor:
        """What the language model's decoder attends to, (B, L, d_lm)."""
        return self.space.autoencoder.decode(x0)

    def losses(self, rows: Tensor, memory: Tensor) -> Tensor:
        batch = self.texts.data.batch(rows).to(memory.device)
        nll = draft_nll(self.space.language_model.model, self.drafter(memory), batch.input_ids)
        return (nll * batch.attention_mask).sum(1) / batch.attention_mask.sum(1).clamp(min=1)


@torch.no_grad()
def judge(step: DrafterStep, drafter: Drafter, micro: int) -> dict[str, Tensor]:
    """JUDGED of the texts of a micro-batch, (b,) each, on clean latents.

    tokens_right, texts_right: of what greedy decoding writes, its end included. passes: of the language model, where
    token by token it would need one for each.
    """
    model = step.space.language_model
    rows = step.plan.rows(0, micro, len(step.texts.data))
    memory = step.memory(step.texts(rows).x0)
    draft = drafter.ids(model.model, memory)
    model.writer.passes()
    written = model.write(memory, None, drafter.max_seq_len, draft=lambda _: draft, **DECODING["greedy"])
    passes, texts = model.writer.passes()
    greedy = nn.utils.rnn.pad_sequence([ids[1:] for ids in written], batch_first=True, padding_value=model.pad_id)
    greedy = greedy[:, : draft.shape[1]]
    real = greedy != model.pad_id
    right = (draft[:, : greedy.shape[1]] == greedy) & real
    return {
        "loss": step.losses(rows, memory),
        "tokens_right": right.sum(1) / real.sum(1).clamp(min=1),
        "texts_right": (right | ~real).all(1).float(),
        "passes": torch.full((len(rows),), passes / max(1, texts), device=memory.device),
    }
