"""Find the folder of a pipeline: a local one, or a snapshot of a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipelines.pretrained.folder import INDEX, SUFFIXES, is_saved_pipeline
from utils.cli.flags import shown
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import is_online

# Errors of huggingface_hub, whose own texts are long, by class; subclasses first.
_REASONS = {
    "GatedRepoError": "its owner has to grant access",
    "RepositoryNotFoundError": "the hub has none of this name, or it is private and the token is missing",
    "RevisionNotFoundError": "it has no such revision",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def find_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a run, of a saved pipeline, or of the repository with this id, which is downloaded if need be.

    Of a repository only safetensors, JSON and text files are downloaded. The other arguments: see
    huggingface_hub.snapshot_download. UserError if there is neither such a folder nor such a repository.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise UserError(f"{shown(name)} is not a run folder: give the path of one, or a hub id such as 'owner/name'")
    folder = Path(name).expanduser()
    if folder.exists() or not (isinstance(name, str) and _HUB_ID.fullmatch(name)):
        return folder
    if not local_files_only:
        local_files_only = not is_online()
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = dict(
        revision=revision, token=token, cache_dir=cache_dir, force_download=force_download and not local_files_only
    )
    patterns = [f"*{suffix}" for suffix in SUFFIXES] + ["*.md"]
    try:
        found = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only, **options))
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise UserError(
            f"{name} is not a run folder: there is no such folder, and as a repository of the model hub it cannot be "
            f"read ({hub_reason(error)}): give a folder, or the id of a repository that push_to_hub wrote"
        ) from None
    if not is_saved_pipeline(found):
        raise UserError(
            f"{name} is a repository without {INDEX}, so it is not a pipeline that push_to_hub wrote: name another one"
        )
    return found


def hub_reason(error: BaseException) -> str:
    """Why the hub could not be used, in a few words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = next((_REASONS[c.__name__] for c in type(error).__mro__ if c.__name__ in _REASONS), None)
    if known is None and status in (401, 403):
        known = f"the hub refuses the token, status {status}"
    return known or library_message(error, 200)
