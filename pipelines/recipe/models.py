"""The models of the recipe: which ones this machine has, how fast the encoder is, and which of them also judge."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.local_models import same_weights

EXPECTED = {"language_model": "smollm2-135m", "encoder_model": "minilm-l6"}  # used where nothing else is named
ENCODING_SECONDS = 3.0  # of the measurement of the encoder
BATCH, LONGEST = 64, 256  # texts, and tokens of a text, in it
FEW_TEXTS_SPEED = 100.0  # texts/s that are assumed of a corpus of one batch


def parts_that_judge(judges: dict[str, str | None], models: dict[str, str | None]) -> list[str]:
    """A line for each judge that is a part of the system, so that its numbers flatter it."""
    pairs = (("scorer", "language_model", "perplexity and MAUVE"), ("mauve_encoder", "encoder_model", "MAUVE"))
    return [
        f"{judges[flag]} judges and is also --{part} of the system: {numbers} by it flatter the samples; read "
        "linear_auc, diversity and memorization, or name another judge with --" + flag
        for flag, part, numbers in pairs
        if judges[flag] is not None and _same_model(judges[flag], models[part])
    ]


def _same_model(one: str | None, other: str | None) -> bool:
    return one == other or (one is not None and other is not None and same_weights(one, other) is True)


def find_models(given: Mapping[str, Any], log: Callable[[str], None]) -> dict[str, str | None]:
    """language_model and encoder_model: what was named, else what is unpacked or can be; None without."""
    from latent_models.pretrained.catalog import PRETRAINED
    from latent_models.pretrained.folders import make_folder
    from utils.local_models import find_model, models_folder

    found: dict[str, str | None] = {}
    for part, expected in EXPECTED.items():
        named = given.get(part)
        if named is not None and named.lower() == "none":
            found[part] = None
            continue
        wanted = named if named in PRETRAINED else expected
        if named is not None and named not in PRETRAINED:
            found[part] = named
            continue
        folder = find_model(wanted)
        if folder is None and (named is not None or is_installed(wanted)):
            folder = models_folder() / wanted
            log(f"{wanted}: unpacked from its package into {folder}")
            make_folder(wanted, folder)
        found[part] = None if folder is None else str(folder)
    missing = [part for part in found if found[part] is None]
    if missing:
        commands = " and ".join(f"python -m latent_models.pretrained {EXPECTED[part]}" for part in missing)
        log(f"note: no pretrained --{' and no --'.join(missing)}; {commands} would make one (docs/judges.md)")
    return found


def check_adapters(models: Mapping[str, str | None], given: Mapping[str, Any]) -> None:
    """UserError if the decoder would train LoRA adapters, and their package is not installed."""
    from importlib.util import find_spec

    from pipelines.recipe.plan import TRAINED_HERE
    from utils.errors import UserError

    if models["language_model"] is None or given.get("way") in TRAINED_HERE:
        return
    if find_spec("peft") is None and "--decoder_mode" not in (given.get("decoder_flags") or ""):
        raise UserError(
            "the decoder trains LoRA adapters, which need a package that is not installed: pip install peft, or train "
            "the whole language model with --decoder_flags '--decoder_mode ft'"
        )


def find_judges(given: Mapping[str, Any], models: Mapping[str, str | None]) -> dict[str, str | None]:
    """scorer and mauve_encoder: those that were named, else pretrained ones, parts of the system if need be."""
    from utils.local_models import find_model

    found: dict[str, str | None] = {}
    for flag, part in (("scorer", "language_model"), ("mauve_encoder", "encoder_model")):
        folder = find_model(EXPECTED[part])
        found[flag] = given.get(flag) or (str(folder) if folder else models[part])
    return found


def check_judges(given: Mapping[str, Any]) -> None:
    """UserError for a judge that was named and cannot be loaded: it is wanted after all stages."""
    if given.get("scorer") is not None:
        from evaluation import scorers

        scorer = scorers.source_of(given["scorer"], or_default=False)
        if scorer is not None:
            scorers.load(scorer)
    if given.get("mauve_encoder") not in (None, "none"):
        from evaluation import encoders

        encoders.load(given["mauve_encoder"])


def is_installed(name: str) -> bool:
    """Whether the package that holds a pretrained model is installed, with what reads it."""
    from importlib.util import find_spec

    from latent_models.pretrained.catalog import PRETRAINED

    row = PRETRAINED[name]
    return all(find_spec(module) is not None for module in (row.module, *row.needs))


def encoding_speed(source: str, texts: Sequence[str], layer: int | None = None) -> tuple[float, Any]:
    """Texts per second that this machine encodes, as a cache is filled, and the tokenizer of the encoder.

    layer: whose states are pooled; those after it are not computed. None: the last one. The memory of the encoder is
    released: stages and their probes run in other processes, too.
    """
    from utils.device_memory import release_device_memory

    try:
        return _measure_encoder(source, texts, layer)
    finally:
        release_device_memory()


def _measure_encoder(source: str, texts: Sequence[str], layer: int | None) -> tuple[float, Any]:
    import torch

    from dataset_utils.text_stats import evenly_spaced
    from latent_models.text_encoders import TextEncoder
    from utils.distributed import pick_device

    device = pick_device()
    encoder = TextEncoder.from_pretrained(source, layer=layer).to(device).eval()
    sample = sorted(evenly_spaced(texts, 32 * BATCH), key=len)  # neighbors of one length, as a cache encodes them
    batches = [sample[start : start + BATCH] for start in range(0, len(sample), BATCH)]
    random.Random(0).shuffle(batches)
    length = min(LONGEST, encoder.max_length or LONGEST)
    done, began = 0, 0.0
    with torch.inference_mode():
        for rows in batches:
            batch = encoder.tokenizer(rows, truncation=True, max_length=length, padding=True, return_tensors="pt")
            encoder.encode(batch["input_ids"].to(device), batch["attention_mask"].to(device))
            if not began:
                began = time.monotonic()  # the first batch allocates memory
                continue
            done += len(rows)
            if time.monotonic() - began > ENCODING_SECONDS:
                break
    speed = done / max(1e-6, time.monotonic() - began) if done else FEW_TEXTS_SPEED
    return speed, encoder.tokenizer
