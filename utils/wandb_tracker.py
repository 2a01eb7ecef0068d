"""Weights & Biases, by accelerate's tracker: offline without a key, and where its server cannot be reached.

The id of a run is kept in its folder (wandb_run.json): a resumed training and an evaluation of it go on in the same
wandb run. Trackers are opened on rank 0 only.
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import WandBTracker

from utils.errors import UserError, one_line_text
from utils.options import TrackingOptions
from utils.run_folder import write_json
from utils.trackers import Histogram, flatten

RUN_FILE = "wandb_run.json"
INIT_SECONDS = 15  # after which a server counts as unreachable


class Wandb(WandBTracker):
    """A wandb run; its x axis is the value "step", since wandb's own counter cannot go back, as a resumed run does."""

    def __init__(
        self, project: str, folder: Path, options: TrackingOptions, *, run: Path | None = None, kind: str = "train"
    ) -> None:
        """folder: run folder, which receives wandb's files. run: folder of the run that is resumed or evaluated; None:
        a new run. kind: shown by wandb as the type of the job, such as train or eval.
        """
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        folder.mkdir(parents=True, exist_ok=True)
        recorded = {} if run is None else read_run(run)
        super().__init__(
            recorded.get("project") or os.environ.get("WANDB_PROJECT") or project,
            mode=_mode(options),
            id=recorded.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
            resume="allow",
            name=options.wandb_name or recorded.get("name"),
            group=options.wandb_group or recorded.get("group"),
            tags=_tags(options.wandb_tags) or recorded.get("tags") or None,
            job_type=kind,
            dir=str(folder),
            # the programs of a quickstart share one process: each has a wandb run of its own
            settings=wandb.Settings(init_timeout=INIT_SECONDS, reinit="finish_previous"),
        )
        PartialState(cpu=True)  # the logging of accelerate needs it; the device is chosen already (utils.distributed)
        try:
            self.start()
        except Exception as error:  # a wrong key, or an unreachable server, must not stop the training
            print(f"note: wandb is offline now ({one_line_text(error)})", file=sys.stderr)
            self.init_kwargs["mode"] = "offline"
            self.start()
        self.run.define_metric("*", step_metric="step")
        if run is None or folder.resolve() == run.resolve():
            kept = {key: self.init_kwargs[key] for key in ("id", "name", "group", "tags")}
            write_json(folder / RUN_FILE, {"project": self.run_name, **kept})

    def cut_back(self, step: int) -> None:
        """wandb cannot remove what was logged: steps after the last checkpoint appear twice."""

    def store_init_configuration(self, values: Mapping[str, Any], part: str = "") -> None:
        self.run.config.update(flatten({part: values} if part else values), allow_val_change=True)

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        self.run.log({**values, "step": step})

    def log_table(self, name: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None:
        import wandb

        self.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in data])}, step)

    def log_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        import wandb

        self.log({name: wandb.Histogram(np_histogram=(list(histogram.counts), list(histogram.edges)))}, step)

    def log_file(self, path: Path, name: str, step: int) -> None:
        import wandb

        artifact = wandb.Artifact(f"{name}-{self.run.id}", type=name, metadata={"step": step})
        artifact.add_file(str(path), name=path.name)
        self.run.log_artifact(artifact)
        if path.suffix == ".html":
            self.log({name: wandb.Html(path.read_text(encoding="utf-8"))}, step)


def read_run(folder: Path) -> dict[str, Any]:
    """The wandb run of a run folder: id, project, name, group, tags; empty if it has none."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("id"), str):
            return found
    return {}


def check_wandb(options: TrackingOptions) -> None:
    """UserError if wandb is not installed, or is to be online and has no key."""
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError("--wandb needs a package that is not installed: pip install wandb") from None
    if options.wandb_mode == "online" and not has_wandb_key():
        raise UserError(
            "--wandb_mode online needs a key of Weights & Biases: run `wandb login`, set WANDB_API_KEY, or log with "
            "--wandb_mode offline and run `wandb sync` later"
        )


def has_wandb_key() -> bool:
    """Whether wandb has a key: in WANDB_API_KEY, or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = os.environ.get("NETRC") or os.path.expanduser("~/_netrc" if os.name == "nt" else "~/.netrc")
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mode(options: TrackingOptions) -> Any:
    """--wandb_mode, else WANDB_MODE, else online with a key and offline without."""
    return options.wandb_mode or os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")


def _tags(text: str | None) -> list[str]:
    return [tag.strip() for tag in (text or "").split(",") if tag.strip()]
