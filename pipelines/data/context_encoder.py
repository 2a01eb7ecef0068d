"""The context encoder: sources of a corpus of pairs -> hidden states that the denoiser attends to.

Its model may differ from the language model of the latents, and then has its own tokenizer. A frozen encoder encodes
each source of a corpus once, and the states are cached as latents are. With --train_context_encoder it is part of the
trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.splits import Split
from latent_models.families import LANGUAGE_FLAG, resolve_language
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.text_encoders import TextEncoder
from pipelines.builders.models import adapted_copy, context_by_enc_dec_model, own_latents
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.tokens import TokenSplit, tokenize_split
from utils.cli.settings import Settings
from utils.errors import UserError
from utils.pretrained import locate_model, relative_path
from utils.records import Condition, Latents
from utils.train_eval import eval_mode

SOURCE_FLAGS = (  # they have an effect only in a run with sources
    "context_encoder",
    "train_context_encoder",
    "max_source_len",
    "source_language",
    "ignore_sources",
    "seq2seq_unconditional_prob",
    "seq2seq_candidates",
    "mbr_utility",
    "bleu_tokenizer",
    "bertscore_model",
    "newest_checkpoint",
)

SourceReader = Callable[[Tensor], tuple[Tensor, Tensor]]
"""rows (B,) -> states (B, S, C) of their sources, or token ids (B, S) where the encoder trains; and the mask (B, S)."""


class ContextEncoder:
    """An encoder of source texts, with its tokenizer and its longest source.

    states: the hidden states as a latent space, so that they are cached as latents are. shared: the model is the
    language model of the latents. trained: the encoder trains together with the denoiser.
    """

    def __init__(self, states: EncoderStatesSpace, *, shared: bool, trained: bool) -> None:
        self.states, self.shared, self.trained = states, shared, trained
        self.fingerprint = ""  # fingerprint of the loaded model

    @property
    def dim(self) -> int:
        return self.states.dim

    @property
    def model(self) -> LanguageModel:
        return self.states.language_model

    def tokens(self, sources: Sequence[str]) -> TokenSplit:
        """Token ids of sources, by the tokenizer of this encoder."""
        return tokenize_split(Split(list(sources)), self.model, self.states.length, "--max_source_len")

    @torch.no_grad()
    def encode(
        self, sources: Sequence[str], device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[Tensor, Tensor]:
        """States (n, S, C) of n sources and their mask (n, S), on the device."""
        tokens = self.tokens(sources)
        batch = tokens.batch(torch.arange(len(tokens))).to(device)
        if not self.trained:
            return trim_padding(self.states.encode(batch))
        with eval_mode(self.states), autocast():  # the precision of training
            return trim_padding(self.states.encode(batch))


def trim_padding(latents: Latents) -> tuple[Tensor, Tensor]:
    """States and mask; on a CPU without the last positions, where no source of the batch has a token.

    On other devices every batch keeps one shape, so that the network is compiled once.
    """
    if latents.mask.device.type != "cpu":
        return latents.x0, latents.mask
    longest = max(1, int(latents.mask.sum(1).max()))
    return latents.x0[:, :longest], latents.mask[:, :longest]


class DenoiserWithContext(nn.Module):
    """A denoiser and the context encoder that trains with it: the condition holds the token ids of sources (B, S)."""

    def __init__(self, denoiser: nn.Module, states: EncoderStatesSpace) -> None:
        super().__init__()
        self.denoiser, self.states = denoiser, states

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        condition: Condition | None = None,
        x0_self_cond: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
    ) -> Tensor:
        """See model.denoiser.Denoiser.forward."""
        if condition is not None and condition.source is not None and condition.source_mask is not None:
            states = self.states.language_model.encode(condition.source, condition.source_mask)
            condition = replace(condition, source=states)
        return self.denoiser(z, time, mask, condition, x0_self_cond, self_cond_mask)


# ------------------------------------------------------------------------------------------------ from flags


def resolve_source_limit(settings: Settings[DiffusionConfig], corpus: Corpus) -> int:
    """Longest source, in tokens, by the catalog's row of the corpus; 0 for a run without sources.

    Raises UserError if flags or a trained run need sources that the corpus lacks.
    """
    unpaired = next((name for name, split in corpus.splits.items() if split.sources is None), None)
    if settings.checkpoint_args:
        if settings.checkpoint_args.get("seq2seq") and unpaired:
            raise UserError(
                f"{settings.config.run.resume_dir} was trained with sources, and {corpus.name} has none in its "
                f"{unpaired} split: name a corpus of pairs"
            )
        if not settings.checkpoint_args.get("seq2seq"):
            _check_source_flags(settings, f"{settings.config.run.resume_dir} was trained without sources")
        return corpus.spec.max_source_tokens if settings.checkpoint_args.get("seq2seq") else 0
    if unpaired:
        _check_source_flags(settings, f"{corpus.name} has no sources in its {unpaired} split")
    return 0 if unpaired or settings.config.context.ignore_sources else corpus.spec.max_source_tokens


def _check_source_flags(settings: Settings[DiffusionConfig], reason: str) -> None:
    typed = next((flag for flag in SOURCE_FLAGS if settings.origins[flag] == "flag"), None)  # --config may hold all
    if typed:
        raise UserError(f"--{typed} needs source texts, but {reason}: leave it out, or name a corpus of pairs")


def load_context_encoder(
    settings: Settings[DiffusionConfig],
    run: Path,
    space: LatentSpace,
    device: torch.device,
    corpus_limit: int,
    *,
    empty: bool = False,
) -> ContextEncoder:
    """The context encoder that the flags name, or that of a trained run. Sets --max_source_len to its longest source.

    corpus_limit: longest source in tokens where --max_source_len is not given. empty: on the meta device, for a dry
    run. Raises UserError if a source may be longer than the model allows, or where the weights differ from those
    that the run was trained with.
    """
    model, shared = _load_source_model(settings, run, space.language_model, empty)  # type: ignore[arg-type]
    trained = settings.config.context.train_context_encoder
    limit = model.max_length
    if settings.config.context.max_source_len is None:
        settings.set("max_source_len", min(corpus_limit, limit or corpus_limit))
    elif limit is not None and settings.config.context.max_source_len > limit:
        raise UserError(
            f"--max_source_len {settings.config.context.max_source_len} is more than the "
            f"{limit} tokens that {model.name} can encode: give {limit} or less"
        )
    context = ContextEncoder(EncoderStatesSpace(model, settings.get("max_source_len")), shared=shared, trained=trained)
    if empty:
        return context
    if not shared:
        context.states.to(device)
    if not trained:
        context.states.eval()
    context.fingerprint = model.fingerprint()
    expected = settings.checkpoint_args.get("context_fingerprint")
    # the decoder of a shared model may be an adapted one, whose encoder check_same_latents of builders/models has
    # compared with that of the run's own copy
    is_adapted = "latent_model_path" in settings.explicit or adapted_copy(settings, run) is not None
    is_compared = shared and is_adapted and own_latents(run) is not None
    if expected and context.fingerprint != expected and not is_compared:
        raise UserError(
            f"{model.name} is not the context encoder that {run} was trained with (other weights or vocabulary): "
            "give the folder of the original one with --context_encoder"
        )
    return context


def _load_source_model(
    settings: Settings[DiffusionConfig], run: Path, latents_model: LanguageModel, empty: bool
) -> tuple[LanguageModel, bool]:
    """The model that encodes sources, and whether it is latents_model, the language model of the latents."""
    name, flag = _resolve_name(settings, run)
    language, trained = _source_language(settings), settings.config.context.train_context_encoder
    # A multilingual tokenizer marks each text with one language: another language needs a second copy of the model.
    if name is None and not trained and (latents_model.language is None or _same_language(latents_model, language)):
        model, shared = latents_model, True
    elif name is None and trained and isinstance(latents_model, TextEncoder):
        raise UserError(
            f"--train_context_encoder trains an encoder-decoder's encoder, and {latents_model.name}, whose embeddings "
            "are the latents, stays frozen: name one with --context_encoder, or leave the flag out"
        )
    else:
        try:
            model = LanguageModel.from_pretrained(
                name or latents_model.name, frozen=not trained, meta=empty, language=language
            )
        except UserError as error:
            line = str(error).replace("--enc_dec_model", flag).replace(LANGUAGE_FLAG, "--source_language")
            raise UserError(line) from error
        shared = False
    if trained:  # the decoder is not used
        model.model.requires_grad_(False)
        model.model.get_encoder().requires_grad_(True)
    if settings.config.context.source_language and not model.language:
        raise UserError(
            f"--source_language {settings.config.context.source_language} needs a context encoder whose "
            f"tokenizer has language codes, such as mBART; {model.name} has none: leave it out"
        )
    return model, shared


def _source_language(settings: Settings[DiffusionConfig]) -> str | None:
    """The language of --source_language, else that of the trained run, else that of the corpus."""
    known = settings.config.context.source_language or settings.checkpoint_args.get("context_language")
    return known or registry.languages(settings.config.data)[1]


def _same_language(model: LanguageModel, language: str | None) -> bool:
    return language is None or resolve_language(model.tokenizer, language, model.name) == model.language


def context_metadata(context: ContextEncoder, run: Path) -> dict[str, Any]:
    """Entries of args.json, by which a run finds its context encoder again and refuses another one."""
    return {
        "context_model": None if context.shared else context.model.name,
        "context_model_relative": None if context.shared else relative_path(context.model.name, run),
        "context_fingerprint": context.fingerprint,
        "context_language": context.model.language,
        "source_dim": context.dim,
    }


def _resolve_name(settings: Settings[DiffusionConfig], run: Path) -> tuple[str | None, str]:
    """Name of the context encoder (None: the language model of the latents), and the flag that errors should name."""
    if "context_encoder" in settings.explicit:
        return settings.config.context.context_encoder, "--context_encoder"
    if context_by_enc_dec_model(settings):
        return settings.config.language_model.enc_dec_model, "--enc_dec_model"
    saved = settings.checkpoint_args.get("context_model")
    if saved is None:
        return None, "--enc_dec_model"
    relative = settings.checkpoint_args.get("context_model_relative")
    return locate_model(saved, run, relative, "--context_encoder"), "--context_encoder"
