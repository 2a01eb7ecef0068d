"""What a run is made of, in words: before training, and instead of it with --dry_run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.options import DataOptions
from latent_models.language_models import LanguageModel
from utils.settings import Settings

if TYPE_CHECKING:
    from pipelines.job import Job
    from pipelines.tokens import TokenSplit


def dry_run(settings: Settings, build: Callable[[Settings], Mapping[str, nn.Module]]) -> int:
    """Build every part without weights, print the configuration and what trains, say what data is absent. Returns 0."""
    parts = build(settings)
    print(settings.describe())
    print()
    print(parameters(parts))
    print()
    print(shapes(parts))
    for line in precision(settings, parts):
        print(line, file=sys.stderr)
    missing = registry.find(settings.build(DataOptions))
    if missing:
        print(f"note: {missing}", file=sys.stderr)
    return 0


def parameters(parts: Mapping[str, nn.Module]) -> str:
    """A table of what is frozen and what trains, in parameters."""
    lines = [f"{'part':<20}{'trained':>15}{'frozen':>15}"]
    for name, part in parts.items():
        counts = {True: 0, False: 0}
        for parameter in part.parameters():
            counts[parameter.requires_grad] += parameter.numel()
        lines.append(f"{name:<20}{counts[True]:>15,}{counts[False]:>15,}")
    return "\n".join(lines)


def shapes(parts: Mapping[str, nn.Module]) -> str:
    """The largest tensors of each trained part: enough to see whether it is the intended network."""
    lines = []
    for name, part in parts.items():
        trained = [(n, tuple(p.shape)) for n, p in part.named_parameters() if p.requires_grad]
        lines += [f"{name}: {n} {list(shape)}" for n, shape in trained]
    return "\n".join(lines)


def describe_run(job: Job, parts: Mapping[str, nn.Module], corpus: Corpus, data: TokenSplit) -> str:
    """What is about to be trained, on what and where."""
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in corpus.splits.items())
    return "\n".join(
        [
            f"run folder {job.folder}, device {job.device}, {job.ranks.world} process(es)",
            f"corpus {corpus.name}: {sizes} texts; {100 * data.table.truncated:.1f} % of the training texts are cut "
            f"at {data.table.max_length} tokens",
            parameters(parts),
            *precision(job.settings, parts),
        ]
    )


def precision(settings: Settings, parts: Mapping[str, nn.Module]) -> list[str]:
    """Lines on language models that do not follow --mixed_precision."""
    asked = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(settings.mixed_precision)
    models = {m for part in parts.values() for m in part.modules() if isinstance(m, LanguageModel)}
    return [
        f"note: {model.name} overflows in {settings.mixed_precision}, so the language model itself runs in float32: "
        "--mixed_precision bf16 is safe for it, and faster"
        for model in models
        if asked in model.family.overflows
    ]
