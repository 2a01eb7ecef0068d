"""What decoders of latents have in common: a language model, a network that makes vectors of latents for it, what of
them trains, and their precision.

How the language model reads the vectors is that of each kind: see prefix_decoder and memory_decoder.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from latent_models.causal.half_weights import HalfWeights
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix import PrefixNetwork
from latent_models.causal.sequences import CausalBatch
from utils.float64 import widened
from utils.seeding import derive_seed

FLAG = "--decoder_model"


class LatentDecoder(nn.Module):
    """A language model that writes texts, given vectors that a network makes of latents and their noise level.

    A kind of decoder defines __init__(lm, network), check_length, forward and generate.
    """

    language_model: ClassVar[Any]  # class of the language models of this kind
    lm: Any

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm
        self.generation_dtype = "run"  # "run", "fp32" or "bf16", see GenerationOptions
        self._half = HalfWeights()
        self._computing: list[nn.Module] = [lm.model]  # what of it computes; in a list, since it is registered already
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
    ) -> Self:
        """A decoder to train, or to load weights into. length, dim: L and D of the latents it reads.

        max_seq_len: longest text in tokens, start and end included. name: where the language model is now, if not
        where options.decoder_model says. meta: on the meta device, without weights. Raises UserError if it cannot be
        loaded, or has too few positions.
        """
        assert options.decoder_model is not None, "a text decoder has a language model"
        lm = cls.language_model.from_pretrained(name or options.decoder_model, meta=meta, flag=FLAG)
        with torch.device("meta") if meta else nullcontext():
            made = cls._around(lm, options, length, dim, seed)
        made.check_length(max_seq_len, options.source_prompt)
        return made

    @classmethod
    def _around(cls, lm: Any, options: TextDecoderOptions, length: int, dim: int, seed: int) -> Self:
        if options.decoder_mode == "lora":
            torch.manual_seed(derive_seed(seed, "adapters"))
            lm.add_adapters(options.lora_rank, options.lora_alpha)
        else:
            lm.requires_grad_(False)
            if options.decoder_mode == "ft":
                lm.train_all()
        torch.manual_seed(derive_seed(seed, "prefix"))
        width = lm.model.get_input_embeddings().weight.shape[1]
        return cls(lm, PrefixNetwork(length, dim, width, options.num_prefix_tokens))  # type: ignore[call-arg]

    def check_length(self, max_seq_len: int, source_prompt: bool = False) -> None:
        """UserError if the longest text has more tokens than the language model allows.

        source_prompt: a source of as many tokens comes before it.
        """
        raise NotImplementedError

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
        arXiv:1511.06349, word dropout); what comes before the text is never one of them.
        """
        raise NotImplementedError

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
        """Texts (B,) of latents (B, L, D) that are noised by sigma (B,); a text may be empty.

        max_length: longest text in tokens, start and end included. draw_rows: (first, size): these rows are those from
        `first` on of a larger batch of `size`, and draw its random numbers; they come from the default generator of
        torch on the CPU. prompt: (B, P) int64, tokens between latents and text, -1 before them; None: none. decoding:
        arguments of transformers' generate, see DecoderSettings.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def nll(self, latents: Tensor, sigma: Tensor, batch: CausalBatch, mask: Tensor | None = None) -> Tensor:
        """As forward, for a batch on any device."""
        batch = batch.to(self.device)
        return self(latents, sigma, batch.input_ids, batch.targets, mask)

    def _dtype(self, kind: str) -> torch.dtype:
        """That in which the language model generates on a kind of device."""
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
        sums = torch.stack([widened(p.detach()).sum() for p in trained]).tolist() if trained else []
        version = (dtype, sums, [(id(p), p._version, p.device) for p in lm.parameters()])
        if self._ready is None or self._ready[0] != version:
            self._ready = None  # before the next one is made: each takes as much memory as the model
            self._ready = version, lm.merged_model().requires_grad_(False).to(dtype).eval()
        return self._ready[1]

    def free_copies(self) -> None:
        """Drop the copy that generates; it is made again when needed."""
        self._ready = None

    def _frozen_in_half(self) -> AbstractContextManager[None]:
        """Context manager: under autocast, frozen weights are held in its dtype instead of being cast at every step."""
        return self._half.under_autocast(self._computing[0])


def in_text(hidden: Tensor, targets: Tensor) -> Tensor:
    """Of hidden input tokens (B, T) those of the text: nothing before it is hidden. targets: (N,), see CausalBatch."""
    of_text = torch.zeros_like(hidden).flatten().index_fill_(0, targets, True).view_as(hidden)
    return hidden & of_text
