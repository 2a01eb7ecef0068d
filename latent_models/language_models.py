"""A pretrained encoder-decoder language model and its tokenizer, held rather than subclassed.

Subclassing with `from_pretrained` leaves one's own parameters uninitialised under transformers 5, without a word;
so the model is a part of this module, and this module is what the rest of the project sees. It knows tokens and states;
it knows neither latents nor noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging

from latent_models.families import family_of
from utils.checkpoints import fingerprint
from utils.errors import UserError

logging.disable_progress_bar()  # bars of loading and saving, between our own lines of progress


class LanguageModel(nn.Module):
    """An encoder-decoder model with its tokenizer.

    frozen: nothing trains, and the module stays in eval mode whatever its parents do: dropout in a frozen encoder would
    only blur the targets ("Differs from" the reference, which leaves it in train mode).
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, frozen: bool = True) -> None:
        super().__init__()
        self.family = family_of(model.config, name)
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.dim: int = self.family.dim(model.config)
        self.start_id = model.config.decoder_start_token_id
        if self.start_id is None:
            raise UserError(
                f"{name} does not say which token decoding starts with: add decoder_start_token_id to its config.json"
            )
        self.pad_id: int = tokenizer.pad_token_id
        self.frozen = frozen
        if frozen:
            model.requires_grad_(False)
            model.eval()

    def train(self, mode: bool = True) -> LanguageModel:
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens, or None where there is no limit."""
        return self.family.max_length(self.model.config)

    def fingerprint(self) -> str:
        """Hash of weights and vocabulary."""
        vocabulary = self.tokenizer.get_vocab()
        table = torch.tensor([hash_of(f"{k}\0{v}") for k, v in sorted(vocabulary.items())], dtype=torch.int64)
        return fingerprint({"vocabulary": table, **self.model.state_dict()})

    def tokenize(self, texts: list[str], max_length: int) -> BatchEncoding:
        """Ids and mask of texts, padded to the longest of them and cut at max_length."""
        return self.tokenizer(texts, max_length=max_length, truncation=True, padding=True, return_tensors="pt")

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T) ids -> encoder states (B, T, d_lm); no gradient where the model is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state

    def logits(self, states: Tensor, states_mask: Tensor | None, labels: Tensor) -> Tensor:
        """Teacher-forced logits (B, T, V) of `labels` (B, T) given what the decoder attends to."""
        start = labels.new_full((len(labels), 1), self.start_id)
        decoder_input = torch.cat([start, labels[:, :-1]], dim=1)
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=states_mask,
            decoder_input_ids=decoder_input,
        ).logits

    def reconstruction_loss(self, states: Tensor, states_mask: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of the decoder (B,), in nats per token of each text.

        Differs from the reference, which averages over the tokens of a batch: here each text counts once, so that the
        loss of a batch does not depend on how it is split.
        """
        logits = self.logits(states, states_mask, labels)
        nll = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # (B, T)
        return (nll * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, seen: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Loss (B,) of writing `labels` when the encoder sees `seen`, both (B, T): denoising pretraining."""
        return self.reconstruction_loss(self.encode(seen, mask), mask, labels, mask)

    @torch.no_grad()
    def generate(
        self, states: Tensor, states_mask: Tensor | None = None, max_length: int = 64, **decoding: Any
    ) -> list[str]:
        """Texts (B,) decoded from what the decoder attends to. decoding: arguments of transformers' generate."""
        decoding["min_length"] = min(decoding.get("min_length", 0), max_length)
        if states_mask is None:
            states_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        ids = self.model.generate(
            # a fresh output each call: generate expands it in place for beams
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=states_mask.long(),
            max_length=max_length + 1,  # the token that decoding starts from is not part of the text
            **decoding,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save(self, folder: Path) -> None:
        """An ordinary Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def hash_of(text: str) -> int:
    """A stable 63-bit number of a string; Python's own hash differs between processes."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def load_language_model(name: str, frozen: bool = True, *, empty: bool = False) -> LanguageModel:
    """A model from a local folder or the hub.

    empty: build it on the meta device, without weights (for a dry run of a large model).
    Raises UserError, in one line, where the folder or hub id gives no such model or its tokenizer does not match.
    """
    source = Path(name)
    if not source.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1 and "/" in name):
        raise UserError(f"--enc_dec_model {name}: no such folder, and it is not of the form owner/name of a hub id")
    if source.is_dir() and not (source / "config.json").is_file():
        raise UserError(
            f"--enc_dec_model {name} holds no config.json: give the folder of a Hugging Face model, "
            "as save_pretrained or python -m latent_models.pretraining writes it"
        )
    try:
        config = AutoConfig.from_pretrained(name)
        family_of(config, name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        if empty:
            with torch.device("meta"):
                model = AutoModelForSeq2SeqLM.from_config(config)
        else:
            model = AutoModelForSeq2SeqLM.from_pretrained(name)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        if source.is_dir():
            raise UserError(f"--enc_dec_model {name} cannot be read: {first_line(error)}") from error
        raise UserError(
            f"--enc_dec_model {name} is neither a local folder nor in the local cache, and the hub cannot be reached "
            "or does not have it: give a local folder, for example one that python -m latent_models.pretraining made"
        ) from error
    check_tokenizer(tokenizer, config, name)
    return LanguageModel(model, tokenizer, name, frozen)


def check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    """Refuse a tokenizer that does not belong to the model."""
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token")
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokenizer of {name} has token ids up to {largest}, but the model's vocabulary holds {config.vocab_size}: "
            "they are not of the same model"
        )
    for role in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, role), getattr(config, role, None)
        if theirs is not None and ours != (theirs[0] if isinstance(theirs, list) else theirs):
            raise UserError(
                f"the tokenizer of {name} has {role} {ours}, but its model {theirs}: they are not of the same model"
            )


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
