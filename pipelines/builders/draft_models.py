"""The draft model of an autoencoder: that of --draft_model, or the one in the autoencoder's folder."""

from __future__ import annotations

import sys
from pathlib import Path

from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace
from latent_models.speculative.draft_model import DraftModel, attach
from pipelines.cli.configs import TextModelConfig
from utils.cli.settings import Settings
from utils.errors import UserError
from utils.pretrained import has_weights

DRAFT_MODEL_COPY = "drafter"  # folder below that of an autoencoder


def attach_draft_model(settings: Settings[TextModelConfig], space: LatentSpace, autoencoder: Path | None) -> None:
    """Attach the draft model of --draft_model to a space, or the one stored in the autoencoder's folder, if there is
    one.

    autoencoder: None where the space has none. Raises UserError if an explicit --draft_model does not fit the
    space; a stored draft model that does not fit is left out, with a note.
    """
    given = settings.config.generation.draft_model if "draft_model" in settings.explicit else None
    if not isinstance(space, CompressedSpace) or autoencoder is None:
        if given is not None:
            raise UserError(
                f"--draft_model {given} drafts texts from an autoencoder's latents, and this run has none: leave it out"
            )
        return
    if settings.config.generation.speculative == "off":
        return
    folder = draft_model_folder(settings, autoencoder)
    if folder is None:
        return
    try:
        attach(DraftModel.from_pretrained(folder, space), space)
    except UserError as error:
        if given is not None:
            raise
        print(f"note: texts are decoded token by token: {error}", file=sys.stderr)


def draft_model_folder(settings: Settings[TextModelConfig], autoencoder: Path) -> Path | None:
    """The folder of an explicit --draft_model, else the one below the autoencoder's folder, if it holds a draft
    model."""
    if "draft_model" in settings.explicit and settings.config.generation.draft_model is not None:
        return Path(settings.config.generation.draft_model)
    own = autoencoder / DRAFT_MODEL_COPY
    return own if (own / "args.json").is_file() and has_weights(own) else None
