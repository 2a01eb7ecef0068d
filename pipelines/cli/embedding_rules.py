"""Rules about the latent space: its defaults, and which flags belong to it (`space` of utils.cli.flags.Flag).

Imports no torch, since every --help imports this module.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from latent_models.causal.decoder_args import is_text_decoder, read_text_decoder_args
from pipelines.cli.configs import DiffusionConfig
from utils.cli.flags import format_value
from utils.cli.settings import Settings
from utils.errors import UserError

# Defaults that differ in the space of token embeddings: those of Li et al. 2022.
DEFAULTS = {"objective": "pred_x0"}
CHAIN = {"beta_schedule": "sqrt", "timesteps": 2000}


def check_embedding_flags(settings: Settings[DiffusionConfig]) -> None:
    """Set the defaults of the latent space, and refuse explicit flags that belong to another one."""
    config = settings.config
    decoded = _resolve_decoder(settings)
    if config.latents.latent_space is None and settings.config.latents.latent_space is None:
        settings.set("latent_space", "compressed" if config.latents.latent_model_path else "states", source="default")
    if settings.config.latents.latent_space != "embeddings":
        _check_other_spaces(settings, decoded)
        _set_decoding(settings, decoded)
        return
    for name, flag in settings.program.flags.items():
        if flag.space == "frozen" and name in settings.explicit and settings.get(name):
            raise UserError(
                f"--{name} applies to latents of a frozen model, not to token embeddings: leave it out, or leave "
                "--latent_space embeddings out"
            )
    if "enc_dec_model" in settings.explicit:
        print(
            "note: --enc_dec_model has no effect on token embeddings; --embedding_init names the model whose "
            "embeddings they start from",
            file=sys.stderr,
        )
    _set_defaults(settings, DEFAULTS)
    # published runs pack every source, and earlier ones recorded a share that they did not use
    if "seq2seq_unconditional_prob" not in settings.explicit and not settings.checkpoint_args.get("null_sources"):
        settings.set("seq2seq_unconditional_prob", 0.0)
    if not {"train_schedule", "sampling_schedule"} & settings.explicit:
        _set_defaults(settings, CHAIN)
    if config.absorbing.denoise and not config.absorbing.learned_mean_embed:
        raise UserError(
            "--denoise replaces tokens by the absorbing state, which --learned_mean_embed trains: add "
            "--learned_mean_embed"
        )
    if config.packing.pretrain_blocks and config.denoiser.class_conditional:
        raise UserError("--pretrain_blocks trains on running text, which has no classes: leave --class_conditional out")
    if "decoding" not in settings.explicit:
        settings.set("decoding", "greedy")  # overrides a preset
    decoding = settings.config.evaluation.decoding
    if decoding != "greedy":
        raise UserError(
            f"--decoding {decoding} needs a language model: token embeddings are decoded by arg-max, which is greedy; "
            "leave it out"
        )


def _set_defaults(settings: Settings[DiffusionConfig], values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if settings.origins[name] == "default":
            settings.set(name, value)


def _resolve_decoder(settings: Settings[DiffusionConfig]) -> bool:
    """Whether a text decoder decodes the latents. Then --latent_space is that of its run."""
    path, known = settings.config.latents.latent_model_path, settings.checkpoint_args
    if not path or settings.config.latents.latent_space == "embeddings":
        return False
    if known and "latent_model_path" not in settings.explicit:
        return bool(known.get("text_decoder"))  # the run has a copy, and the folder may be gone
    if not is_text_decoder(path):
        return False
    space, asked = read_text_decoder_args(Path(path))["latent_space"], settings.config.latents.latent_space
    if asked not in (None, space):
        raise UserError(
            f"--latent_space {asked} is not that of --latent_model_path {path}, whose decoder reads latents of "
            f"--latent_space {space}: leave it out"
        )
    if asked is None:
        settings.set("latent_space", space, source="default")
    return True


def _set_decoding(settings: Settings[DiffusionConfig], decoded: bool) -> None:
    """The default of --decoding with a text decoder, also with a preset; UserError for its flags without one, and for
    those without effect on it.
    """
    if decoded:
        for name in ("kv_cache", "whole_batches"):
            value = settings.get(name)
            if name in settings.explicit and value != settings.program.flags[name].default:
                raise UserError(
                    f"--{name} {format_value(value)} is of encoder-decoder models, and a text decoder writes these "
                    "texts: leave it out"
                )
        typed = "decoding" in settings.explicit
        if not typed and (settings.origins["decoding"] == "default" or "preset" in settings.explicit):
            settings.set("decoding", "nucleus")
        return
    of_decoder = ["decoder_candidates", "decoder_model", "encoder_model"]
    if settings.config.latents.latent_space != "compressed":  # an autoencoder's decoder may read the noise level, too
        of_decoder.append("decoder_noise")
    for name in of_decoder:
        if name in settings.explicit and settings.get(name) is not None:
            raise UserError(
                f"--{name} {format_value(settings.get(name))} belongs to latents that a text decoder decodes: "
                "name the run of python -m pipelines.train_text_decoder with --latent_model_path, or leave it out"
            )


def _check_other_spaces(settings: Settings[DiffusionConfig], decoded: bool) -> None:
    options = settings.config.latents
    if options.latent_space == "sentence" and not decoded:
        raise UserError(
            "--latent_space sentence needs a decoder of its latents: train one with python -m "
            "pipelines.train_text_decoder --encoder_model E --decoder_model L, and name its run with "
            "--latent_model_path"
        )
    if options.latent_space == "compressed" and not options.latent_model_path:
        raise UserError("--latent_space compressed needs an autoencoder: name its run with --latent_model_path")
    if options.latent_space == "states" and options.latent_model_path and not decoded:
        raise UserError("--latent_space states and --latent_model_path exclude each other: give one")
    for name, flag in settings.program.flags.items():
        if flag.space == "embeddings" and name in settings.explicit:
            raise UserError(f"--{name} applies to token embeddings: add --latent_space embeddings, or leave it out")
