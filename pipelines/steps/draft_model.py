"""Training step of a draft model: latents, partly noised, to the loss of predicting all tokens of a text at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_models.generation.decoding import DECODING
from latent_models.spaces.compressed import CompressedSpace
from latent_models.speculative.draft_model import DraftModel, draft_loss
from latent_models.speculative.verification import SpeculativeLoop
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.cached_latents import EncodedSplit
from pipelines.steps.autoencoder import LatentAugmentation
from pipelines.steps.describe import describe_rows
from utils.records import Latents

METRICS = ("loss", "token_accuracy", "exact_match", "verify_passes")  # metrics of evaluate_draft


class DraftModelStep:
    """(step, micro) -> losses (b,) in nats per token, and no values to log."""

    def __init__(
        self,
        space: CompressedSpace,
        draft_model: nn.Module,
        data: EncodedSplit,
        batch_sampler: BatchSampler,
        augmentation: LatentAugmentation,
    ) -> None:
        """draft_model: memory (B, S, d_lm) -> hidden states; wrapped in DDP, or the module itself."""
        self.space, self.draft_model, self.data, self.batch_sampler = space, draft_model, data, batch_sampler
        self.augmentation = augmentation

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.data.tokens), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.batch_sampler.rows(step, micro, len(self.data.tokens))
        x0 = self.data(rows).x0
        if self.augmentation:
            rng = self.batch_sampler.rng(step, micro, x0.device)
            x0 = self.augmentation.sample(self.space, rng, x0.device)(x0)
        return self.losses(rows, self.memory(x0)), {}

    @torch.no_grad()
    def memory(self, x0: Tensor) -> Tensor:
        """The states (B, S, d_lm) that the language model's decoder attends to. x0: latents (B, L, D)."""
        return self.space.memory(Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device)))

    def losses(self, rows: Tensor, memory: Tensor) -> Tensor:
        """Cross-entropy (b,) of the texts of some rows, in nats per token."""
        batch = self.data.tokens.batch(rows).to(memory.device)
        nll = draft_loss(self.space.language_model.model, self.draft_model(memory), batch.input_ids)
        return (nll * batch.attention_mask).sum(1) / batch.attention_mask.sum(1).clamp(min=1)


@torch.no_grad()
def evaluate_draft(step: DraftModelStep, draft_model: DraftModel, micro: int) -> dict[str, Tensor]:
    """METRICS of the texts of a micro-batch, (b,) each, on latents without noise.

    token_accuracy, exact_match: share of the tokens, and of the texts, that equal those of greedy decoding, the end
    token included. verify_passes: forward passes of the language model per text, where decoding token by token needs
    one for each token.
    """
    model = step.space.language_model
    rows = step.batch_sampler.rows(0, micro, len(step.data.tokens))
    memory = step.memory(step.data(rows).x0)
    draft = draft_model.draft_ids(model.model, memory)
    loop = SpeculativeLoop(draft_model)
    generated = model.generate_ids(memory, None, draft_model.max_seq_len, greedy_loop=loop, **DECODING["greedy"])
    greedy = nn.utils.rnn.pad_sequence([ids[1:] for ids in generated], batch_first=True, padding_value=model.pad_id)
    greedy = greedy[:, : draft.shape[1]]
    mask = greedy != model.pad_id
    correct = (draft[:, : greedy.shape[1]] == greedy) & mask
    passes_per_text = loop.stats.passes / max(1, loop.stats.texts)
    return {
        "loss": step.losses(rows, memory),
        "token_accuracy": correct.sum(1) / mask.sum(1).clamp(min=1),
        "exact_match": (correct | ~mask).all(1).float(),
        "verify_passes": torch.full((len(rows),), passes_per_text, device=memory.device),
    }
