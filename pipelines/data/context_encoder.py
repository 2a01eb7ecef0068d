"""The context encoder: sources of a corpus of pairs -> states that the denoiser attends to.

Its model may be another than that of the latents, with a tokenizer of its own. Frozen, it reads each source of a corpus
once, like latents; trained along (--train_context_encoder), it is part of the network. Knows no noise.
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
from dataset_utils.options import DataOptions
from dataset_utils.splits import Split
from latent_models import languages
from latent_models.encoder_states import EncoderStatesSpace
from latent_models.language_models import LanguageModel, load_language_model
from latent_models.spaces import LatentSpace
from pipelines.building.models import context_by_enc_dec_model, find_language_model, relative
from pipelines.data.tokens import TokenSplit, tokenize_split
from utils.errors import UserError
from utils.modes import evaluating
from utils.records import Condition, Latents
from utils.settings import Settings

SOURCE_FLAGS = (  # that mean something only where there are sources
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
    "best_metric",
    "newest_checkpoint",
)

Reader = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (B,) -> source (B, S, C), or ids (B, S), and mask (B, S)


class Context:
    """What reads sources: an encoder, its tokenizer, and how long a source may be.

    states: the encoder's states as a space of its own, so that they are cached as latents are. shared: it is the
    language model of the latents itself. trained: it trains along with the denoiser.
    """

    def __init__(self, states: EncoderStatesSpace, *, shared: bool, trained: bool) -> None:
        self.states, self.shared, self.trained = states, shared, trained
        self.fingerprint = ""  # of the model as it was loaded

    @property
    def dim(self) -> int:
        return self.states.dim

    @property
    def model(self) -> LanguageModel:
        return self.states.language_model

    def tokens(self, sources: Sequence[str]) -> TokenSplit:
        """Sources in the tokens of this encoder."""
        return tokenize_split(Split(list(sources)), self.model, self.states.length, "--max_source_len")

    @torch.no_grad()
    def encode(
        self, sources: Sequence[str], device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[Tensor, Tensor]:
        """States (n, S, C) of sources and their mask (n, S), on the device, each source read once."""
        tokens = self.tokens(sources)
        batch = tokens.batch(torch.arange(len(tokens))).to(device)
        if not self.trained:
            return cut(self.states.encode(batch))
        with evaluating(self.states), autocast():  # as in training
            return cut(self.states.encode(batch))


def cut(latents: Latents) -> tuple[Tensor, Tensor]:
    """States and mask, on a CPU without the positions where no source of the batch has a token.

    Elsewhere every batch keeps one shape, which compiles once.
    """
    if latents.mask.device.type != "cpu":
        return latents.x0, latents.mask
    longest = max(1, int(latents.mask.sum(1).max()))
    return latents.x0[:, :longest], latents.mask[:, :longest]


class WithContext(nn.Module):
    """A denoiser whose condition holds the ids of a source (B, S): the encoder that reads them trains along."""

    def __init__(self, denoiser: nn.Module, states: EncoderStatesSpace) -> None:
        super().__init__()
        self.denoiser, self.states = denoiser, states

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        condition: Condition | None = None,
        x0_prev: Tensor | None = None,
        has_prev: Tensor | None = None,
    ) -> Tensor:
        """See model.denoiser.Denoiser.forward."""
        if condition is not None and condition.source is not None and condition.source_mask is not None:
            states = self.states.language_model.encode(condition.source, condition.source_mask)
            condition = replace(condition, source=states)
        return self.denoiser(z, time, mask, condition, x0_prev, has_prev)


# ------------------------------------------------------------------------------------------------ from flags


def source_tokens(settings: Settings, corpus: Corpus) -> int:
    """Longest source of a run on this corpus, as the corpus says; 0 where the run has no sources.

    UserError where flags or a trained run ask for sources that are not there.
    """
    lacking = next((name for name, split in corpus.splits.items() if split.sources is None), None)
    if settings.saved:
        if settings.saved.get("seq2seq") and lacking:
            raise UserError(
                f"{settings.resume_dir} was trained on sources, and {corpus.name} has none in its {lacking} split: "
                "name a corpus of pairs"
            )
        if not settings.saved.get("seq2seq"):
            _refuse_source_flags(settings, f"{settings.resume_dir} was trained without")
        return corpus.spec.max_source_tokens if settings.saved.get("seq2seq") else 0
    if lacking:
        _refuse_source_flags(settings, f"{corpus.name} has none in its {lacking} split")
    return 0 if lacking or settings.ignore_sources else corpus.spec.max_source_tokens


def _refuse_source_flags(settings: Settings, why: str) -> None:
    typed = next((flag for flag in SOURCE_FLAGS if settings.sources[flag] == "flag"), None)  # --config may hold all
    if typed:
        raise UserError(f"--{typed} is about source texts, and {why}: leave it out, or name a corpus of pairs")


def load_context(
    settings: Settings, run: Path, space: LatentSpace, device: torch.device, corpus_limit: int, *, empty: bool = False
) -> Context:
    """The context encoder of the flags, or of a trained run. Its length becomes --max_source_len.

    corpus_limit: longest source where that is not typed. empty: without weights, for a dry run.
    """
    model, shared = _load_model(settings, run, space.language_model, empty)  # type: ignore[arg-type]
    trained = settings.train_context_encoder
    limit = model.max_length
    if settings.max_source_len is None:
        settings.set("max_source_len", min(corpus_limit, limit or corpus_limit))
    elif limit is not None and settings.max_source_len > limit:
        raise UserError(
            f"--max_source_len {settings.max_source_len} is longer than {model.name} can read: give {limit} or less"
        )
    context = Context(EncoderStatesSpace(model, settings.max_source_len), shared=shared, trained=trained)
    if empty:
        return context
    if not shared:
        context.states.to(device)
    if not trained:
        context.states.eval()
    context.fingerprint = model.fingerprint()
    expected = settings.saved.get("context_fingerprint")
    if expected and context.fingerprint != expected:
        raise UserError(
            f"{model.name} is not the context encoder that {run} was trained with (other weights or vocabulary): "
            "say where that one is with --context_encoder"
        )
    return context


def _load_model(settings: Settings, run: Path, own: LanguageModel, empty: bool) -> tuple[LanguageModel, bool]:
    """The model that reads sources, and whether it is `own`, that of the latents."""
    name, flag = _find(settings, run)
    language, trained = _source_language(settings), settings.train_context_encoder
    # of a model with languages another copy is needed: a tokenizer marks its texts with one of them
    if name is None and not trained and (own.language is None or _is(own, language)):
        model, shared = own, True
    else:
        try:
            model = load_language_model(name or own.name, frozen=not trained, empty=empty, language=language)
        except UserError as error:
            line = str(error).replace("--enc_dec_model", flag).replace(languages.FLAG, "--source_language")
            raise UserError(line) from error
        shared = False
    if trained:  # of the decoder nothing is used
        model.model.requires_grad_(False)
        model.model.get_encoder().requires_grad_(True)
    if settings.source_language and not model.language:
        raise UserError(
            f"--source_language {settings.source_language} is for context encoders whose tokenizers have language "
            f"codes, such as mBART's; {model.name} has none: leave it out"
        )
    return model, shared


def _source_language(settings: Settings) -> str | None:
    """The flag's, else that of the run, else that of the corpus."""
    known = settings.source_language or settings.saved.get("context_language")
    return known or registry.languages(settings.build(DataOptions))[1]


def _is(model: LanguageModel, language: str | None) -> bool:
    return language is None or languages.choose(model.tokenizer, language, model.name) == model.language


def context_facts(context: Context, run: Path) -> dict[str, Any]:
    """What args.json keeps, so that the run finds its context encoder again and refuses another."""
    return {
        "context_model": None if context.shared else context.model.name,
        "context_model_relative": None if context.shared else relative(context.model.name, run),
        "context_fingerprint": context.fingerprint,
        "context_language": context.model.language,
        "source_dim": context.dim,
    }


def _find(settings: Settings, run: Path) -> tuple[str | None, str]:
    """Name of the context encoder's model and the flag to blame; None: that of the latents."""
    if "context_encoder" in settings.typed:
        return settings.context_encoder, "--context_encoder"
    if context_by_enc_dec_model(settings):
        return settings.enc_dec_model, "--enc_dec_model"
    saved = settings.saved.get("context_model")
    if saved is None:
        return None, "--enc_dec_model"
    relative = settings.saved.get("context_model_relative")
    return find_language_model(saved, run, relative, False, "--context_encoder"), "--context_encoder"
