"""A causal language model as the decoder of latents: it goes on from prefix vectors that are made of them.

    start | prefix vectors of (z, sigma) | text | end        z = sqrt(1 - sigma^2) x0 + sigma eps

Only the text and its end count in the loss, and are generated. The start comes first, as in pretraining: its state is
large, and all later tokens attend to it. Prefix vectors in its place have to become such a state, and their gradients
in bfloat16 then point away from those in float32 (SmolLM2-135M, before training: cosine -.6, and .8 behind the start).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.causal.generation import DecoderSettings, generate_ids
from latent_models.causal.half_weights import HalfWeights
from latent_models.causal.model import CausalLM
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix import PrefixNetwork
from latent_models.causal.sequences import CausalBatch
from utils.errors import UserError
from utils.seeding import derive_seed

FLAG = "--decoder_model"


class PrefixDecoder(nn.Module):
    """A causal language model, and the network that turns latents into its prefix."""

    def __init__(self, lm: CausalLM, prefix: PrefixNetwork) -> None:
        super().__init__()
        self.lm, self.prefix = lm, prefix
        # in place of input tokens that --token_dropout hides: it starts as their mean
        mean = lm.model.get_input_embeddings().weight.detach().mean(0)
        self.hidden_token = nn.Parameter(mean.clone())
        self.generation_dtype = "run"  # "run", "fp32" or "bf16", see GenerationOptions
        self._half = HalfWeights()
        self._ready: tuple[Any, Any] | None = None  # version of the weights, the model that generates

    @classmethod
    def build(
        cls,
        options: TextDecoderOptions,
        length: int,
        dim: int,
        max_seq_len: int,
        *,
        seed: int = 0,
        name: str | None = None,
        meta: bool = False,
    ) -> PrefixDecoder:
        """A decoder to train, or to load weights into. length, dim: L and D of the latents it reads.

        max_seq_len: longest text in tokens, start and end included. name: where the language model is now, if not
        where options.decoder_model says. meta: on the meta device, without weights. Raises UserError if it cannot be
        loaded, or has too few positions.
        """
        assert options.decoder_model is not None, "a text decoder has a language model"
        lm = CausalLM.from_pretrained(name or options.decoder_model, meta=meta, flag=FLAG)
        with torch.device("meta") if meta else nullcontext():
            made = cls._around(lm, options, length, dim, seed)
        made.check_length(max_seq_len)
        return made

    @classmethod
    def _around(cls, lm: CausalLM, options: TextDecoderOptions, length: int, dim: int, seed: int) -> PrefixDecoder:
        if options.decoder_mode == "lora":
            torch.manual_seed(derive_seed(seed, "adapters"))
            lm.add_adapters(options.lora_rank, options.lora_alpha)
            lm.keep_input_dtype()
        else:
            lm.requires_grad_(options.decoder_mode == "ft")
        torch.manual_seed(derive_seed(seed, "prefix"))
        width = lm.model.get_input_embeddings().weight.shape[1]
        made = cls(lm, PrefixNetwork(length, dim, width, options.num_prefix_tokens))
        made.hidden_token.requires_grad_(options.token_dropout > 0)
        return made

    def check_length(self, max_seq_len: int) -> None:
        """UserError if the prefix and the longest text are longer than the language model allows."""
        limit, needed = self.lm.max_length, self.prefix.num_tokens + max_seq_len
        if limit is not None and needed > limit:
            raise UserError(
                f"{self.prefix.num_tokens} prefix vectors and a text of --max_seq_len {max_seq_len} tokens are more "
                f"than the {limit} positions of {FLAG} {self.lm.name}: lower --max_seq_len or --num_prefix_tokens"
            )

    @property
    def device(self) -> torch.device:
        return self.prefix.scale.device

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        input_ids: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each text given its latents, in nats, summed over its tokens: (B,) float32.

        latents: z (B, L, D), noised by sigma (B,). mask: (B, L) bool, True at latents of the text; None: everywhere.
        input_ids, targets: see CausalBatch. hidden: (B, T) bool, input tokens that a mask replaces (Bowman et al. 2016,
        arXiv:1511.06349, word dropout); the start is never one of them.
        """
        lm = self.lm
        words = lm.model.get_input_embeddings()(input_ids)  # (B, T, W)
        if hidden is not None:
            hidden = hidden & (torch.arange(input_ids.shape[1], device=input_ids.device) > 0)
            words = torch.where(hidden[..., None], self.hidden_token.to(words), words)
        prefix, prefix_mask = self.prefix(latents, mask, sigma)
        inputs = torch.cat([words[:, :1], prefix.to(words), words[:, 1:]], 1)
        where: dict[str, Any] = {}
        if prefix_mask is not None:
            present = torch.ones_like(input_ids, dtype=torch.bool)
            everywhere = torch.cat([present[:, :1], prefix_mask, present[:, 1:]], 1).long()
            where = {"attention_mask": everywhere, "position_ids": (everywhere.cumsum(1) - 1).clamp(min=0)}
        with self._frozen_in_half(), self._attention(inputs.shape[1]):
            out = lm.model.base_model(inputs_embeds=inputs, use_cache=False, **where)
            # (B, T, W), padded on the right; that of the last prefix vector in place of that of the start
            states = out.last_hidden_state[:, prefix.shape[1] :]
            nll = lm._token_nll(states.flatten(0, 1)[targets - 1], input_ids.flatten()[targets])
        return nll.new_zeros(input_ids.numel()).index_put((targets,), nll).view(input_ids.shape).sum(1)

    def nll(self, latents: Tensor, sigma: Tensor, batch: CausalBatch, mask: Tensor | None = None) -> Tensor:
        """As forward, for a batch on any device."""
        batch = batch.to(self.device)
        return self(latents, sigma, batch.input_ids, batch.targets, mask)

    @torch.no_grad()
    def generate(
        self,
        latents: Tensor,
        sigma: Tensor,
        mask: Tensor | None = None,
        *,
        max_length: int,
        draw_rows: tuple[int, int] | None = None,
        **decoding: Any,
    ) -> list[str]:
        """Texts (B,) of latents (B, L, D) that are noised by sigma (B,); a text may be empty.

        max_length: longest text in tokens, start and end included. draw_rows: (first, size): these rows are those from
        `first` on of a larger batch of `size`, and draw its random numbers; they come from the default generator of
        torch on the CPU. decoding: arguments of transformers' generate, see DecoderSettings.
        """
        settings = DecoderSettings.of(decoding)
        prefix, prefix_mask = self.prefix(latents.to(self.prefix.scale.dtype), mask, sigma)
        with torch.autocast(latents.device.type, enabled=False):  # the model is in its dtype already
            model = self._generating_model(self._dtype(latents.device.type))
            ids = generate_ids(
                model,
                self.lm.boundaries,
                prefix.to(model.dtype),
                prefix_mask,
                settings,
                max_new_tokens=max_length - 1,
                vocabulary=len(self.lm.tokenizer),
                draw_rows=draw_rows,
            )
        return self.lm.decode(ids)

    def _dtype(self, kind: str) -> torch.dtype:
        if self.generation_dtype != "run":
            return torch.bfloat16 if self.generation_dtype == "bf16" else torch.float32
        is_half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        return torch.bfloat16 if is_half else torch.float32

    def _generating_model(self, dtype: torch.dtype) -> Any:
        """The language model with its adapters merged into the weights, in this dtype: a copy, unless it is that.

        Made again when the weights have changed. Fused optimizers do not change versions, so trained weights are
        compared by their sums.
        """
        lm = self.lm
        if not lm.has_adapters and dtype == next(lm.model.parameters()).dtype:
            return lm.model
        trained = [p for p in lm.parameters() if p.requires_grad]
        sums = torch.stack([p.detach().double().sum() for p in trained]).tolist() if trained else []
        version = (dtype, sums, [(id(p), p._version, p.device) for p in lm.parameters()])
        if self._ready is None or self._ready[0] != version:
            self._ready = None  # before the next one is made: each takes as much memory as the model
            self._ready = version, lm.merged_model().requires_grad_(False).to(dtype).eval()
        return self._ready[1]

    def free_copies(self) -> None:
        """Drop the copy that generates; it is made again when needed."""
        self._ready = None

    def _attention(self, length: int) -> AbstractContextManager[None]:
        """Context manager: under autocast on a CPU, short texts are attended to as short_attention.py describes."""
        from latent_models.causal.short_attention import LONGEST, short_texts

        if self.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or length > LONGEST:
            return nullcontext()
        return short_texts(self.lm.model)

    def _frozen_in_half(self) -> AbstractContextManager[None]:
        """Context manager: under autocast, frozen weights are held in its dtype instead of being cast at every step."""
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if dtype not in (torch.bfloat16, torch.float16):
            return nullcontext()
        return self._half.used(self.lm.model, dtype)
