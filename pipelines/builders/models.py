"""Language models, latent spaces and denoisers of a run, built from its flags and loaded from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset_utils import registry
from diffusion.schedules import Schedule
from latent_models.autoencoders import autoencoder_row, make_autoencoder
from latent_models.causal.decoder_args import is_text_decoder
from latent_models.families import resolve_language
from latent_models.generation.generator import make_token_generator
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.decoded import DecodedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from model import DENOISERS, make_denoiser
from model.denoiser import Denoiser
from model.encoder_denoiser import HFEncoderDenoiser
from model.linear_denoiser import LinearDenoiser
from model.mlp_denoiser import MLPDenoiser
from model.options import DenoiserOptions, EncoderDenoiserOptions
from pipelines.builders.text_decoders import TEXT_DECODER_COPY, load_decoded_space
from pipelines.cli.configs import AutoencoderConfig, DiffusionConfig, TextModelConfig
from utils.cli.args_io import read_args
from utils.cli.settings import Settings
from utils.errors import UserError
from utils.pretrained import locate_model
from utils.run_folder import resolve

AUTOENCODER_COPY = "autoencoder"  # folder below a diffusion run: the autoencoder that it was trained with
ADAPTED_COPY = "adapted_copy"  # folder below a diffusion run: a decoder adapted to it, which decodes its samples
ENCODER_COPY = "encoder"  # folder below a diffusion run: the configuration of a denoiser that is a Hugging Face encoder


def load_model_of_texts(settings: Settings[TextModelConfig], name: str, **options: Any) -> LanguageModel:
    """A language model set to the language of the texts: that of the flag, else of the run, else of the corpus.

    options: further arguments of LanguageModel.from_pretrained.
    """
    flag = settings.config.language_model.target_language
    wanted = flag or settings.checkpoint_args.get("language")
    if wanted is None:
        wanted, _ = registry.languages(settings.config.data)
    model = LanguageModel.from_pretrained(name, language=wanted, **options)
    if flag and not model.language:
        raise UserError(
            f"--target_language {flag} needs a model whose tokenizer has language codes, such as mBART; {name} has "
            "none: leave it out"
        )
    return model


def configure_generation(settings: Settings[TextModelConfig], model: LanguageModel) -> None:
    """Set cache, precision and batching of a language model's generation from the flags."""
    model.token_generator = make_token_generator(settings.config.generation, model.model, model.name)


def new_space(
    settings: Settings[AutoencoderConfig], language_model: LanguageModel, alignment_dim: int | None = None
) -> CompressedSpace:
    """A compressed space around a language model, with a new autoencoder of the kind and options of the flags.

    alignment_dim: channels of the features with which latents are aligned (--alignment_weight).
    """
    config = settings.config
    name = config.autoencoder.autoencoder
    kind = autoencoder_row(name).options
    options = kind(**{f.name: settings.get(f.name) for f in fields(kind)})
    losses = config.latent_losses
    autoencoder = make_autoencoder(
        name, language_model.dim, options, config.language_model.max_seq_len, variational=losses.kl_weight > 0
    )
    conditioned = config.latent_augmentation.noise_level_conditioning
    return CompressedSpace(
        language_model, autoencoder, losses, noise_level_conditioning=conditioned, alignment_dim=alignment_dim
    )


def context_by_enc_dec_model(settings: Settings[DiffusionConfig]) -> bool:
    """Whether --enc_dec_model names the context encoder of a run with sources.

    It does if --latent_model_path is also given, as in the published commands, since the autoencoder's args.json names
    its language model. With --context_encoder the flag has its usual meaning.
    """
    named = bool(settings.config.latents.latent_model_path) and "enc_dec_model" in settings.explicit
    return named and settings.config.context.context_encoder is None


def check_same_language(settings: Settings[DiffusionConfig], model: LanguageModel, autoencoder: Path) -> None:
    """UserError if --target_language differs from the language that an autoencoder was trained in."""
    wanted = settings.config.language_model.target_language
    if wanted and resolve_language(model.tokenizer, wanted, model.name) != model.language:
        raise UserError(
            f"--target_language {wanted} is not the language that the autoencoder in {autoencoder} was trained in "
            f"({model.language}): leave it out, or name another autoencoder"
        )


def check_same_latents(space: LatentSpace, known: LatentSpace, folder: Path) -> None:
    """UserError if an autoencoder gives other latents than the one a denoiser was trained with.

    Its decoder may differ (--lm_mode decoder, or another causal decoder of the same latents).
    """
    if space.encoding_fingerprint() != known.encoding_fingerprint():
        what, hint = "autoencoder", "--lm_mode decoder"
        if not isinstance(known, CompressedSpace):
            what, hint = "text decoder", "--resume_dir and --denoiser_run"
        raise UserError(
            f"--latent_model_path {folder} gives other latents than the {what} that this run was trained with: leave "
            f"it out, or name a run that trained on from that one with {hint}"
        )


def autoencoder_folder(settings: Settings[DiffusionConfig], run: Path) -> Path:
    """The folder of the autoencoder, or of the text decoder: of a trained run its own copy, at sampling and evaluation
    the one of its adapted decoder if it has one; that of the flag for a new run, or where the flag is explicit."""
    own, path = own_latents(run), settings.config.latents.latent_model_path
    if settings.checkpoint_args and own is not None and "latent_model_path" not in settings.explicit:
        return adapted_copy(settings, run) or own
    assert path is not None, "this run has neither an autoencoder nor a text decoder"
    return resolve(path, run, "--latent_model_path")


def own_latents(run: Path) -> Path | None:
    """The copy of an autoencoder or of a text decoder in a run folder; None if it holds none."""
    copies = (run / name for name in (AUTOENCODER_COPY, TEXT_DECODER_COPY))
    return next((copy for copy in copies if (copy / "args.json").is_file()), None)


def adapted_copy(settings: Settings[DiffusionConfig], run: Path) -> Path | None:
    """The adapted decoder in a run folder (builders/adapted), where samples are made; else None.

    Training goes on with the decoder that it began with, and --latent_model_path names another one.
    """
    folder, samples = run / ADAPTED_COPY, settings.mode not in (None, "resume_training")
    wanted = samples and "latent_model_path" not in settings.explicit
    return folder if wanted and (folder / "args.json").is_file() else None


def _language_model_arguments(settings: Settings[DiffusionConfig], sources: bool) -> dict[str, Any]:
    """Arguments of CompressedSpace.from_pretrained that come from --enc_dec_model.

    sources: whether the run has source texts; then the flag may name the context encoder, and is only a fallback here.
    """
    explicit = settings.config.language_model.enc_dec_model if "enc_dec_model" in settings.explicit else None
    return {"fallback" if sources and context_by_enc_dec_model(settings) else "language_model": explicit}


@dataclass(frozen=True)
class SpaceInputs:
    """Inputs from which the latent space of a diffusion run is built."""

    settings: Settings[DiffusionConfig]
    run: Path  # the run folder
    device: torch.device  # meta for a dry run: shapes without weights
    schedule: Schedule  # noise schedule of training
    has_sources: bool = False  # whether the run has source texts
    texts: Sequence[str] = ()  # training texts of a new run, for a tokenizer

    @property
    def meta(self) -> bool:
        return self.device.type == "meta"

    def load_language_model(self) -> LanguageModel:
        """The language model of --enc_dec_model, in eval mode, for a space of its encoder's states."""
        if self.meta:
            return load_model_of_texts(self.settings, self.settings.config.language_model.enc_dec_model, meta=True)
        return _load_states_model(self.settings, self.run).to(self.device).eval()


def load_space(
    settings: Settings[DiffusionConfig], run: Path, device: torch.device, sources: bool = False
) -> LatentSpace:
    """The frozen space of a diffusion run: compressed latents of its autoencoder, or encoder states without one.

    sources: whether the run has source texts.
    """
    if not settings.config.latents.latent_model_path:
        states = EncoderStatesSpace(_load_states_model(settings, run), settings.config.language_model.max_seq_len)
        return states.to(device).requires_grad_(False).eval()
    folder, models = autoencoder_folder(settings, run), _language_model_arguments(settings, sources)
    if is_text_decoder(folder):
        decoded = load_decoded_space(settings, folder, device, **models)
        longest: int = read_args(folder)["max_seq_len"]
        space: LatentSpace = decoded
    else:
        compressed = CompressedSpace.from_pretrained(folder, device=device, **models)
        check_same_language(settings, compressed.language_model, folder)
        configure_generation(settings, compressed.language_model)
        longest, space = compressed.autoencoder.max_seq_len, compressed
    own = own_latents(run)
    if settings.checkpoint_args and own is not None and folder not in (own, adapted_copy(settings, run)):
        check_same_latents(space, _known_space(own, space, device), folder)
    _limit_length(settings, longest, folder)
    return space


def _known_space(own: Path, space: LatentSpace, device: torch.device) -> LatentSpace:
    """The space that a run was trained with, of its own copy. space: that of an explicit --latent_model_path, whose
    frozen models it shares if it can."""
    reader: str = space.language_model.name  # type: ignore[union-attr, assignment]
    if not is_text_decoder(own):
        return CompressedSpace.from_pretrained(own, device=device, language_model=reader)
    of_sentences = read_args(own)["latent_space"] == "sentence"
    where: dict[str, Any] = {"encoder_model": reader} if of_sentences else {"language_model": reader}
    lm = space.decoder.lm.name if isinstance(space, DecodedSpace) else None
    return DecodedSpace.from_pretrained(own, device=device, decoder_model=lm, **where)


def _load_states_model(settings: Settings[DiffusionConfig], run: Path) -> LanguageModel:
    """The language model whose encoder's states are the latents. A trained run gets the one it was trained with."""
    options, saved = settings.config.language_model, settings.checkpoint_args
    explicit = "enc_dec_model" in settings.explicit
    recorded = None if explicit else saved.get("enc_dec_model_relative")
    model = load_model_of_texts(settings, locate_model(options.enc_dec_model, run, recorded))
    model.check_fingerprint(saved.get("language_model_fingerprint"), run)
    configure_generation(settings, model)
    return model


def _limit_length(settings: Settings[DiffusionConfig], longest: int, folder: Path) -> None:
    """Set --max_seq_len to the longest text that the autoencoder reads; UserError if the given value is larger."""
    if settings.origins["max_seq_len"] == "default":
        settings.set("max_seq_len", longest)
    wanted = settings.config.language_model.max_seq_len
    if wanted > longest:
        if "max_seq_len" in settings.explicit:
            raise UserError(
                f"--max_seq_len {wanted} is longer than the {longest} tokens that {folder} reads: "
                f"give {longest} or less"
            )
        settings.set("max_seq_len", longest)


def meta_space(settings: Settings[DiffusionConfig], sources: bool = False) -> LatentSpace:
    """The space of a diffusion run on the meta device, for a dry run. sources: see load_space."""
    config = settings.config
    if not config.latents.latent_model_path:
        model = load_model_of_texts(settings, config.language_model.enc_dec_model, meta=True)
        return EncoderStatesSpace(model, config.language_model.max_seq_len).requires_grad_(False)
    folder = autoencoder_folder(settings, Path(config.run.resume_dir or settings.values.get("distill_run") or "."))
    if is_text_decoder(folder):
        return load_decoded_space(settings, folder, "meta", **_language_model_arguments(settings, sources))
    return CompressedSpace.from_pretrained(folder, meta=True, **_language_model_arguments(settings, sources))


def own_denoiser_options(settings: Settings[DiffusionConfig], run: Path | None) -> Any:
    """Options that only the network of --denoiser_variant has (DENOISERS); None where it has none.

    A trained run, and a dry run (run: None), build a Hugging Face encoder from its configuration alone.
    """
    kind = DENOISERS[settings.config.denoiser.denoiser_variant].options
    if kind is None:
        return None
    options = kind(**{f.name: settings.get(f.name) for f in fields(kind)})
    if not isinstance(options, EncoderDenoiserOptions):
        return options
    if run is None:
        return replace(options, encoder_init="random")
    own = run / ENCODER_COPY / "config.json"
    if not (settings.checkpoint_args and own.is_file()):
        return options
    return replace(options, encoder_config=str(own), encoder_init="random")


def save_encoder_config(network: nn.Module, run: Path) -> None:
    """Save the configuration of a denoiser's encoder, so that the run needs neither the hub nor another folder."""
    if isinstance(network, HFEncoderDenoiser):
        network.save_config(run / ENCODER_COPY)


class DiffusionModel(nn.Module):
    """The modules that diffusion training changes or measures: the denoiser, the statistics of its latents, and the
    context encoder and the space of embeddings if they are trained, too."""

    def __init__(
        self,
        space: LatentSpace,
        options: DenoiserOptions,
        max_seq_len: int,
        num_classes: int,
        source_dim: int = 0,
        context: nn.Module | None = None,
        own_options: Any = None,
        absorbing: bool = False,
        source_length: int = 0,
        linear: LinearDenoiser | None = None,
    ) -> None:
        """source_dim: channels of a source state, 0 without sources. context: the context encoder, if it trains.

        own_options: options of this kind of denoiser, see make_denoiser. absorbing: learn an absorbing state.
        source_length: tokens of the longest source, 0 without sources; in a space of variable length, the lengths of
        samples depend on it. linear: what the output of the denoiser is added to (--linear_denoiser).
        """
        super().__init__()
        length = space.length
        if DENOISERS[options.denoiser_variant].token_positions:  # as in the reference
            length = max(length, max_seq_len)
        self.denoiser = make_denoiser(space.dim, length, options, num_classes, source_dim, own_options)
        if linear is not None:
            assert isinstance(self.denoiser, Denoiser | MLPDenoiser)  # a rule of the flag
            self.denoiser.linear = linear
        if source_dim and isinstance(self.denoiser, HFEncoderDenoiser):
            self.denoiser.check_source_length(source_length)
        self.statistics = LatentStatistics(space.dim, space.length, source_length if space.variable_length else 0)
        self.context = context
        self.space = space if space.learned_with_denoiser else None
        state = torch.randn(space.dim) * space.dim**-0.5 if absorbing else None
        self.absorbing = None if state is None else nn.Parameter(state)

    def normalize(self, space: LatentSpace) -> NormalizedSpace:
        """The space with the normalization and the length prior of these statistics."""
        return NormalizedSpace(space, self.statistics)
