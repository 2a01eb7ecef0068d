"""Parts of a run put together from flags and run folders: language models, latent spaces, denoisers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset_utils import registry
from dataset_utils.options import DataOptions
from latent_models import languages
from latent_models.compressed import CompressedSpace
from latent_models.encoder_states import EncoderStatesSpace
from latent_models.language_models import LanguageModel, load_language_model
from latent_models.normalisation import LatentStatistics, Normalised
from latent_models.options import AutoencoderOptions, WritingOptions
from latent_models.perceiver import PerceiverAutoencoder
from latent_models.spaces import LatentSpace
from latent_models.writing.writer import writer
from model.denoiser import make_denoiser
from model.encoder_denoiser import EncoderDenoiser
from model.options import DenoiserOptions, EncoderDenoiserOptions
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.errors import UserError
from utils.flag_files import read_args
from utils.runs import resolve, write_json
from utils.settings import Settings
from utils.sharding import spread

AUTOENCODER_COPY = "autoencoder"  # a diffusion run keeps the autoencoder that it was trained with under this name
ENCODER_COPY = "encoder"  # the configuration of a denoiser that is a Hugging Face encoder


def relative(path: str, folder: Path) -> str | None:
    """How a run folder reaches a local path; None for a hub id. Recorded: moved trees still find their parts."""
    return os.path.relpath(path, folder) if Path(path).is_dir() else None


def find_language_model(
    name: str, run: Path | None, recorded: str | None, typed: bool, flag: str = "--enc_dec_model"
) -> str:
    """Where the language model of a run is now: as given, then relative to the run folder; else it is a hub id."""
    if typed or run is None or Path(name).is_dir():
        return name
    if recorded is not None:
        return str(resolve(recorded, run, flag))
    return name


def load_model_of_texts(settings: Settings, name: str, **options: Any) -> LanguageModel:
    """A language model that knows the language of the texts: the flag's, else that of the run, else of the corpus.

    options: of load_language_model.
    """
    wanted = settings.target_language or settings.saved.get("language")
    if wanted is None:
        wanted, _ = registry.languages(settings.build(DataOptions))
    model = load_language_model(name, language=wanted, **options)
    if settings.target_language and not model.language:
        raise UserError(
            f"--target_language {settings.target_language} is for models whose tokenizers have language codes, such as "
            f"mBART's; {name} has none: leave it out"
        )
    return model


def let_write(settings: Settings, model: LanguageModel) -> None:
    """Give a language model the way of decoding that the flags say."""
    model.writer = writer(settings.build(WritingOptions), model.model, model.name)


def new_space(language_model: LanguageModel, options: AutoencoderOptions, max_seq_len: int) -> CompressedSpace:
    """A compressed space with a fresh autoencoder."""
    return CompressedSpace(language_model, PerceiverAutoencoder(language_model.dim, options, max_seq_len))


def options_of(kind: type, saved: Mapping[str, Any]) -> Any:
    """An options dataclass from an args.json, whatever else that holds."""
    return kind(**{f.name: saved[f.name] for f in fields(kind) if f.name in saved})


def load_autoencoder(
    folder: Path, device: torch.device, language_model: str | None = None, otherwise: str | None = None
) -> tuple[CompressedSpace, dict[str, Any]]:
    """The frozen space of an autoencoder run and its args.json.

    language_model: where the language model is now, if --enc_dec_model said so; otherwise: a place to look at where
    args.json leads nowhere. UserError where it is not the one that the autoencoder was trained with.
    """
    saved = autoencoder_args(folder)
    checkpoint = best_or_newest(folder)
    model = _language_model_of(folder, saved, language_model, otherwise)
    tuned = saved.get("lm_mode") in ("ft", "decoder")  # then the checkpoint holds the language model's weights, too
    expected = checkpoint.facts.get("language_model_fingerprint")
    refuse_another_model(model, None if tuned else expected, folder)
    space = new_space(model, options_of(AutoencoderOptions, saved), saved["max_seq_len"])
    fill(space, checkpoint)
    return space.to(device).requires_grad_(False).eval(), saved


def _language_model_of(
    folder: Path, saved: Mapping[str, Any], language_model: str | None, otherwise: str | None, *, empty: bool = False
) -> LanguageModel:
    typed = language_model is not None
    try:
        name = find_language_model(
            language_model or saved["enc_dec_model"], folder, saved.get("enc_dec_model_relative"), typed
        )
        return load_language_model(name, empty=empty, language=saved.get("language"))
    except UserError:
        if otherwise is None:
            raise
        return load_language_model(otherwise, empty=empty, language=saved.get("language"))


def context_by_enc_dec_model(settings: Settings) -> bool:
    """Whether --enc_dec_model names what reads the sources, of a run that has some.

    As in the published commands, where it stands beside --latent_model_path: the autoencoder's args.json names the
    autoencoder's own. Beside --context_encoder it keeps its usual meaning.
    """
    named = bool(settings.latent_model_path) and "enc_dec_model" in settings.typed
    return named and settings.context_encoder is None


def autoencoder_args(folder: Path) -> dict[str, Any]:
    """args.json of an autoencoder run. UserError where the folder is none."""
    saved = read_args(folder)
    if "num_encoder_latents" not in saved:
        raise UserError(
            f"--latent_model_path {folder} is not the run of an autoencoder: train one with train_latent_model.py"
        )
    return saved


def refuse_another_model(model: LanguageModel, expected: str | None, run: Path) -> None:
    """UserError where a run was trained with another language model. expected: its fingerprint, if one is known."""
    if expected and model.fingerprint() != expected:
        raise UserError(
            f"{model.name} is not the language model that {run} was trained with (other weights or vocabulary): "
            "say where that one is with --enc_dec_model"
        )


def refuse_another_language(settings: Settings, model: LanguageModel, autoencoder: Path) -> None:
    """UserError where --target_language is not the one that an autoencoder was trained in."""
    wanted = settings.target_language
    if wanted and languages.choose(model.tokenizer, wanted, model.name) != model.language:
        raise UserError(
            f"--target_language {wanted} is not the language that the autoencoder in {autoencoder} was trained in "
            f"({model.language}): leave it out, or name another autoencoder"
        )


def best_or_newest(folder: Path) -> Checkpoint:
    return checkpoints.load_best(folder) if (folder / "best").is_dir() else checkpoints.load(folder)


@torch.no_grad()
def fill(module: nn.Module, checkpoint: Checkpoint, part: str = "model") -> None:
    """Give a module what a checkpoint holds of it. A language model that it does not hold stays as it is."""
    present, held = module.state_dict(keep_vars=True), checkpoint.tensors[part]
    for name, x in held.items():
        if name not in present or present[name].shape != x.shape:
            found = "no such part" if name not in present else f"shape {tuple(present[name].shape)}"
            raise UserError(
                f"{checkpoint.path} holds {name} of shape {tuple(x.shape)}, but this run builds {found}: "
                "check the flags against its args.json"
            )
        present[name].copy_(spread(x, present[name]))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name not in held and not name.startswith("language_model."):
            raise UserError(
                f"{checkpoint.path} lacks {name}, which this run builds: check the flags against its args.json"
            )


def keep_autoencoder(source: Path, run: Path, language_model: str) -> None:
    """Copy an autoencoder into a diffusion run, so that the run needs nothing but the frozen language model.

    language_model: where that was found.
    """
    checkpoint, saved = best_or_newest(source), read_args(source)
    target = run / AUTOENCODER_COPY
    found = {"enc_dec_model": language_model, "enc_dec_model_relative": relative(language_model, target)}
    write_json(target / "args.json", {**saved, **found})
    files = {name: x for name, x in checkpoint.tensors.items() if name != "optimizer"}
    checkpoints.save_best(
        target, files, {k: v for k, v in checkpoint.facts.items() if k not in ("optimizer", "schedule")}
    )


def autoencoder_folder(settings: Settings, run: Path) -> Path:
    """A trained run's own copy, unless another is named; for a new run the folder of the flags, whatever was left."""
    own = run / AUTOENCODER_COPY
    kept = settings.saved and (own / "args.json").is_file() and "latent_model_path" not in settings.typed
    return own if kept else resolve(settings.latent_model_path, run, "--latent_model_path")


def load_space(settings: Settings, run: Path, device: torch.device, sources: bool = False) -> LatentSpace:
    """The frozen space of a diffusion run: its own copy of the autoencoder, the one of the flags, or encoder states.

    sources: whether the run has source texts, for then --enc_dec_model may mean what reads them.
    """
    typed = settings.enc_dec_model if "enc_dec_model" in settings.typed else None
    if not settings.latent_model_path:
        recorded = settings.saved.get("enc_dec_model_relative")
        name = find_language_model(settings.enc_dec_model, run, recorded, typed is not None)
        model = load_model_of_texts(settings, name)
        refuse_another_model(model, settings.saved.get("language_model_fingerprint"), run)
        let_write(settings, model)
        states = EncoderStatesSpace(model, settings.max_seq_len)
        return states.to(device).requires_grad_(False).eval()
    folder = autoencoder_folder(settings, run)
    of_context = sources and context_by_enc_dec_model(settings)
    space, saved = load_autoencoder(folder, device, *((None, typed) if of_context else (typed, None)))
    refuse_another_language(settings, space.language_model, folder)
    let_write(settings, space.language_model)
    own = run / AUTOENCODER_COPY
    if settings.saved and folder != own and (own / "args.json").is_file():
        refuse_other_latents(space, load_autoencoder(own, device, space.language_model.name)[0], folder)
    if settings.sources["max_seq_len"] == "default":
        settings.set("max_seq_len", saved["max_seq_len"])
    if settings.max_seq_len > saved["max_seq_len"]:
        if "max_seq_len" in settings.typed:
            raise UserError(
                f"--max_seq_len {settings.max_seq_len} is longer than the {saved['max_seq_len']} tokens that the "
                f"autoencoder in {folder} reads: give {saved['max_seq_len']} or less"
            )
        settings.set("max_seq_len", saved["max_seq_len"])
    return space


def refuse_other_latents(space: CompressedSpace, known: CompressedSpace, folder: Path) -> None:
    """A trained denoiser bears another decoder (--lm_mode decoder), but no other latents."""
    if space.encoding_fingerprint() != known.encoding_fingerprint():
        raise UserError(
            f"--latent_model_path {folder} gives other latents than the autoencoder that this run was trained with: "
            "leave it out, or name a run that trained on from that one with --lm_mode decoder"
        )


def empty_space(settings: Settings, sources: bool = False) -> LatentSpace:
    """The space of a diffusion run without weights, for a dry run. sources: see load_space."""
    if not settings.latent_model_path:
        model = load_model_of_texts(settings, settings.enc_dec_model, empty=True)
        return EncoderStatesSpace(model, settings.max_seq_len).requires_grad_(False)
    folder = autoencoder_folder(settings, Path(settings.resume_dir or settings.values.get("distill_run") or "."))
    typed = settings.enc_dec_model if "enc_dec_model" in settings.typed else None
    of_context = sources and context_by_enc_dec_model(settings)
    return empty_autoencoder(folder, *((None, typed) if of_context else (typed, None)))


def empty_autoencoder(folder: Path, language_model: str | None = None, otherwise: str | None = None) -> CompressedSpace:
    """The space of an autoencoder run without weights. language_model, otherwise: see load_autoencoder."""
    saved = autoencoder_args(folder)
    model = _language_model_of(folder, saved, language_model, otherwise, empty=True)
    with torch.device("meta"):
        return new_space(model, options_of(AutoencoderOptions, saved), saved["max_seq_len"]).requires_grad_(False)


def encoder_options(settings: Settings, run: Path | None) -> EncoderDenoiserOptions:
    """The flags of an encoder; for a trained run, and for a dry run (None), its layout alone, without weights."""
    options = settings.build(EncoderDenoiserOptions)
    if run is None:
        return replace(options, encoder_init="random")
    own = run / ENCODER_COPY / "config.json"
    if not (settings.saved and own.is_file()):
        return options
    return replace(options, encoder_config=str(own), encoder_init="random")


def keep_encoder(network: nn.Module, run: Path) -> None:
    """Write the layout of a denoiser's encoder into the run, which then needs neither hub nor any other folder."""
    if isinstance(network, EncoderDenoiser):
        network.save_config(run / ENCODER_COPY)


class DiffusionModel(nn.Module):
    """All that diffusion training changes or measures: the denoiser, the statistics of its latents, and what trains
    along: a context encoder, a space of embeddings."""

    def __init__(
        self,
        space: LatentSpace,
        options: DenoiserOptions,
        max_seq_len: int,
        num_classes: int,
        source_dim: int = 0,
        context: nn.Module | None = None,
        encoder: EncoderDenoiserOptions | None = None,
        absorbing: bool = False,
        source_length: int = 0,
    ) -> None:
        """source_dim: channels of a source state, 0 without sources. context: what reads them, if it trains along.

        encoder: for --denoiser_variant encoder. absorbing: learn a state that noise drifts to. source_length: of the
        longest source in tokens, 0 without; lengths of samples depend on it where latents have lengths.
        """
        super().__init__()
        length = max(space.length, max_seq_len)  # the position table of the reference counts tokens, even for latents
        self.denoiser = make_denoiser(space.dim, length, options, num_classes, source_dim, encoder)
        self.statistics = LatentStatistics(space.dim, space.length, source_length if space.masked else 0)
        self.context = context
        self.space = space if space.trainable else None
        state = torch.randn(space.dim) * space.dim**-0.5 if absorbing else None
        self.absorbing = None if state is None else nn.Parameter(state)

    def normalised(self, space: LatentSpace) -> Normalised:
        return Normalised(space, self.statistics)
