"""Trackers of logged numbers: metrics.jsonl in the run folder always, Weights & Biases (through accelerate) on request.

No tracker prompts or waits for the network: without a key wandb runs offline, and its folder can be synced later.
metrics.jsonl is ours, since accelerate has no tracker that a resumed run can cut back to its step.
"""

from __future__ import annotations

import json
import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from utils.errors import UserError, one_line_text
from utils.run_folder import write_text


class Tracker(Protocol):
    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: a line {"step": ..., name: value ...} per log point.

    step: where the run resumes. Lines of later steps, and those that are no such line (a kill leaves half of one), are
    removed; the resumed run writes them again. None keeps all lines, for an evaluation. keep_bytes: size of the file
    when the checkpoint was saved, if the evaluation after it is made again: what follows are lines of that evaluation.
    """

    def __init__(self, folder: Path | str, step: int | None = None, keep_bytes: int | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        if step is not None and self.path.exists():
            held = self.path.read_bytes()
            if keep_bytes is not None and (keep_bytes == 0 or held[keep_bytes - 1 : keep_bytes] == b"\n"):
                held = held[:keep_bytes]
            lines = _lines(held)
            odd = sum(bool(line.strip()) for line in held.split(b"\n")) - len(lines)
            if odd:
                what = f"{odd} odd line(s) of {self.path} removed, such as half of one that a kill left"
                print(f"note: {what}", file=sys.stderr)
            kept = [line for line in lines if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def num_bytes(self) -> int:
        """Size of the file; 0 without one."""
        return self.path.stat().st_size if self.path.exists() else 0

    def log(self, values: Mapping[str, Any], step: int) -> None:
        line = json.dumps({"step": step, **{k: _plain(v) for k, v in values.items()}})
        self.path.parent.mkdir(parents=True, exist_ok=True)  # a run folder may be removed while it trains
        with self.path.open("a", encoding="utf-8") as file:  # opened each time: others may read or append
            file.write(line + "\n")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Does nothing: callers write tables as text files."""

    def close(self) -> None:
        pass


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value  # JSON has no nan


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; what is no such line, such as half of one that a kill left, is passed over."""
    path = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    return _lines(path.read_bytes())


def _lines(held: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in held.split(b"\n"):
        with suppress(ValueError, RecursionError):  # no JSON, or not UTF-8
            found = json.loads(line)
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                lines.append(found)
    return lines


class Wandb:
    """A Weights & Biases run by accelerate's WandBTracker: offline without a key, and where wandb cannot be reached."""

    def __init__(
        self, project: str, name: str | None, folder: Path | str, config: Mapping[str, Any], tags: Sequence[str] = ()
    ):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs a package that is not installed: pip install wandb") from None
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        os.environ.setdefault("WANDB_SILENT", "true")
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(init_timeout=15)
        options: dict[str, Any] = {
            "name": name,
            "dir": str(folder),
            "config": flatten(config),
            "tags": list(tags),
            "settings": settings,
        }
        try:
            self._tracker = _start(project, mode=mode, **options)
        except Exception as error:  # a wrong key, or an unreachable server, must not stop the training
            print(f"note: wandb is offline now ({one_line_text(error)})", file=sys.stderr)
            self._tracker = _start(project, mode="offline", **options)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        # "step" is a value and not wandb's own counter, which cannot decrease as an evaluation after training may
        self._tracker.log({**values, "step": step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(r) for r in rows])
        self._tracker.log({name: table, "step": step})  # log_table of accelerate logs no step

    def close(self) -> None:
        self._tracker.finish()


def _start(project: str, **options: Any) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import WandBTracker

    PartialState(cpu=True)  # its logging needs it; the device is chosen already (utils.distributed)
    tracker = WandBTracker(project, **options)
    tracker.start()
    return tracker


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


def wants_wandb(settings: Any) -> bool:
    """On when --wandb or --wandb_name was typed or is in --config, and never by a key of the environment.

    --no_wandb and WANDB_MODE=disabled switch it off.
    """
    if os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return False
    if "wandb" not in settings.values:
        return False
    if "wandb" in settings.explicit:
        return bool(settings.config.run.wandb)
    return "wandb_name" in settings.explicit


def make_trackers(
    settings: Any, project: str, folder: Path | str, metadata: Mapping[str, Any] | None = None
) -> list[Tracker]:
    """The trackers of the settings, besides metrics.jsonl. Called on rank 0 only."""
    if settings.values.get("dry_run") or not wants_wandb(settings):
        return []
    return [Wandb(project, settings.config.run.wandb_name, folder, {**settings.as_dict(), **(metadata or {})})]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; values that a tracker cannot store become texts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return flat
