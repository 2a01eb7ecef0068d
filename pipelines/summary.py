"""A summary of a run: its components and their parameters, and its corpus; before training, or alone with --dry_run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dataset_utils import corpus_stats, registry
from dataset_utils.corpus import Corpus
from latent_models.language_models import LanguageModel
from pipelines.cli.configs import TrainingConfig
from pipelines.data.cache_plan import Parts, cache_lines
from pipelines.run_context import RunContext, is_eval_run
from utils.cli.settings import Settings
from utils.run_folder import write_json
from utils.terminal import printable

if TYPE_CHECKING:
    from pipelines.data.tokens import TokenSplit


CORPUS_STATS = "survey.json"  # file of a run folder
DEEPEST = 2  # levels of modules below a component, in the table of a dry run


def dry_run(
    settings: Settings[TrainingConfig],
    build: Callable[[Settings], Mapping[str, nn.Module]],
    tokenizer_of: Callable[[Corpus], Any] | None = None,
    max_seq_len: int | None = None,
) -> int:
    """Print the configuration, a table of modules and statistics of the corpus, or which of its files are missing.

    --verbose adds the shape of every trained tensor. build: settings -> components on the meta device, by name; Parts
    for a program that caches. tokenizer_of: corpus -> tokenizer, where it depends on the corpus; it returns None if
    there is none yet. max_seq_len: longest text of a program without that flag. Returns 0, the exit code.
    """
    parts = build(settings)
    print(settings.describe())
    print()
    print(module_table(parts))
    if settings.config.run.verbose:
        print()
        print(shapes(parts))
    for line in precision(settings, parts):
        print(line, file=sys.stderr)
    missing = registry.missing_files_message(settings.config.data)
    if missing:
        print(printable(f"note: {missing}"), file=sys.stderr)
        return 0
    corpus = registry.load(settings.config.data)
    if settings.values.get("class_conditional"):
        corpus.require_classes()
    found = [module for part in parts.values() for module in part.modules() if hasattr(module, "tokenizer")]
    tokenizer = tokenizer_of(corpus) if tokenizer_of else found[0].tokenizer
    if tokenizer is None:
        return 0
    print()
    print(printable("".join(f"note: {note}\n" for note in corpus.notes)), end="")
    # a separate context encoder has another tokenizer: no statistics of sources then
    shared = "context encoder (shared)" in parts
    limit = settings.values.get("max_source_len") if shared else None
    length = max_seq_len or settings.get("max_seq_len")
    figures = corpus_stats.compute_corpus_stats(
        corpus, tokenizer, length, max_source_length=limit, unknown_hint=unknown_hint(settings)
    )
    print("\n".join([corpus_stats.format_table(figures), *corpus_stats.round_trip_lines(figures)]))
    if isinstance(parts, Parts) and not is_eval_run(settings):
        for line in cache_lines(settings, parts, corpus):
            print(printable(line))
    return 0


def log_corpus_stats(
    run: RunContext[TrainingConfig],
    corpus: Corpus,
    tokenizer: Any,
    source_tokenizer: Any = None,
    max_source_length: int | None = None,
) -> None:
    """Log statistics of the corpus, and write them to the run folder. Lengths are in tokens.

    source_tokenizer: tokenizer of the sources, if another. max_source_length: length to which sources are truncated.
    """
    if run.dist.is_main:
        length = run.settings.get("max_seq_len")
        figures = corpus_stats.compute_corpus_stats(
            corpus, tokenizer, length, source_tokenizer, max_source_length, unknown_hint(run.settings)
        )
        run.log("\n".join([corpus_stats.format_table(figures), *corpus_stats.round_trip_lines(figures)]))
        write_json(run.folder / CORPUS_STATS, figures)


def unknown_hint(settings: Settings[TrainingConfig]) -> str:
    """What helps against unknown tokens: flags of the tokenizer that the program trains, else another model."""
    values = settings.values
    if values.get("latent_space") == "embeddings" and values["vocab"] in (None, "word-level"):
        return f"raise --vocab_size (now {values['vocab_size']:,}), or use --vocab byte-level, which spells every word"
    if values.get("tokenizer") == "word" and values.get("model") is None:
        return f"raise --vocab_size (now {values['vocab_size']:,}), or use --tokenizer bpe, which spells every word"
    return corpus_stats.OTHER_MODEL


def parameters(parts: Mapping[str, nn.Module]) -> str:
    """A table of the number of trained and of frozen parameters of each component."""
    lines = [f"{'part':<20}{'trained':>15}{'frozen':>15}"]
    for name, part in parts.items():
        counts = {True: 0, False: 0}
        for parameter in part.parameters():
            counts[parameter.requires_grad] += parameter.numel()
        lines.append(f"{name:<20}{counts[True]:>15,}{counts[False]:>15,}")
    return "\n".join(lines)


def module_table(parts: Mapping[str, nn.Module]) -> str:
    """A table of the trained and the frozen parameters of each component and of the modules in it.

    Layers of a list are one line. A tensor that several modules share counts where it comes first.
    """
    rows = [row for name, part in parts.items() for row in _module_rows(name, part, set())]
    width = max([len(name) for name, _, _ in rows] + [len("module")]) + 2
    lines = [f"{'module':<{width}}{'trained':>15}{'frozen':>15}"]
    return "\n".join(lines + [f"{name:<{width}}{trained:>15,}{frozen:>15,}" for name, trained, frozen in rows])


Row = tuple[str, int, int]  # name, trained and frozen parameters


def _module_rows(name: str, module: nn.Module, counted: set[int], depth: int = 0) -> list[Row]:
    """The row of a module, and indented below it those of the modules and tensors in it. counted: ids of tensors."""
    tensors = list(module.named_parameters(recurse=False))
    children = [(own, child) for own, child in module.named_children() if any(True for _ in child.parameters())]
    if len(children) == 1 and not tensors and not isinstance(module, nn.ModuleList):  # a wrapper is no level
        own, inner = children[0]
        return _module_rows(f"{name}.{own}" if depth else name, inner, counted, depth)
    sizes = {True: 0, False: 0}
    found: list[Row] = []
    for own, parameter in tensors:
        size = 0 if id(parameter) in counted else parameter.numel()
        counted.add(id(parameter))
        sizes[parameter.requires_grad] += size
        found += [(_indented(own, depth + 1), *((size, 0) if parameter.requires_grad else (0, size)))] if size else []
    for own, child in children:
        rows = _module_rows(own, child, counted, depth + 1)
        sizes[True] += rows[0][1]
        sizes[False] += rows[0][2]
        found += rows if rows[0][1] + rows[0][2] else []
    if isinstance(module, nn.ModuleList) and len(module) > 1:
        name = f"{name} (list of {len(module)})"
    shown = depth < DEEPEST and not isinstance(module, nn.ModuleList | nn.Sequential)
    return [(_indented(name, depth), sizes[True], sizes[False]), *(found if shown else [])]


def _indented(name: str, depth: int) -> str:
    return "  " * depth + name


def shapes(parts: Mapping[str, nn.Module]) -> str:
    """Name and shape of every trained tensor, one per line."""
    lines = []
    for name, part in parts.items():
        trained = [(n, tuple(p.shape)) for n, p in part.named_parameters() if p.requires_grad]
        lines += [f"{name}: {n} {list(shape)}" for n, shape in trained]
    return "\n".join(lines)


def summarize_run(
    run: RunContext[TrainingConfig], parts: Mapping[str, nn.Module], corpus: Corpus, data: TokenSplit
) -> str:
    """Run folder, device, corpus and components, a few lines."""
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in corpus.splits.items())
    return "\n".join(
        [
            f"run folder {run.folder}, device {run.device}, {run.dist.world_size} process(es)",
            f"corpus {corpus.name}: {sizes} texts; {100 * data.table.truncated:.1f} % of the training texts are "
            f"truncated to {data.table.max_length} tokens",
            parameters(parts),
            *precision(run.settings, parts),
        ]
    )


def precision(settings: Settings[TrainingConfig], parts: Mapping[str, nn.Module]) -> list[str]:
    """Notes on language models that overflow in the dtype of --mixed_precision, and so run in float32."""
    asked = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(settings.config.loop.mixed_precision or "no")
    models = {m for part in parts.values() for m in part.modules() if isinstance(m, LanguageModel)}
    return [
        f"note: {model.name} overflows in {settings.config.loop.mixed_precision}, so the language model itself runs "
        "in float32: --mixed_precision bf16 is safe for it, and faster"
        for model in models
        if asked in model.family.unsafe_dtypes
    ]
