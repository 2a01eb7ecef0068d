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
from model.classifier import LatentClassifier
from pipelines.builders.embeddings import MetaEmbeddings, tokenizer_of
from pipelines.builders.models import meta_space
from pipelines.cli.configs import ClassifierConfig
from pipelines.cli.programs import CLASSIFIER, DIFFUSION
from pipelines.data.cached_latents import EncodedSplit, encode_or_load
from pipelines.data.tokens import TokenSplit, tokenize_for
from pipelines.summary import dry_run
from pipelines.run_context import (
    RunContext,
    fit,
    load_corpus,
    make_train_state,
    setup_run,
    save_args,
    check_same_program,
)
from pipelines.load_run import load_run
from pipelines.builders.components import Components
from pipelines.steps.classifier import METRICS, ClassifierStep
from pipelines.validation import mean_losses
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.distributed import cleanup, wrap
from utils.errors import UserError, exit_on_user_error
from utils.hooks import PeriodicHook
from utils.preemption import EXIT_CODES
from utils.seeding import derive_seed
from utils.state import State
from utils.train_eval import eval_mode


def run(settings: Settings[ClassifierConfig]) -> int:
    """Train and save. Returns the exit code."""
    import torch

    started = time.monotonic()
    if settings.config.task.diffusion_run is None:
        raise UserError("--diffusion_run is missing: name the run folder whose samples are to be controlled")
    read_args(Path(settings.config.task.diffusion_run))  # one line where it is no run, before a folder is made
    if settings.config.run.dry_run:
        return _dry_run(settings)
    job = setup_run(settings, "text_latent_classifier", "classifier")
    trained = load_run(settings.config.task.diffusion_run, device=settings.config.loop.device)
    parts = trained.parts
    parts.model.requires_grad_(False).eval()
    corpus = load_corpus(job)
    corpus.require_classes("a classifier")
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    classifier = LatentClassifier(
        parts.space.dim, parts.space.length, corpus.num_classes, settings.config.classifier
    ).to(job.device)
    state = make_train_state(job, classifier)
    if settings.config.run.resume_training:
        state.restore(checkpoints.load(job.folder))
    length = trained.settings.config.language_model.max_seq_len
    texts = {
        name: _encoded(job, parts, tokenize_for(parts.space.space, corpus.splits[name], length), name)
        for name in ("train", "valid")
    }
    save_args(
        job,
        class_names=list(corpus.class_names),
        space_fingerprint=parts.space.fingerprint(),
        latent_dim=parts.space.dim,
        latent_length=parts.space.length,
        trainable_params=sum(p.numel() for p in classifier.parameters()),
    )
    state.wrapped = wrap(classifier, job.dist)
    step = ClassifierStep(state.wrapped, texts["train"], parts, job.batch_sampler())
    checker = ClassifierStep(classifier, texts["valid"], parts, job.validation_sampler(len(corpus.valid)))

    def validate(state: State) -> None:
        def judged(micro: int) -> dict[str, torch.Tensor]:
            losses, values = checker(0, micro)
            return {"loss": losses, **values}

        with eval_mode(classifier), job.autocast():
            found = mean_losses(job.dist, checker.batch_sampler, ("loss", *METRICS), judged)
        job.logger.record({f"val_{name}": value for name, value in found.items()}, state.step)
        job.logger.print(
            f"names {100 * found['accuracy']:.1f} % of held-out labels at all noise levels, "
            f"{100 * found['accuracy_q0']:.1f} % in the cleanest quarter"
        )

    validation = PeriodicHook(settings.config.task.eval_every, validate, name="validate")
    hooks = [
        validation,
        PeriodicHook(
            settings.config.loop.save_every or settings.config.task.eval_every, lambda state: state.save(job.folder)
        ),
    ]
    reason = fit(job, state, step, hooks, started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    made_up = bool(state.pending)
    validation.finish(state)
    if made_up:
        state.save(job.folder)
    return 0


def _encoded(job: RunContext[ClassifierConfig], parts: Components, data: TokenSplit, split: str) -> EncodedSplit:
    """Texts as latents: from a cache beside the classifier, but for embeddings, which cost nothing."""
    folder = None if parts.space.learned_with_denoiser else job.folder / "latent_cache"
    return encode_or_load(parts.space.space, data, folder, split, f"latents of the {split} split", job.dist, "off")


def _dry_run(settings: Settings[ClassifierConfig]) -> int:
    of_run = parse(DIFFUSION, ["--eval", "--resume_dir", settings.config.task.diffusion_run])
    check_same_program(of_run)

    def parts(settings: Settings[ClassifierConfig]) -> dict[str, Any]:
        import torch

        embeddings = of_run.config.latents.latent_space == "embeddings"
        space: Any = MetaEmbeddings(of_run) if embeddings else meta_space(of_run, bool(of_run.checkpoint_args.get("seq2seq")))
        with torch.device("meta"):
            options = settings.config.classifier
            classifier = LatentClassifier(space.dim, space.length, _expected_classes(settings), options)
        return {"latent space": space.requires_grad_(False), "classifier": classifier}

    return dry_run(settings, parts, tokenizer_of(of_run), of_run.config.language_model.max_seq_len)


def _expected_classes(settings: Settings[ClassifierConfig]) -> int:
    """Of a corpus that may not be at hand; two are enough to show the parts."""
    options = settings.config.data
    if registry.missing_files_message(options) is None:
        corpus = registry.load(options)
        corpus.require_classes("a classifier")
        return corpus.num_classes
    row = registry.DATASETS.get(settings.config.data.dataset_name or "")
    return max(2, len(row.class_names) if row else 0)


@exit_on_user_error
def main() -> int:
    code = run(parse(CLASSIFIER))
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
