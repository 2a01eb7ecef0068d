"""A causal language model as the decoder of latents: it goes on from prefix vectors that are made of them.

    start | prefix vectors of (z, sigma) | text | end                        z = sqrt(1 - sigma^2) x0 + sigma eps
    start | prefix vectors of (z, sigma) | source | line break | text | end  with --source_prompt

Only the text and its end count in the loss, and are generated. The start comes first, as in pretraining: its state is
large, and all later tokens attend to it. Prefix vectors in its place have to become such a state, and their gradients
in bfloat16 then point away from those in float32 (SmolLM2-135M, before training: cosine -.6, and .8 behind the start).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from latent_models.causal.generation import DecoderSettings, generate_ids
from latent_models.causal.latent_decoder import FLAG, LatentDecoder, in_text
from latent_models.causal.model import CausalLM
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix import PrefixNetwork
from utils.errors import UserError


class PrefixDecoder(LatentDecoder):
    """A causal language model, and the network that turns latents into its prefix."""

    language_model = CausalLM

    def __init__(self, lm: CausalLM, prefix: PrefixNetwork) -> None:
        super().__init__(lm)
        self.prefix = prefix
        # in place of input tokens that --token_dropout hides: it starts as their mean
        mean = lm.model.get_input_embeddings().weight.detach().mean(0)
        self.hidden_token = nn.Parameter(mean.clone())

    @classmethod
    def _around(cls, lm: CausalLM, options: TextDecoderOptions, length: int, dim: int, seed: int) -> Self:
        made = super()._around(lm, options, length, dim, seed)
        made.hidden_token.requires_grad_(options.token_dropout > 0)
        return made

    def check_length(self, max_seq_len: int, source_prompt: bool = False) -> None:
        """UserError if the prefix and the longest texts have more positions than the language model allows."""
        limit, needed = self.lm.max_length, self.prefix.num_tokens + max_seq_len
        if source_prompt:
            needed += max_seq_len + len(self.lm.boundaries.between)
        if limit is not None and needed > limit:
            texts = "a source and a text" if source_prompt else "a text"
            raise UserError(
                f"{self.prefix.num_tokens} prefix vectors and {texts} of --max_seq_len {max_seq_len} tokens are more "
                f"than the {limit} positions of {FLAG} {self.lm.name}: lower --max_seq_len or --num_prefix_tokens"
            )

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        input_ids: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        lm = self.lm
        words = lm.model.get_input_embeddings()(input_ids)  # (B, T, W)
        if hidden is not None:
            words = torch.where(in_text(hidden, targets)[..., None], self.hidden_token.to(words), words)
        prefix, prefix_mask = self.prefix(latents, mask, sigma)
        inputs = torch.cat([words[:, :1], prefix.to(words), words[:, 1:]], 1)
        where: dict[str, Any] = {}
        if prefix_mask is not None:
            present = torch.ones_like(input_ids, dtype=torch.bool)
            everywhere = torch.cat([present[:, :1], prefix_mask, present[:, 1:]], 1).long()
            where = {"attention_mask": everywhere, "position_ids": (everywhere.cumsum(1) - 1).clamp(min=0)}
        with self._frozen_in_half(), lm.attention_for(inputs.shape[1]):
            out = lm.model.base_model(inputs_embeds=inputs, use_cache=False, **where)
            # (B, T, W), padded on the right; that of the last prefix vector in place of that of the start
            states = out.last_hidden_state[:, prefix.shape[1] :]
            nll = lm._token_nll(states.flatten(0, 1)[targets - 1], input_ids.flatten()[targets])
        return nll.new_zeros(input_ids.numel()).index_put((targets,), nll).view(input_ids.shape).sum(1)

    @torch.no_grad()
    def generate(
        self,
        latents: Tensor,
        sigma: Tensor,
        mask: Tensor | None = None,
        *,
        max_length: int,
        draw_rows: tuple[int, int] | None = None,
        prompt: Tensor | None = None,
        **decoding: Any,
    ) -> list[str]:
        settings = DecoderSettings.of(decoding)
        prefix, prefix_mask = self.prefix(latents.to(self.prefix.scale.dtype), mask, sigma)
        with torch.autocast(latents.device.type, enabled=False):  # the model is in its dtype already
            model = self._generating_model(self._dtype(latents.device.type))
            prefix = prefix.to(model.dtype)
            if prompt is not None:
                prefix, prefix_mask = _with_prompt(model, prefix, prefix_mask, prompt)
            ids = generate_ids(
                model,
                self.lm.boundaries,
                prefix,
                prefix_mask,
                settings,
                max_new_tokens=max_length - 1,
                vocabulary=len(self.lm.tokenizer),
                draw_rows=draw_rows,
            )
        return self.lm.decode(ids)


def _with_prompt(model: Any, prefix: Tensor, mask: Tensor | None, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix vectors (B, P, W) with the embeddings of a prompt (B, S) behind them, and the mask of both.

    Prompts end where the text begins: what is missing in a shorter one lies before it.
    """
    prompt = prompt[:, (prompt >= 0).any(0)]
    before = torch.ones(prefix.shape[:2], dtype=torch.bool, device=prefix.device) if mask is None else mask
    words = model.get_input_embeddings()(prompt.clamp(min=0)).to(prefix)
    return torch.cat([prefix, words], 1), torch.cat([before, prompt >= 0], 1)
