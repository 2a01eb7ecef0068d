"""The encoder-decoder of the flags that is trained on pairs: new, or that of a run folder (see builders/baselines)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dataset_utils import registry
from latent_models.language_models import LanguageModel
from latent_models.options import Seq2SeqModelOptions
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.seq2seq import Seq2SeqLM
from pipelines.builders.baselines import BASE, largest_tokenizer, read_base
from pipelines.cli.configs import Seq2SeqConfig
from utils.cli.settings import Settings
from utils.errors import UserError
from utils.seeding import derive_seed


def new_seq2seq(settings: Settings[Seq2SeqConfig], tokenizer: Any, max_source: int) -> Seq2SeqLM:
    """A model to train. tokenizer: of a model from scratch. max_source: in tokens.

    UserError if --max_seq_len or --max_source_len is more than a pretrained model can read.
    """
    options = settings.config.model
    if options.model is not None:
        lm = _wrap(settings, _from_pretrained(settings, meta=False))
        for flag in ("max_seq_len", "max_source_len"):
            if lm.max_length is not None and (settings.get(flag) or 0) > lm.max_length:
                raise UserError(
                    f"--{flag} {settings.get(flag)} is more than the {lm.max_length} tokens that {lm.name} can read: "
                    f"give {lm.max_length} or less"
                )
        return lm
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    return _wrap(settings, _from_scratch(options, tokenizer, max_source))


def saved_seq2seq(settings: Settings[Seq2SeqConfig], run: Path) -> Seq2SeqLM:
    """The model of a run folder, before its weights are loaded."""
    import transformers

    model, tokenizer = read_base(run, transformers.AutoModelForSeq2SeqLM)
    language = _languages(settings)[0]
    made = LanguageModel(model, tokenizer, str(run / BASE), frozen=False, language=language)
    return _wrap(settings, made)


def meta_seq2seq(settings: Settings[Seq2SeqConfig], run: Path | None, max_source: int) -> Seq2SeqLM:
    """The model on the meta device, for a dry run: with the largest vocabulary. run: the folder of a trained run."""
    options = settings.config.model
    if options.model is not None:
        return _wrap(settings, _from_pretrained(settings, meta=True))
    with torch.device("meta"):
        if run is not None:
            return saved_seq2seq(settings, run)
        return _wrap(settings, _from_scratch(options, largest_tokenizer(options), max_source))


def _from_pretrained(settings: Settings[Seq2SeqConfig], meta: bool) -> LanguageModel:
    language = _languages(settings)[0]
    return LanguageModel.from_pretrained(
        settings.get("model"), frozen=False, meta=meta, language=language, flag="--model"
    )


def _from_scratch(options: Seq2SeqModelOptions, tokenizer: Any, max_source: int) -> LanguageModel:
    sizes = PretrainingOptions(
        d_model=options.d_model,
        layers=options.layers,
        heads=options.heads,
        lm_dropout=options.lm_dropout,
        max_seq_len=max(options.max_seq_len, max_source),
    )
    return LanguageModel(small_bart(sizes, tokenizer), tokenizer, "the new model", frozen=False)


def _wrap(settings: Settings[Seq2SeqConfig], made: LanguageModel) -> Seq2SeqLM:
    """Flags alone say how texts are generated, and no generation_config.json of a pretrained model."""
    from transformers import GenerationConfig

    for flag in ("source_language", "target_language"):
        if settings.get(flag) and made.language is None:
            raise UserError(
                f"--{flag} {settings.get(flag)} needs a model whose tokenizer has language codes, such as mBART; "
                f"{made.name} has none: leave it out"
            )
    tokenizer = made.tokenizer
    made.model.generation_config = GenerationConfig(
        decoder_start_token_id=made.start_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=made.pad_id,
    )
    return Seq2SeqLM(made, _languages(settings)[1])


def _languages(settings: Settings[Seq2SeqConfig]) -> tuple[str | None, str | None]:
    """Languages of texts and of sources: those of the flags, else those of the run, else those of the corpus."""
    options = settings.config.model
    recorded = settings.checkpoint_args.get("languages") or registry.languages(settings.config.data)
    return options.target_language or recorded[0], options.source_language or recorded[1]
