"""A causal language model with its tokenizer: pretrained or from scratch, all weights or LoRA adapters.

The transformers model is a submodule rather than a base class, as in latent_models/language_models.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.causal.adapters import WithAdapters
from latent_models.causal.boundaries import boundaries_of
from latent_models.causal.half_weights import HalfWeights
from latent_models.causal.options import CausalModelOptions
from latent_models.causal.sequences import CausalBatch
from latent_models.cross_entropy import chunked_nll
from latent_models.key_value_cache import CACHE
from latent_models.output_layer import output_layer
from latent_models.tokenizers.special_ids import largest_id
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs, quiet_transformers
from utils.local_models import check_intact

FLAG = "--model"


class CausalLM(WithAdapters, nn.Module):
    """A causal language model, its tokenizer, and the tokens around a text."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        """model: a model of transformers with logits. name: folder or hub id, for messages."""
        super().__init__()
        tokenizer.split_special_tokens = True  # "<|endoftext|>" in a text is text
        self.model, self.tokenizer, self.name = model, tokenizer, name
        largest = largest_id(tokenizer, model.config.vocab_size)
        if largest >= model.config.vocab_size:
            raise UserError(
                f"the tokenizer of {name} has token ids up to {largest}, but the model's vocabulary holds "
                f"{model.config.vocab_size}: they are not of the same model"
            )
        self.boundaries = boundaries_of(tokenizer, model.config, name)
        self._half = HalfWeights()  # of the weights that adapters leave frozen

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens, None where the configuration names none."""
        config = self.model.config
        return getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None)

    @classmethod
    def from_pretrained(cls, name: str, *, meta: bool = False, flag: str = FLAG) -> CausalLM:
        """Load a model from a local folder or the hub, in float32.

        meta: on the meta device, without weights, for a dry run. flag: the flag that named it, for messages. Raises
        UserError, in one line, if there is no causal language model, or weights are missing.
        """
        import transformers

        path = Path(name)
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError(f"{flag} {name} holds no config.json: give the folder of a causal language model")
        if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise UserError(f"{flag} {name}: there is no such folder: give a folder or a hub id")
        check_intact(path, flag)
        where: dict[str, Any] = {"trust_remote_code": False} | ({} if path.is_dir() else hub_kwargs())
        try:
            with quiet_transformers():
                config = transformers.AutoConfig.from_pretrained(name, **where)
                if getattr(config, "is_encoder_decoder", False):
                    raise UserError(
                        f"{flag} {name} is an encoder-decoder ({config.model_type}): give a causal language model, "
                        "such as GPT-2, Llama or Qwen"
                    )
                tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
                model = _empty(config) if meta else _with_weights(name, flag, where)
        except BaseException as error:
            if isinstance(error, UserError) or not is_of_a_library(error):
                raise
            hint = "" if path.is_dir() else ", where the hub is reachable, or a local folder"
            raise UserError(
                f"{flag} {name} cannot be loaded ({library_message(error)}): give a causal language model{hint}"
            ) from error
        made = cls(model, tokenizer, name)
        if not meta:
            made.eval()
            _check_causal(made.model, f"{flag} {name}")
            _check_cache(made.model, f"{flag} {name}")
        return made

    @classmethod
    def from_scratch(cls, options: CausalModelOptions, tokenizer: Any, positions: int, name: str) -> CausalLM:
        """A GPT-2 with fresh weights, on the default device of torch. positions: longest sequence in tokens."""
        from transformers import GPT2Config, GPT2LMHeadModel

        if options.d_model % options.heads:
            raise UserError(f"--d_model {options.d_model} is not a multiple of --heads {options.heads}")
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=positions,
            n_embd=options.d_model,
            n_layer=options.layers,
            n_head=options.heads,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            resid_pdrop=options.lm_dropout,
            embd_pdrop=options.lm_dropout,
            attn_pdrop=options.lm_dropout,
        )
        return cls(GPT2LMHeadModel(config), tokenizer, name)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each text given its prompt, in nats, summed over its tokens: (B,) float32.

        input_ids: (B, T), padded on the right, which no token attends to. targets: (N,), see CausalBatch.
        """
        everywhere = torch.ones_like(input_ids)  # padding is on the right: no token that counts attends to it
        with self._half.under_autocast(self.model), self.attention_for(input_ids.shape[1]):
            out = self.model.base_model(input_ids=input_ids, attention_mask=everywhere, use_cache=False)
            hidden = out.last_hidden_state  # (B, T, d)
            nll = self._token_nll(hidden.flatten(0, 1)[targets - 1], input_ids.flatten()[targets])
        of_tokens = nll.new_zeros(input_ids.numel()).index_put((targets,), nll)
        return of_tokens.view(input_ids.shape).sum(1)

    def attention_for(self, length: int) -> AbstractContextManager[None]:
        """Context manager: under autocast on a CPU, short texts are attended to as short_attention.py describes.

        length: of the longest text, in tokens.
        """
        from latent_models.causal.short_attention import LONGEST, short_texts

        on_cpu = next(self.parameters()).device.type == "cpu"
        if not on_cpu or not torch.is_autocast_enabled("cpu") or length > LONGEST:
            return nullcontext()
        return short_texts(self.model)

    def _token_nll(self, states: Tensor, labels: Tensor) -> Tensor:
        """(N, d), (N,) -> (N,)."""
        weight, bias = output_layer(self.model)
        kind = labels.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            return chunked_nll(states.to(dtype), weight.to(dtype), bias, labels)

    def nll(self, batch: CausalBatch) -> Tensor:
        """As forward, for a batch on any device."""
        batch = batch.to(next(self.parameters()).device)
        return self(batch.input_ids, batch.targets)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Texts of token ids, without special tokens, stripped."""
        decode = self.tokenizer.decode
        return [decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() for row in ids]


def _empty(config: Any) -> Any:
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _with_weights(name: str, flag: str, where: dict[str, Any]) -> Any:
    """UserError for missing weights, which transformers would silently initialize at random."""
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, **where
    )
    missing = sorted(set(found["missing_keys"]) & {key for key, _ in model.named_parameters()})
    if missing:
        raise UserError(
            f"{flag} {name} lacks {len(missing)} weights of a causal language model, such as {missing[0]}: name another"
        )
    return model


@torch.no_grad()
def _check_causal(model: Any, what: str) -> None:
    """UserError if a token depends on later ones, or if the logits are not those of a plain output layer."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=next(model.parameters()).device)
    out = model(input_ids=ids, output_hidden_states=False)
    logits = out.logits[:, 1].float()
    if not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4):
        raise UserError(f"{what} is not a causal language model: its logits depend on later tokens; name another")
    weight, bias = output_layer(model)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, 1]
    plain = hidden @ weight.t() + (0 if bias is None else bias)
    if not torch.allclose(plain, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise UserError(
            f"{what} scales its logits, which is not supported ({model.config.model_type}): give a model of another "
            "family, such as GPT-2, Llama or Qwen"
        )


@torch.no_grad()
def _check_cache(model: Any, what: str) -> None:
    """UserError if a model keeps no keys and values of earlier tokens, from which finished texts can be dropped."""
    ids = torch.tensor([[0, 1, 2]], device=next(model.parameters()).device)
    cache = model(input_ids=ids, use_cache=True, return_dict=True).get(CACHE)
    if not hasattr(cache, "batch_select_indices"):
        raise UserError(
            f"{what} has no cache of keys and values, with which texts are generated ({model.config.model_type}): give "
            "a model of another family, such as GPT-2, Llama or Qwen"
        )
