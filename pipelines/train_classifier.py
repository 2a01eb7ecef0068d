"""Train a classifier on the noised latents of a diffusion run, for control by --latent_classifier.

    python -m pipelines.train_classifier --diffusion_run runs/simple --train_file simple_labeled.tsv

The space, the noise and the averaged weights are those of the run, so that the classifier judges what a sampler visits.
Works in every latent space. Minutes for a small corpus.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dataset_utils import registry
from dataset_utils.options import DataOptions
from model.classifier import LatentClassifier
from model.options import ClassifierOptions
from pipelines.building.embeddings import EmptyEmbeddings, tokenizer_of
from pipelines.building.models import empty_space
from pipelines.data.cached_latents import Encoded, encoded_split
from pipelines.data.tokens import TokenSplit, tokens_in
from pipelines.describe import dry_run
from pipelines.flags.programs import CLASSIFIER, DIFFUSION
from pipelines.job import (
    Job,
    fit,
    load_corpus,
    new_state,
    open_job,
    record_args,
    refuse_another_programs_run,
)
from pipelines.parts import Parts
from pipelines.trained import load_run
from pipelines.training.classifier_step import LOGGED, ClassifierStep
from pipelines.training.held_out import held_out_means
from utils import checkpoints
from utils.config import parse
from utils.distributed import finish, wrap
from utils.errors import UserError, one_line
from utils.flag_files import read_args
from utils.hooks import Every
from utils.modes import evaluating
from utils.seeding import derive
from utils.settings import Settings
from utils.state import State
from utils.stop import EXIT_CODES


def run(settings: Settings) -> int:
    """Train and save. Returns the exit code."""
    import torch

    started = time.monotonic()
    if settings.diffusion_run is None:
        raise UserError("--diffusion_run is missing: name the run folder whose samples are to be controlled")
    read_args(Path(settings.diffusion_run))  # one line where it is no run, before a folder is made
    if settings.dry_run:
        return _dry_run(settings)
    job = open_job(settings, "text_latent_classifier", "classifier")
    trained = load_run(settings.diffusion_run, device=settings.device)
    parts = trained.parts
    parts.model.requires_grad_(False).eval()
    corpus = load_corpus(job)
    corpus.need_classes("a classifier")
    torch.manual_seed(derive(settings.random_seed, "weights"))
    classifier = LatentClassifier(
        parts.space.dim, parts.space.length, corpus.num_classes, settings.build(ClassifierOptions)
    ).to(job.device)
    state = new_state(job, classifier)
    if settings.resume_training:
        state.restore(checkpoints.load(job.folder))
    length = trained.settings.max_seq_len
    texts = {
        name: _encoded(job, parts, tokens_in(parts.space.space, corpus.splits[name], length), name)
        for name in ("train", "valid")
    }
    record_args(
        job,
        class_names=list(corpus.class_names),
        space_fingerprint=parts.space.fingerprint(),
        latent_dim=parts.space.dim,
        latent_length=parts.space.length,
        trainable_params=sum(p.numel() for p in classifier.parameters()),
    )
    state.wrapped = wrap(classifier, job.ranks)
    step = ClassifierStep(state.wrapped, texts["train"], parts, job.plan())
    checker = ClassifierStep(classifier, texts["valid"], parts, job.held_out_plan(len(corpus.valid)))

    def validate(state: State) -> None:
        def judged(micro: int) -> dict[str, torch.Tensor]:
            losses, values = checker(0, micro)
            return {"loss": losses, **values}

        with evaluating(classifier), job.autocast():
            found = held_out_means(job.ranks, checker.plan, ("loss", *LOGGED), judged)
        job.log.record({f"val_{name}": value for name, value in found.items()}, state.step)
        job.log.say(
            f"names {100 * found['accuracy']:.1f} % of held-out labels at all noise levels, "
            f"{100 * found['accuracy_q1']:.1f} % in the cleanest quarter"
        )

    validation = Every(settings.eval_every, validate, name="validate")
    hooks = [
        validation,
        Every(settings.save_every or settings.eval_every, lambda state: state.save(job.folder)),
    ]
    reason = fit(job, state, step, hooks, started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    made_up = bool(state.owed)
    validation.at_end(state)
    if made_up:
        state.save(job.folder)
    return 0


def _encoded(job: Job, parts: Parts, data: TokenSplit, split: str) -> Encoded:
    """Texts as latents: from a cache beside the classifier, but for embeddings, which cost nothing."""
    folder = None if parts.space.trainable else job.folder / "latent_cache"
    return encoded_split(parts.space.space, data, folder, split, f"latents of the {split} split", job.ranks, "off")


def _dry_run(settings: Settings) -> int:
    of_run = parse(DIFFUSION, ["--eval", "--resume_dir", settings.diffusion_run])
    refuse_another_programs_run(of_run)

    def parts(settings: Settings) -> dict[str, Any]:
        import torch

        embeddings = of_run.latent_space == "embeddings"
        space: Any = EmptyEmbeddings(of_run) if embeddings else empty_space(of_run, bool(of_run.saved.get("seq2seq")))
        with torch.device("meta"):
            options = settings.build(ClassifierOptions)
            classifier = LatentClassifier(space.dim, space.length, _expected_classes(settings), options)
        return {"latent space": space.requires_grad_(False), "classifier": classifier}

    return dry_run(settings, parts, tokenizer_of(of_run), of_run.max_seq_len)


def _expected_classes(settings: Settings) -> int:
    """Of a corpus that may not be at hand; two are enough to show the parts."""
    options = settings.build(DataOptions)
    if registry.find(options) is None:
        corpus = registry.load(options)
        corpus.need_classes("a classifier")
        return corpus.num_classes
    row = registry.DATASETS.get(settings.dataset_name or "")
    return max(2, len(row.class_names) if row else 0)


@one_line
def main() -> int:
    code = run(parse(CLASSIFIER))
    finish()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
