"""Upload a saved pipeline to a repository of the model hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pipelines.load_run import LoadedRun
from pipelines.pretrained.card import CardOptions
from pipelines.pretrained.load import hub_reason
from pipelines.pretrained.save import save_pipeline
from utils.cli.flags import shown
from utils.errors import UserError, is_of_a_library


def check_repository(repo_id: object) -> str:
    """UserError for what is no id of a repository."""
    try:
        if isinstance(repo_id, str) and repo_id:
            validate_repo_id(repo_id)
            return repo_id
    except HFValidationError:
        pass
    raise UserError(f"repo_id is {shown(repo_id)}: give the id of a repository, such as 'owner/name'")


def push(
    run: LoadedRun,
    repo_id: str,
    *,
    license: str | None,
    language: str | None,
    private: bool | None,
    token: str | None,
    commit_message: str,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Save a run to a temporary folder and upload it; see TextDiffusionPipeline.push_to_hub."""
    options = CardOptions(check_repository(repo_id), license, language)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pipeline"
        save_pipeline(run, folder, options)  # before the repository is made
        return upload(
            folder,
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload a text diffusion pipeline",
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the folder of a saved pipeline in one commit. Returns its address. UserError if the hub refuses."""
    with _one_line(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            delete_patterns="*",  # of an earlier upload, which loading would refuse; in the same commit
        )
        return str(info.commit_url)


@contextmanager
def _one_line(repo_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise UserError(
            f"{repo_id} cannot be uploaded ({hub_reason(error)}): check the network and the token of `hf "
            "auth login`, or save_pretrained to a folder and upload that"
        ) from error
