"""Adapt the decoder of a diffusion run to its denoiser: one command after stage 2, for any latents that have a decoder.

    python -m pipelines.adapt_decoder RUN --output_dir runs/adapted --num_train_steps 1000
    python train_text_diffusion.py --eval --resume_dir RUN --latent_model_path runs/adapted

A decoder that was trained on latents of texts reads samples less well. It is trained on here, on what the denoiser
makes of noised latents of the training texts (pipelines/steps/denoiser_augmentation); latents and denoiser stay as they
are. The program is that of the decoder: train_latent_model.py --lm_mode decoder, or pipelines.train_text_decoder, with
the flags and the corpus of the run. Every further flag is one of that program.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.cli.programs import AUTOENCODER, DIFFUSION, TEXT_DECODER
from utils.argparse_utils import OneLineParser
from utils.cli.args_io import read_args, saved_flags
from utils.cli.settings import Program
from utils.cli.words import as_words, flag_names
from utils.errors import UserError, exit_on_user_error

AUTOENCODER_COPY, TEXT_DECODER_COPY = "autoencoder", "text_decoder"  # folders below a diffusion run
FOLDER = "adapted_decoder"  # below the diffusion run, without --output_dir
STEPS = 2000
# Groups of flags of train_latent_model.py that determine the network and its losses.
NETWORK_GROUPS = ("autoencoder", "perceiver", "latent_losses", "language_model")
NOT_ADAPTED = ("lm_mode", "max_latent_noise", "latent_noise_prob", "alignment_weight", "alignment_model",
               "alignment_layer")  # fmt: skip
DEFAULTS = {  # of an adaptation, unless they are typed
    AUTOENCODER.name: {"denoiser_prob": 0.7, "num_train_steps": STEPS, "lr_warmup_steps": 100, "eval_every": STEPS},
    TEXT_DECODER.name: {"denoiser_prob": 0.7, "num_train_steps": STEPS, "eval_every": STEPS},
}


def adapt_decoder(run: Path, output_dir: Path | None = None, flags: Sequence[str] = ()) -> int:
    """Train the decoder of a diffusion run on latents of its denoiser. Returns the exit code.

    output_dir: run folder of the adapted decoder, a --latent_model_path of the run at --eval; None: adapted_decoder/ in
    the run. flags: further flags of the decoder's program, which override those of the run. Raises UserError if the run
    has no decoder of its own.
    """
    from pipelines.stages import run_program

    return run_program(*adaptation(run, output_dir, flags))


def adaptation(run: Path, output_dir: Path | None = None, flags: Sequence[str] = ()) -> tuple[Program[Any], list[str]]:
    """The program that adapts the decoder of a run, and its command line. Arguments: see adapt_decoder."""
    saved = read_args(run)
    if saved.get("program") != DIFFUSION.name:
        raise UserError(f"{run} is not a run of {DIFFUSION.name}: name the run whose decoder is to be adapted")
    copies = {AUTOENCODER_COPY: AUTOENCODER, TEXT_DECODER_COPY: TEXT_DECODER}
    found = next((name for name in copies if (run / name / "args.json").is_file()), None)
    if found is None:
        raise UserError(
            f"{run} diffuses latents without a decoder that can be adapted: name a run of compressed latents, or of "
            "latents of a text decoder (--latent_model_path)"
        )
    program, folder = copies[found], run / found
    typed = flag_names(flags)
    if "resume_training" in typed:  # goes on with the flags that it began with
        again = [] if "resume_dir" in typed else [f"--resume_dir={output_dir or run / FOLDER}"]
        return program, [*again, *flags]
    given = {"resume_dir": str(folder), "denoiser_run": str(run), "output_dir": str(output_dir or run / FOLDER)}
    chosen: dict[str, Any] = _corpus(program, saved, run) | DEFAULTS[program.name]
    if program is AUTOENCODER:
        chosen |= _network(folder) | {"lm_mode": "decoder", "max_latent_noise": 0.0}
    words = [
        word for name, value in (chosen | given).items() if name not in typed for word in as_words(program, name, value)
    ]
    return program, [*words, *flags]


def _corpus(program: Program[Any], saved: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """The corpus of the run, and its longest text."""
    known = saved_flags(program, saved, run)
    names = [name for name, group in program.group_of.items() if group == "data"]
    return {name: known[name] for name in names if name in known and known[name] != program.flags[name].default}


def _network(folder: Path) -> dict[str, Any]:
    """Flags of the autoencoder in a folder: its kind and sizes, its losses, its language model, its longest text."""
    from utils.pretrained import locate_model

    saved = read_args(folder)
    known = saved_flags(AUTOENCODER, saved, folder)
    model = locate_model(saved["enc_dec_model"], folder, saved.get("enc_dec_model_relative"))
    return network_flags(known) | {"max_seq_len": known["max_seq_len"], "enc_dec_model": model}


def network_flags(known: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of an autoencoder that its decoder needs to be trained on, of all those that it was trained with.

    known: name -> value. Left out: defaults, and what is of the first training alone (NOT_ADAPTED).
    """
    from latent_models.autoencoders import autoencoder_row

    kind = known.get("autoencoder", "perceiver")
    own = {f.name for f in fields(autoencoder_row(kind).options)}
    found = {
        name: value
        for name, value in known.items()
        if (AUTOENCODER.group_of[name] in NETWORK_GROUPS or name in own or name == "noise_level_conditioning")
        and name not in NOT_ADAPTED
        and value != AUTOENCODER.flags[name].default
    }
    if kind == "per_token":  # its number of latents follows the texts
        found.pop("num_encoder_latents", None)
        found.pop("num_decoder_latents", None)
    return found


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m pipelines.adapt_decoder",
        description="Train the decoder of a diffusion run on latents of its denoiser.",
        epilog="Further flags are those of the decoder's program: train_latent_model.py, or python -m "
        "pipelines.train_text_decoder.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder of train_text_diffusion.py")
    parser.add_argument(
        "--output_dir",
        help=f"run folder of the adapted decoder, for --latent_model_path (default: {FOLDER}/ in the run)",
    )
    known, rest = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    return adapt_decoder(Path(known.run), None if known.output_dir is None else Path(known.output_dir), rest)


if __name__ == "__main__":
    raise SystemExit(main())
