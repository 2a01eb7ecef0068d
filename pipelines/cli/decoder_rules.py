"""Rules of the flags of python -m pipelines.train_text_decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from latent_models.generation.decoding import check_decoding, given_settings, strategies
from pipelines.cli.configs import TextDecoderConfig
from pipelines.cli.rules import check_resume_mode
from utils.cli.args_io import read_args
from utils.cli.flags import format_value
from utils.cli.settings import Settings
from utils.errors import UserError

DENOISER_PROGRAM = "train_text_diffusion.py"
NOISE = ("max_latent_noise", "latent_dropout")  # may differ in a decoder that is adapted to a denoiser


def is_of_text_decoder(argv: Sequence[str]) -> bool:
    """Whether a command line of train_latent_model.py is one of the program that trains a causal decoder."""
    flags = [token.partition("=") for token in argv]
    if any(name == "--decoder_model" for name, _, _ in flags):
        return True
    following = dict(zip(argv, argv[1:], strict=False))
    folder = next(
        (value for name, _, value in flags if name == "--resume_dir" and value), following.get("--resume_dir")
    )
    try:
        return bool(folder) and bool(read_args(Path(str(folder))).get("decoder_model"))
    except UserError:  # the program itself says what is wrong with the folder
        return False


def check_resume(settings: Settings[TextDecoderConfig]) -> None:
    """A trained decoder is resumed, evaluated, or adapted to a denoiser; a new one needs a language model."""
    config = settings.config
    if config.augmentation.denoiser_run is None:
        check_resume_mode(settings)
    elif not config.run.resume_dir:
        raise UserError(
            f"--denoiser_run {config.augmentation.denoiser_run} adapts a trained decoder: add --resume_dir DECODER_RUN"
        )
    elif settings.mode is None:
        _inherit(settings)
        run = Path(config.augmentation.denoiser_run)
        program = read_args(run).get("program", DENOISER_PROGRAM)
        if program != DENOISER_PROGRAM:
            raise UserError(f"--denoiser_run {run} is a run of {program}: name one of {DENOISER_PROGRAM}")
    if config.decoder.decoder_model is None and not config.run.resume_dir:
        raise UserError(
            "no language model given: add --decoder_model, a local folder (python -m latent_models.pretrained "
            "smollm2-135m) or a hub id"
        )


def _inherit(settings: Settings[TextDecoderConfig]) -> None:
    """Latents, decoder, and noise of decoding if it was typed, of the run in --resume_dir. UserError where a typed flag
    asks for others."""
    from utils.pretrained import locate_model  # torch, which --help does without

    config, folder = settings.config, str(settings.config.run.resume_dir)
    saved = read_args(Path(folder))
    if not saved.get("decoder_model"):
        raise UserError(f"--resume_dir {folder} is not the run of a text decoder: name one of {settings.program.name}")
    groups = (config.latents, config.sentence, config.language_model, config.decoder)
    for name in (f.name for part in groups for f in fields(part)):
        if name not in saved or (name in NOISE and name in settings.explicit):
            continue
        if name not in settings.explicit:
            place = saved.get(f"{name}_relative")  # of a model
            value = saved[name] if place is None else locate_model(saved[name], Path(folder), place, f"--{name}")
            settings.set(name, value, source="saved")
        elif settings.get(name) != saved[name] and settings.program.flags[name].may_change == "never":
            raise UserError(
                f"--{name} {format_value(settings.get(name))} differs from {format_value(saved[name])}, with which "
                f"{folder} was trained: leave it out, or train another decoder"
            )
    noise = saved.get("decoder_noise")
    is_own = noise is not None and noise != saved["max_latent_noise"] / 2  # else it follows from the largest noise
    if is_own and "decoder_noise" not in settings.explicit:
        settings.set("decoder_noise", noise, source="saved")


def resolve_space(settings: Settings[TextDecoderConfig]) -> None:
    """The space follows from the flags that name its models; UserError for those of another space."""
    config = settings.config
    encoder, autoencoder = config.sentence.encoder_model, config.latents.latent_model_path
    if config.latents.latent_space is None:
        if encoder is None and autoencoder is None:
            raise UserError(
                "no latents given: add --encoder_model (embeddings of texts), --latent_model_path (latents of an "
                "autoencoder), or --latent_space states --enc_dec_model (states of an encoder)"
            )
        settings.set("latent_space", "sentence" if encoder is not None else "compressed")
    space = settings.config.latents.latent_space
    for flag, value, needed in (
        ("encoder_model", encoder, "sentence"),
        ("latent_model_path", autoencoder, "compressed"),
    ):
        if value is None and space == needed:
            raise UserError(f"--latent_space {space} needs --{flag}: add it")
        if value is not None and space != needed:
            raise UserError(f"--{flag} {value} and --latent_space {space} contradict each other: leave one of them out")
    pooling, scaling = config.sentence.pooling, config.sentence.latent_scaling
    is_new = config.run.resume_dir is None
    if is_new and space == "sentence" and pooling == "learned" and scaling in ("half_whiten", "whiten"):
        raise UserError(
            f"--latent_scaling {scaling} is fixed before --pooling learned has learned anything, and its directions "
            "would not be those of the latents: leave it out"
        )


def check_evaluation(settings: Settings[TextDecoderConfig]) -> None:
    """UserError for flags of evaluations that a decoder has not."""
    if settings.config.evaluation.gen_data:
        raise UserError("--gen_data samples from a run of train_text_diffusion.py: a decoder has no sampler")
    if "num_samples" in settings.explicit:
        raise UserError(
            f"--num_samples {settings.config.evaluation.num_samples} is of runs that sample latents, and a decoder is "
            "measured on held-out texts: give their number with --eval_texts"
        )


def check_decoding_flags(settings: Settings[TextDecoderConfig]) -> None:
    """Typed settings of decoding must fit --decoding, or the nucleus samples of a validation."""
    config = settings.config
    given = {name: value for name, value in given_settings(config.decoding).items() if name in settings.explicit}
    names = [*strategies(config.evaluation.decoding), "nucleus"]
    if given:
        check_decoding(names, given, config.language_model.max_seq_len)
