"""The labeled synthetic data set of a class-conditional run (--gen_data), in the format of the published code."""

from __future__ import annotations

import csv
import io

from dataset_utils.corpus import Corpus
from evaluation.options import EvaluationOptions
from pipelines.cli.configs import DiffusionConfig
from pipelines.run_context import RunContext
from pipelines.sampling.classes import one_class
from pipelines.sampling.generator import TextGenerator
from utils.errors import UserError
from utils.run_folder import write_text


def write_synthetic(
    run: RunContext[DiffusionConfig],
    generator: TextGenerator,
    corpus: Corpus,
    options: EvaluationOptions,
    seeds: tuple[int, ...],
) -> None:
    """Write num_samples texts, equally many of each class, as one CSV per seed with columns text and label (an index).

    Decoded by the first strategy of --decoding. A file can be used for training: --train_file FILE --valid_file ...
    Raises UserError if the run has no classes, or if num_samples is not a multiple of their number.
    """
    n, classes, settings = options.num_samples, corpus.num_classes, run.settings
    if not settings.config.denoiser.class_conditional:
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
        writer.writerow(["text", "label"])
        for c in range(classes):
            sampled = generator.sample(n // classes, seed, (strategy,), one_class(c), quiet=run.quiet)
            writer.writerows([text, c] for text in sampled.texts[strategy])
        path = run.folder / f"synth_sample{n}_seed{seed}.csv"
        if run.dist.is_main:
            write_text(path, file.getvalue())
        run.log(f"wrote {path}")
