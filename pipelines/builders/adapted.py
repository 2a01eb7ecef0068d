"""The adapted decoder of a diffusion run: a copy in the run folder, which decodes its samples without a flag."""

from __future__ import annotations

import shutil
from pathlib import Path

from latent_models.causal.decoder_args import is_text_decoder
from latent_models.spaces.compressed import CompressedSpace, copy_autoencoder
from latent_models.spaces.decoded import DecodedSpace, copy_text_decoder
from pipelines.builders.models import ADAPTED_COPY, check_same_latents, own_latents
from utils.errors import UserError


def use_adapted_decoder(run: Path, adapted: Path) -> None:
    """Copy an adapted decoder into a diffusion run: sampling, evaluation and saving read it from then on.

    adapted: run folder of the decoder (pipelines.adapt_decoder). What the run was trained with stays beside it:
    training that is resumed goes on with that, so that a resumed run equals an uninterrupted one. The folder is written
    under another name, then renamed. Raises UserError if the run has no decoder of its own, or if the latents differ.
    """
    own = own_latents(run)
    if own is None:
        raise UserError(f"{run} holds no decoder of its latents that another one could replace: name a run that does")
    space = _load(adapted)
    check_same_latents(space, _load(own), adapted)
    target = run / ADAPTED_COPY
    partial = target.with_name(f"{ADAPTED_COPY}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(space, DecodedSpace):
        copy_text_decoder(adapted, partial, space)
    else:
        copy_autoencoder(adapted, partial, space.language_model.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def take_adapted_decoder(teacher: Path, student: Path) -> None:
    """Copy the adapted decoder of a run, if it has one, into that of its student, whose latents are the same."""
    adapted = teacher / ADAPTED_COPY
    if (adapted / "args.json").is_file():
        use_adapted_decoder(student, adapted)


def _load(folder: Path) -> CompressedSpace | DecodedSpace:
    kind = DecodedSpace if is_text_decoder(folder) else CompressedSpace
    return kind.from_pretrained(folder)
