"""The labelled synthetic data set of a class-conditional run: --gen_data, as the first release wrote it."""

from __future__ import annotations

import csv
import io

from dataset_utils.corpus import Corpus
from evaluation.options import EvaluationOptions
from pipelines.job import Job
from pipelines.sampling.classes import one_class
from pipelines.sampling.generate import TextGenerator
from utils.errors import UserError
from utils.run_folder import write_text


def write_synthetic(
    job: Job, generator: TextGenerator, corpus: Corpus, options: EvaluationOptions, seeds: tuple[int, ...]
) -> None:
    """num_samples labelled texts, equally many of each class, as one CSV of text and label (its number) per seed.

    Decoded by the first strategy of --decoding. A file can be trained on: --train_file FILE --valid_file ...
    """
    n, classes, settings = options.num_samples, corpus.num_classes, job.settings
    if not settings.class_conditional:
        raise UserError(f"--gen_data needs a class-conditional run, and {settings.resume_dir} is not one")
    if "class_id" in settings.typed and settings.class_id is not None:
        raise UserError(f"--gen_data writes texts of every class: leave --class_id {settings.class_id} out")
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
            sampled = generator.sample(n // classes, seed, (strategy,), one_class(c), quiet=job.quiet)
            writer.writerows([text, c] for text in sampled.texts[strategy])
        path = job.folder / f"synth_sample{n}_seed{seed}.csv"
        if job.ranks.main:
            write_text(path, file.getvalue())
        job.say(f"wrote {path}")
