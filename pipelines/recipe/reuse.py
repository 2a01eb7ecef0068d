"""Stages of another recipe, taken over where they would be the same here: the flags that change come later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.recipe import plan
from pipelines.recipe.folder import RECORD, SECONDS
from pipelines.recipe.stages import LATENT_CACHE, Setting, make_stage, setting_of_record, steps_of_record
from utils.errors import UserError


class OtherRecipe:
    """A recipe folder with finished stages. UserError if it is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.state: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            self.seconds: dict[str, float] = json.loads((folder / SECONDS).read_text(encoding="utf-8"))
            self.setting = setting_of_record(self.state)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"--reuse {folder} is no folder of a recipe ({RECORD}, {SECONDS})") from None

    def encoding_speed(self, encoder: str | None, layer: int | None) -> float | None:
        """Texts a second that it measured of this layer of this encoder; None for another one."""
        measured: float | None = self.state.get("encoder_texts_per_second")
        theirs = plan.encoder_of(self.setting.value("way"), self.setting.language_model, self.setting.encoder_model)
        return measured if theirs == (encoder, layer) else None

    def difference(self, name: str, setting: Setting, minutes: float) -> str | None:
        """Why the stage of this name would be another one here; None: it would be the same."""
        record = self.state["stages"].get(name)
        if record is None or "done" not in record:
            return "it is not finished there"
        steps = steps_of_record(record)
        theirs, ours = (make_stage(name, one, steps).argv(self.folder) for one in (self.setting, setting))
        if theirs != ours:
            words = [word for word in ours if word not in theirs] or [word for word in theirs if word not in ours]
            return f"its flags differ ({' '.join(words[:4])})" if words else "its flags differ"
        shares = [plan.shares(one)[name] for one in (self.setting.choices, setting.choices)]
        if minutes != self.state["minutes"] or abs(shares[0] - shares[1]) > 1e-9:
            return "it has another part of the time"
        return None

    def take(self, name: str, root: Path) -> tuple[dict[str, Any], dict[str, float]]:
        """Copy the run of a stage, and the encoded texts. Returns its record, its seconds and those of its probe."""
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(self.folder / name, root / name)
        cache = self.folder / LATENT_CACHE
        if cache.is_dir():
            shutil.copytree(cache, root / LATENT_CACHE, dirs_exist_ok=True)
        spent = {key: self.seconds[key] for key in (name, f"probe of {name}") if key in self.seconds}
        return {**self.state["stages"][name], "reused": str(self.folder)}, spent
