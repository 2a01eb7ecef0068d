"""A drafter: latents of texts, some of them noised, to the loss of naming all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_models.spaces.compressed import CompressedSpace
from latent_models.generation.decoding import DECODING
from latent_models.speculative.draft_model import DraftModel, draft_loss
from latent_models.speculative.verification import SpeculativeLoop
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.cached_latents import EncodedSplit
from pipelines.steps.autoencoder import LatentAugmentation

METRICS = ("loss", "tokens_right", "texts_right", "passes")


class DraftModelStep:
    """(step, micro) -> losses (B,) in nats per token of what is to be drafted, and nothing else to log."""

    def __init__(
        self, space: CompressedSpace, drafter: nn.Module, texts: EncodedSplit, batch_sampler: BatchSampler, disturbance: LatentAugmentation
    ) -> None:
        """drafter: memory -> hidden, perhaps in the wrapper that averages its gradients. texts: as latents."""
        self.space, self.drafter, self.texts, self.batch_sampler = space, drafter, texts, batch_sampler
        self.disturbance = disturbance

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.batch_sampler.rows(step, micro, len(self.texts.tokens))
        x0 = self.texts(rows).x0
        if self.disturbance:
            x0 = self.disturbance.of(self.space, self.batch_sampler.rng(step, micro, x0.device), x0.device)(x0)
        return self.losses(rows, self.memory(x0)), {}

    @torch.no_grad()
    def memory(self, x0: Tensor) -> Tensor:
        """What the language model's decoder attends to, (B, L, d_lm)."""
        return self.space.autoencoder.decode(x0)

    def losses(self, rows: Tensor, memory: Tensor) -> Tensor:
        batch = self.texts.tokens.batch(rows).to(memory.device)
        nll = draft_loss(self.space.language_model.model, self.drafter(memory), batch.input_ids)
        return (nll * batch.attention_mask).sum(1) / batch.attention_mask.sum(1).clamp(min=1)


@torch.no_grad()
def evaluate_draft(step: DraftModelStep, drafter: DraftModel, micro: int) -> dict[str, Tensor]:
    """JUDGED of the texts of a micro-batch, (b,) each, on clean latents.

    tokens_right, texts_right: of what greedy decoding writes, its end included. passes: of the language model, where
    token by token it would need one for each.
    """
    model = step.space.language_model
    rows = step.batch_sampler.rows(0, micro, len(step.texts.tokens))
    memory = step.memory(step.texts(rows).x0)
    draft = drafter.draft_ids(model.model, memory)
    loop = SpeculativeLoop(drafter)
    written = model.generate_ids(memory, None, drafter.max_seq_len, greedy_loop=loop, **DECODING["greedy"])
    passes, texts = loop.stats.passes, loop.stats.texts
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
