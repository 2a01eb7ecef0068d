"""A packaged sentence-transformers model as a Hugging Face folder of its encoder.

The pooling is no part of such a model for transformers: the files that describe it (modules.json, 1_Pooling/) are
copied, so that sentence-transformers can load the folder too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from utils.errors import UserError

POOLING = "1_Pooling/config.json"
DESCRIPTIONS = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", POOLING)


def convert(package: Path, folder: Path) -> None:
    """Write the encoder and the tokenizer in `package`/model to `folder`. Raises UserError unless it pools by means."""
    source = package / "model"
    pooling = json.loads((source / POOLING).read_text(encoding="utf-8"))
    if not pooling.get("pooling_mode_mean_tokens"):
        raise UserError(f"{source / POOLING} asks for another pooling than the mean over tokens: it is not supported")
    model = AutoModel.from_pretrained(str(source), dtype=torch.float32, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in DESCRIPTIONS:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
