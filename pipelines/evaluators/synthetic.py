"""The labeled synthetic data set of a class-conditional run (--gen_data), which training reads as it reads the corpus.

The files of a corpus in the catalog have the format of the published code. Those of own files have the names of their
columns and classes, so that they train beside them.
"""

from __future__ import annotations

import csv
import io

import torch

from dataset_utils.corpus import Corpus
from evaluation.options import EvaluationOptions
from pipelines.cli.configs import DiffusionConfig
from pipelines.run_context import RunContext
from pipelines.sampling.classes import one_class
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.inputs import Sources
from utils.errors import UserError
from utils.run_folder import write_text
from utils.seeding import seeded_generator


def write_synthetic(
    run: RunContext[DiffusionConfig],
    generator: TextGenerator,
    corpus: Corpus,
    options: EvaluationOptions,
    seeds: tuple[int, ...],
    sources: Sources | None = None,
) -> None:
    """Write num_samples texts, equally many of each class, as one CSV per seed with columns text and label.

    sources: inputs of a run of pairs; the texts of a class are then made from sources of its training texts, in a first
    column source. Decoded by the first strategy of --decoding. A file can be used for training: --train_file FILE
    --valid_file ... Raises UserError if the run has no classes, or if num_samples is not a multiple of their number.
    """
    n, classes, settings = options.num_samples, corpus.num_classes, run.settings
    if not settings.get("class_conditional"):
        raise UserError(f"--gen_data needs a class-conditional run, and {settings.config.run.resume_dir} is not one")
    if "class_id" in settings.explicit and settings.config.classes.class_id is not None:
        raise UserError(
            f"--gen_data writes texts of every class: leave --class_id {settings.config.classes.class_id} out"
        )
    if n % classes:
        raise UserError(
            f"--num_samples {n} is not divisible by the {classes} classes: give {n - n % classes or classes}"
        )
    strategy = options.decoding.split(",")[0].strip()
    for seed in seeds:
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(_header(corpus, sources is not None))
        for c, label in enumerate(corpus.label_values):
            if sources is None:
                sampled = generator.sample(n // classes, seed, (strategy,), one_class(c), quiet=run.quiet)
                writer.writerows([text, label] for text in sampled.texts[strategy])
                continue
            given = _sources_of_class(corpus, c, n // classes, seed)
            inputs = sources.make_inputs(given, seed, torch.full((len(given),), c, device=run.device))
            rows = generator.candidates(len(given), 1, seed, (strategy,), inputs, quiet=run.quiet)[strategy]
            writer.writerows([source, row[0], label] for source, row in zip(given, rows, strict=True))
        path = run.folder / f"synth_sample{n}_seed{seed}.csv"
        if run.dist.is_main:
            write_text(path, file.getvalue())
        run.log(f"wrote {path}")


def _header(corpus: Corpus, with_sources: bool) -> list[str]:
    """Names of the columns: those of the user's own files, so that a file can be read beside them."""
    roles = ["source", "text", "label"] if with_sources else ["text", "label"]
    names = [role if corpus.in_catalog else corpus.columns.get(role, role) for role in roles]
    return roles if any(set("+.") & set(name) for name in names) else names  # joined or inner columns


def _sources_of_class(corpus: Corpus, c: int, n: int, seed: int) -> list[str]:
    """n sources of training texts of a class, in an order that depends on the seed; repeated if n is larger."""
    labels, sources = corpus.train.labels or [], corpus.train.sources or []
    of_class = [source for source, label in zip(sources, labels, strict=True) if label == c]
    if not of_class:
        raise UserError(f"--gen_data needs sources of every class, and no training text is {corpus.class_names[c]}")
    order = torch.randperm(len(of_class), generator=seeded_generator(seed, "synthetic sources", c)).tolist()
    return [of_class[order[i % len(order)]] for i in range(n)]
