"""A pretrained encoder-decoder language model with its tokenizer: tokens to states, and back. Latents and noise are
outside this module.

The transformers model is a submodule rather than a base class: with a subclass, `from_pretrained` of transformers 5
silently leaves parameters of one's own uninitialized.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging

from latent_models.attention import BOOLEAN_MASKS, choose_kernels
from latent_models.cross_entropy import chunked_nll
from latent_models.families import MODEL_FLAG, DecodingStart, family_of, resolve_language, set_language
from latent_models.generation.generator import GreedyLoop, TokenGenerator
from latent_models.half_precision import HalfPrecisionCopy, half_dtype
from latent_models.output_layer import logits_of, output_layer, scale_hidden
from latent_models.tokenizers.special_ids import filler_id, largest_id
from utils.checkpoints import fingerprint
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs
from utils.sharding import is_sharded
from utils.tokenizer_fingerprint import tokenizer_rules

logging.disable_progress_bar()  # bars of loading and saving would interrupt our own progress lines


class LanguageModel(nn.Module):
    """An encoder-decoder model with its tokenizer.

    A frozen model has no gradients and stays in eval mode, even if the module around it is in training mode.
    Differs from the reference, which leaves dropout on in a frozen model: that only adds noise to the targets.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, frozen: bool = True, language: str | None = None) -> None:
        """name: folder or hub id, for messages. language: language of the texts, for models with language codes: a code
        of the tokenizer (de_DE), or its first part (de)."""
        super().__init__()
        self.family = family_of(model.config, name)
        self.model = model
        tokenizer.split_special_tokens = True  # "</s>" in a text is text
        self.tokenizer = tokenizer
        self.name = name
        choose_kernels(model)
        self.dim: int = self.family.dim(model.config)
        self.language = resolve_language(tokenizer, language, name)  # None: no language codes
        start = set_language(tokenizer, self.language) if self.language else DecodingStart()
        self.forced_bos_id = start.forced_bos_id
        start_id = start.start_id
        if start_id is None:
            start_id = getattr(model.config, "decoder_start_token_id", None)
        if start_id is None:
            raise UserError(
                f"{name} does not define the token that decoding starts with: add decoder_start_token_id to its "
                "config.json"
            )
        self.start_id: int = start_id
        self.pad_id: int = tokenizer.pad_token_id
        self.chunked_loss = True  # False: logits of a whole batch at once (--config whole_logits=true)
        self.token_generator = TokenGenerator()
        self._half = HalfPrecisionCopy()
        self.frozen = frozen
        if frozen:
            model.requires_grad_(False)
            model.eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        frozen: bool = True,
        meta: bool = False,
        language: str | None = None,
        flag: str = MODEL_FLAG,
    ) -> Self:
        """Load a model from a local folder or the hub, and convert it to float32.

        meta: on the meta device, without weights, for a dry run. language: see __init__. flag: the flag that named it,
        for messages. Raises UserError, in one line, if the folder or hub id holds no such model, weights are missing,
        or the tokenizer does not match.
        """
        local = _is_folder(name, flag)
        where: dict[str, Any] = dict(trust_remote_code=False, **({} if local else hub_kwargs()))
        try:
            with _quiet():
                config = AutoConfig.from_pretrained(name, **where)
                family_of(config, name, flag)
                tokenizer = AutoTokenizer.from_pretrained(name, **where)
                check_tokenizer(tokenizer, config, name)
                model = _on_meta_device(config) if meta else _with_weights(name, where, flag)
        except BaseException as error:
            if not is_of_a_library(error):
                raise
            if local or not isinstance(error, OSError):
                raise UserError(
                    f"{flag} {name} cannot be read ({reason(error)}): give the folder of a whole Hugging Face "
                    "model with its tokenizer, as save_pretrained writes it (weights as safetensors)"
                ) from error
            raise UserError(
                f"{flag} {name} is neither a local folder nor in the local cache, and the hub cannot be "
                "reached or does not have it: give a local folder, for example one written by python -m "
                "latent_models.pretraining"
            ) from error
        return cls(model, tokenizer, name, frozen, language)

    def save_pretrained(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder of model and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def train(self, mode: bool = True) -> LanguageModel:
        """As for any module, but a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def encoder(self) -> nn.Module:
        """The part that encodes texts."""
        return self.model.get_encoder()

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens, or None where there is no limit."""
        return self.family.max_length(self.model.config)

    def fingerprint(self) -> str:
        """Hash of the weights, the vocabulary, the tokenizer's merges and normalizer, and the language if there is
        one."""
        vocabulary = self.tokenizer.get_vocab()
        parts = [f"{k}\0{v}" for k, v in sorted(vocabulary.items())]
        rules = tokenizer_rules(self.tokenizer)
        parts += [rules] if rules else []
        parts += [f"language {self.language}"] if self.language else []
        table = torch.tensor([stable_hash(part) for part in parts], dtype=torch.int64)
        return fingerprint({"vocabulary": table, **self.model.state_dict()})

    def tokenize(self, texts: list[str], max_length: int) -> BatchEncoding:
        """Ids and mask (B, T) of texts, padded to the longest and truncated at max_length tokens."""
        return self.tokenizer(texts, max_length=max_length, truncation=True, padding=True, return_tensors="pt")

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T) ids -> encoder states (B, T, d_lm); no gradient where the model is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen), self._stable_precision():
            encoder = self._computing_encoder()
            return encoder(input_ids=input_ids, attention_mask=self._expand_mask(mask)).last_hidden_state

    def _decoder_input(self, labels: Tensor, hidden: Tensor | None) -> Tensor:
        """The ids (B, T) that the decoder reads to predict labels. hidden: (B, T) bool, inputs that are masked."""
        start = labels.new_full((len(labels), 1), self.start_id)
        ids = torch.cat([start, labels[:, :-1]], dim=1)
        if hidden is None:
            return ids
        return torch.cat([start, ids[:, 1:].masked_fill(hidden[:, 1:], filler_id(self.tokenizer))], dim=1)

    def logits(
        self, states: Tensor, states_mask: Tensor | None, labels: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits (B, T, V) of `labels` (B, T) given what the decoder attends to.

        states: (B, S, d_lm); states_mask: (B, S), None where all of them may be attended to. hidden: (B, T) bool,
        inputs of the decoder that a mask token replaces; never the first one.
        """
        decoder_input = self._decoder_input(labels, hidden)
        with self._stable_precision():
            return self._computing_model()(
                encoder_outputs=BaseModelOutput(last_hidden_state=states.to(self.model.dtype)),
                attention_mask=states_mask,
                decoder_input_ids=decoder_input,
            ).logits

    def reconstruction_loss(
        self,
        states: Tensor,
        states_mask: Tensor | None,
        labels: Tensor,
        mask: Tensor,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of the decoder (B,), in nats per token of each text; labels, mask: (B, T); hidden: see logits.

        Differs from the reference, which averages over the tokens of a batch: here each text counts once, so the loss
        does not depend on how a batch is split.
        """
        if self.chunked_loss:
            nll = self.token_nll(self.decoder_states(states, states_mask, labels, hidden), labels)
        else:
            logits = self.logits(states, states_mask, labels, hidden)
            nll = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # (B, T)
        return (nll * mask).sum(1) / mask.sum(1).clamp(min=1)

    def decoder_states(
        self, states: Tensor, states_mask: Tensor | None, labels: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """The decoder's last states (B, T, d_lm): that of position i has read the labels (B, T) before i, but for those
        that are hidden, see logits."""
        length = labels.shape[1]
        decoder_input = self._decoder_input(labels, hidden)
        model = self.model
        with self._stable_precision():
            return (
                self._computing_model()
                .get_decoder()(
                    input_ids=decoder_input,
                    encoder_hidden_states=states.to(model.dtype),
                    attention_mask=self._expand_mask(torch.ones(1, length, length, device=labels.device).tril()),
                    encoder_attention_mask=None if states_mask is None else self._expand_mask(states_mask),
                    use_cache=False,
                )
                .last_hidden_state
            )

    def token_nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (B, T) of labels given the decoder's last states (B, T, d_lm), in chunks of tokens: logits
        (B, T, V) are never all in memory."""
        with self._stable_precision():
            hidden = scale_hidden(self.model, hidden)
            weight, bias = output_layer(self._computing_model())
            kind = labels.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
            with torch.autocast(kind, enabled=False):
                nll = chunked_nll(hidden.flatten(0, 1).to(dtype), weight.to(dtype), bias, labels.flatten())
        return nll.view(labels.shape)

    def logits_of_states(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the decoder's last states (..., d_lm)."""
        with self._stable_precision():
            return logits_of(self._computing_model(), hidden)

    def _expand_mask(self, mask: Tensor) -> Tensor:
        """A mask (B, S) or (B, T, S) as (B, 1, 1 or T, S), boolean for sdpa, else additive.

        transformers would expand it too, but it first checks whether any position is hidden, which synchronizes with
        the device at every step.
        """
        visible = mask.bool()[:, None, None] if mask.ndim == 2 else mask.bool()[:, None]  # (B, 1, 1 or T, S)
        if self.model.config._attn_implementation in BOOLEAN_MASKS:
            return visible
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill(~visible, torch.finfo(dtype).min)

    def forward(self, corrupted_ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Loss (B,) of denoising pretraining: the encoder reads corrupted_ids (B, T), the decoder predicts labels."""
        return self.reconstruction_loss(self.encode(corrupted_ids, mask), mask, labels, mask)

    @torch.no_grad()
    def generate(
        self,
        states: Tensor,
        states_mask: Tensor | None = None,
        max_length: int = 64,
        *,
        greedy_loop: GreedyLoop | None = None,
        **decoding: Any,
    ) -> list[str]:
        """Texts (B,) decoded from what the decoder attends to, stripped of whitespace; a text may be empty.

        states: (B, S, d_lm); states_mask: (B, S), None where all of them may be attended to. max_length: tokens.
        greedy_loop: a faster loop for greedy decoding. decoding: arguments of transformers' generate, see
        generation/decoding.py.
        """
        ids = self.generate_ids(states, states_mask, max_length, greedy_loop=greedy_loop, **decoding)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def generate_ids(
        self,
        states: Tensor,
        states_mask: Tensor | None = None,
        max_length: int = 64,
        *,
        greedy_loop: GreedyLoop | None = None,
        **decoding: Any,
    ) -> list[Tensor]:
        """The ids that `generate` turns into text, with the start token and possibly padding."""
        decoding["min_length"] = min(decoding.get("min_length", 0), max_length)
        if self.language:
            decoding["decoder_start_token_id"] = self.start_id
            if self.forced_bos_id is not None:
                decoding["forced_bos_token_id"] = self.forced_bos_id
        decoding["max_length"] = max_length + 1  # the start token is not part of the text
        with self._stable_precision():
            return self.token_generator.generate_ids(self.model, states, states_mask, decoding, greedy_loop)

    def check_fingerprint(self, expected: str | None, run: Path) -> None:
        """UserError if a run was trained with another language model. expected: its fingerprint, None if unknown."""
        if expected and self.fingerprint() != expected:
            raise UserError(
                f"{self.name} is not the language model that {run} was trained with (other weights or vocabulary): "
                "give the folder of that one with --enc_dec_model"
            )

    def _computing_model(self) -> Any:
        """The model; under autocast the copy of a frozen one with linear layers in half precision."""
        dtype = half_dtype(self.device.type)
        if not self.frozen or dtype is None or is_sharded(self.model):
            return self.model
        return self._half.of(self.model, dtype)

    def _computing_encoder(self) -> Any:
        """As _computing_model, for the encoder, which may be frozen although the decoder trains (--lm_mode decoder)."""
        if self.frozen:
            return self._computing_model().get_encoder()
        encoder, dtype = self.encoder, half_dtype(self.device.type)
        trains = encoder.training or any(p.requires_grad for p in encoder.parameters())
        return encoder if trains or dtype is None or is_sharded(self.model) else self._half.of(encoder, dtype)

    def _stable_precision(self) -> AbstractContextManager[Any]:
        """Disables autocast where the states of this family overflow in its dtype."""
        device = self.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in self.family.unsafe_dtypes:
            return torch.autocast(device, enabled=False)
        return nullcontext()


def stable_hash(text: str) -> int:
    """A 63-bit hash of a string that is the same in every process, unlike Python's own."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _is_folder(name: str, flag: str) -> bool:
    """True for a folder that holds a model, False for a possible hub id; UserError for anything else."""
    folder = Path(name)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return True
        raise UserError(
            f"{flag} {name} holds no config.json: give the folder of a Hugging Face model, "
            "as save_pretrained or python -m latent_models.pretraining writes it"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or len(name) > 200:
        raise UserError(f"{flag} {name}: no such folder, and it is not of the form owner/name of a hub id")
    return False


def _on_meta_device(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)


def _with_weights(name: str, where: dict[str, Any], flag: str) -> Any:
    """UserError for missing or mismatched weights, which transformers would silently initialize at random."""
    model, found = AutoModelForSeq2SeqLM.from_pretrained(
        name,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that `found` lists them, like the missing ones
        **where,
    )
    # keyed by parameters: buffers that old files lack, such as BART's final_logits_bias, are constants
    missing = sorted(set(found["missing_keys"]) & {key for key, _ in model.named_parameters()})
    if missing:
        raise UserError(
            f"{flag} {name} lacks {len(missing)} weights that its config.json requires, such as {missing[0]}: "
            "weights and config.json are not of the same model"
        )
    if found["mismatched_keys"]:
        key, saved, asked = sorted(found["mismatched_keys"])[0]
        raise UserError(
            f"{flag} {name} holds {key} of shape {list(saved)}, but its config.json requires {list(asked)}: "
            "weights and config.json are not of the same model"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off transformers' loading report; our errors give its important parts in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    """UserError if a tokenizer does not belong to the model."""
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token")
    vocabulary, largest = tokenizer.get_vocab(), largest_id(tokenizer, config.vocab_size)
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokenizer of {name} has token ids up to {largest}, but the model's vocabulary holds "
            f"{config.vocab_size}: they are not of the same model"
        )
    # where the files of a tokenizer are absent, transformers silently makes one of a few special tokens
    if len(vocabulary) < config.vocab_size / 2:
        raise UserError(
            f"the tokenizer of {name} has {len(vocabulary)} tokens, but the model's vocabulary holds "
            f"{config.vocab_size}: its files are absent or of another model"
        )
    for role in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, role), getattr(config, role, None)
        if theirs is not None and ours != (theirs[0] if isinstance(theirs, list) else theirs):
            raise UserError(
                f"the tokenizer of {name} has {role} {ours}, but its model {theirs}: they are not of the same model"
            )


def reason(error: BaseException) -> str:
    """The error of a library in one line, without advice to run the code of a file: see utils.errors."""
    return library_message(error)
