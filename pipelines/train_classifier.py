"""Train a classifier on the noised latents of a diffusion run, for control by --latent_classifier.

    python -m pipelines.train_classifier --diffusion_run runs/simple --train_file simple_labeled.tsv

The latent space, the noise schedule and the averaged weights are those of the run, so that the classifier trains on
what a sampler visits. Works in every latent space. Takes minutes for a small corpus.
"""

from __future__ import annotations

import time
from pathlib import Path

from dataset_utils import registry
from model.classifier import LatentClassifier
from pipelines.best_checkpoint import best_score, check_best_metric, given_checkpoint, load_best_score, save_if_best
from pipelines.builders.embeddings import tokenizer_of
from pipelines.cli.configs import ClassifierConfig
from pipelines.cli.programs import CLASSIFIER, DIFFUSION
from pipelines.components import Components, build_components
from pipelines.data.cache_plan import Parts, plan_splits
from pipelines.data.cached_latents import EncodedSplit, encode_or_load
from pipelines.data.tokens import TokenSplit, tokenize_for
from pipelines.load_run import load_run
from pipelines.recorded_models import find_moved_models
from pipelines.run_context import (
    RunContext,
    check_same_program,
    dataset_label,
    load_corpus,
    make_train_state,
    save_args,
    setup_run,
)
from pipelines.steps.classifier import METRICS, ClassifierStep
from pipelines.summary import dry_run
from pipelines.training import resume, run_training
from pipelines.validation import mean_losses
from utils.cache_folder import encoded_folder
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.distributed import cleanup, wrap
from utils.errors import UserError, exit_on_user_error
from utils.hooks import PeriodicHook
from utils.seeding import derive_seed
from utils.state import State
from utils.train_eval import eval_mode


def train(settings: Settings[ClassifierConfig]) -> int:
    """Train and save. Returns the exit code."""
    import torch

    started = time.monotonic()
    config = settings.config
    check_best_metric(settings, [f"val_{name}" for name in ("loss", *METRICS)])
    if config.task.diffusion_run is None:
        raise UserError("--diffusion_run is missing: name the run folder whose samples are to be controlled")
    notes = find_moved_models(settings)
    read_args(Path(config.task.diffusion_run))  # UserError if it is no run, before a folder is made
    if config.run.dry_run:
        return _dry_run(settings)

    run = setup_run(
        settings, "text_latent_classifier", "classifier", check_corpus=lambda c: c.require_classes("a classifier")
    )
    for note in notes:
        run.log(f"note: {note}")
    checkpoint = given_checkpoint(settings, "diffusion_run")
    diffusion_run = load_run(
        config.task.diffusion_run,
        device=config.loop.device,
        mixed_precision=config.loop.mixed_precision or "no",  # that of this program
        **checkpoint,
    )
    run.record_weights("diffusion_run", diffusion_run.weights)
    components = diffusion_run.components
    components.model.requires_grad_(False).eval()
    corpus = load_corpus(run)
    torch.manual_seed(derive_seed(config.loop.random_seed, "weights"))
    classifier = build_classifier(settings, components, corpus.num_classes).to(run.device)

    state = make_train_state(run, classifier)
    if resume(run, state):
        state.best = load_best_score(run.folder, state.best)
    max_seq_len = diffusion_run.settings.config.language_model.max_seq_len
    latents = {
        name: encode_split(
            run, components, tokenize_for(components.space.space, corpus.splits[name], max_seq_len), name
        )
        for name in ("train", "valid")
    }
    save_args(
        run,
        parts={"classifier": classifier},
        class_names=list(corpus.class_names),
        space_fingerprint=components.space.fingerprint(),
        latent_dim=components.space.dim,
        latent_length=components.space.length,
        trainable_params=sum(p.numel() for p in classifier.parameters()),
    )
    state.wrapped = wrap(classifier, run.dist)
    step = ClassifierStep(state.wrapped, latents["train"], components, run.batch_sampler())
    validation_sampler = run.validation_sampler(len(corpus.valid))
    validation_step = ClassifierStep(classifier, latents["valid"], components, validation_sampler)

    def validate(state: State) -> None:
        def measure(micro: int) -> dict[str, torch.Tensor]:
            losses, values = validation_step(0, micro)
            return {"loss": losses, **values}

        with eval_mode(classifier), run.autocast():
            means = mean_losses(run.dist, validation_sampler, ("loss", *METRICS), measure)
        metrics = {f"val_{name}": value for name, value in means.items()}
        run.logger.record(metrics, state.step)
        save_if_best(run, state, best_score(run, metrics, None))
        run.logger.print(
            f"accuracy on held-out texts: {100 * means['accuracy']:.1f} % at all noise levels, "
            f"{100 * means['accuracy_q0']:.1f} % in the quarter with least noise"
        )

    return run_training(
        run,
        state,
        step,
        started=started,
        evaluation=PeriodicHook(config.task.eval_every, validate, name="validate"),
        save_every=config.loop.save_every or config.task.eval_every,
    )


def build_classifier(
    settings: Settings[ClassifierConfig], components: Components, num_classes: int
) -> LatentClassifier:
    """A classifier with fresh weights for the latents of a run, on the default device of torch."""
    space = components.space
    return LatentClassifier(space.dim, space.length, num_classes, settings.config.classifier)


def encode_split(
    run: RunContext[ClassifierConfig], components: Components, data: TokenSplit, split: str
) -> EncodedSplit:
    """Latents of a split, cached; embeddings are not cached, because a look-up costs nothing."""
    options, is_cached = run.settings.config.cache, not components.space.learned_with_denoiser
    return encode_or_load(
        components.space.space,
        data,
        encoded_folder(options.cache_dir, None, [run.folder]) if is_cached else None,
        split,
        f"latents of the {split} split",
        run.dist,
        "off",
        options.latent_cache_dtype,
        max_bytes=1e9 * options.max_cache_gb,
        corpus=dataset_label(run.settings),
    )


def _dry_run(settings: Settings[ClassifierConfig]) -> int:
    folder = str(settings.path("diffusion_run"))
    diffusion_run = parse(DIFFUSION, ["--eval", "--resume_dir", folder])
    check_same_program(diffusion_run)

    def build(settings: Settings[ClassifierConfig]) -> Parts:
        import torch

        saved = diffusion_run.checkpoint_args
        source_tokens = (diffusion_run.config.context.max_source_len or 1) if saved.get("seq2seq") else 0
        components = build_components(
            diffusion_run,
            Path(folder),
            torch.device("meta"),
            len(saved.get("class_names", ())),
            source_tokens,
        )
        with torch.device("meta"):
            classifier = build_classifier(settings, components, _expected_classes(settings))
        space, dtype = components.space.space.requires_grad_(False), settings.config.cache.latent_cache_dtype
        longest = diffusion_run.config.language_model.max_seq_len
        caches = [] if space.learned_with_denoiser else plan_splits(space, longest, dtype)
        return Parts({"latent space": space, "classifier": classifier}, caches, [settings.config.run.resume_dir])

    return dry_run(settings, build, tokenizer_of(diffusion_run), diffusion_run.config.language_model.max_seq_len)


def _expected_classes(settings: Settings[ClassifierConfig]) -> int:
    """Number of classes of the corpus; by the catalog, and at least 2, where its files are missing."""
    options = settings.config.data
    if registry.missing_files_message(options) is None:
        corpus = registry.load(options)
        corpus.require_classes("a classifier")
        return corpus.num_classes
    row = registry.DATASETS.get(options.dataset_name or "")
    return max(2, len(row.class_names) if row else 0)


@exit_on_user_error
def main() -> int:
    code = train(parse(CLASSIFIER))
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
