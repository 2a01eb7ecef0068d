"""Stage 2: train a denoiser on the latents of a corpus, sample from it, and evaluate the samples."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from latent_models.spaces.normalization import NormalizedSpace
from pipelines.averages import choose_average, ema_loss, make_averages
from pipelines.best_checkpoint import (
    LOSSES,
    best_score,
    check_best_metric,
    load_best_score,
    save_if_best,
)
from pipelines.builders.adapted import take_adapted_decoder
from pipelines.builders.embeddings import tokenizer_of
from pipelines.builders.joint import left_out, write_autoencoder_copy
from pipelines.builders.models import DiffusionModel, autoencoder_folder, save_encoder_config
from pipelines.cli.configs import DiffusionConfig
from pipelines.components import (
    Components,
    build_components,
    load_trained_weights,
    make_generator,
    make_sources,
    named_components,
)
from pipelines.data.batch_sampler import ValidationSampler
from pipelines.data.cache_plan import Parts, PlannedCache, plan_splits
from pipelines.data.context_encoder import resolve_source_limit
from pipelines.data.datamodule import DataModule
from pipelines.evaluators.evaluator import Evaluator, make_evaluator
from pipelines.evaluators.latent_norms import NUM_TEXTS, norms, write_norms
from pipelines.finish import finish
from pipelines.initial_checkpoint import load_initial_checkpoint, take_optimizer
from pipelines.run_context import RunContext, load_corpus, make_train_state, save_args, setup_run
from pipelines.sampling.classes import canonical_names
from pipelines.steps.diffusion import QUARTERS, TimestepSampler
from pipelines.steps.joint import JointSteps
from pipelines.steps.spaces import Step, space_training
from pipelines.steps.teacher import find_teacher, load_teacher, teacher_facts
from pipelines.summary import dry_run, log_corpus_stats, summarize_run
from pipelines.training import progress_metrics, resume, run_training
from pipelines.validation import mean_losses
from utils.cli.settings import Settings
from utils.distributed import wrap
from utils.errors import UserError
from utils.hooks import PeriodicHook, StepResult
from utils.pretrained import load_into, read_checkpoint
from utils.state import State
from utils.trackers import Histogram
from utils.train_eval import eval_mode


def train(settings: Settings[DiffusionConfig]) -> int:
    """Train; with --eval, --eval_test or --gen_data, use a trained run. Returns the exit code."""
    started = time.monotonic()
    config = settings.config
    if config.run.dry_run:
        return dry_run(settings, _meta_components, tokenizer_of(settings))
    run = setup_run(settings, "text_denoising_diffusion", "diffusion", check_corpus=partial(check_classes, settings))

    # data and model
    corpus = load_corpus(run)
    components = build_components(
        settings,
        _components_folder(run),
        run.device,
        corpus.num_classes,
        resolve_source_limit(settings, corpus),
        corpus.train.all_texts(),
    )
    if run.is_eval:
        return evaluate(run, components, corpus)
    model, space, process = components.model, components.space, components.process
    teacher = None
    if config.distillation.distill_run is not None:
        teacher = load_teacher(settings, run.folder, process.grid, run.device)
        run.record_weights("distill_run", teacher.weights_read)
    timestep_sampler = TimestepSampler(process, run.dist)
    assert config.latents.latent_space is not None  # a rule of the command line sets it
    row = space_training(config.latents.latent_space)
    data_module = row.make_data(run, components, corpus)
    joint = config.joint.joint_run is not None
    if joint and (note := left_out(autoencoder_folder(settings, run.folder))) is not None:
        run.log(note)
    make_step = (JointSteps if joint else row.steps)(run, components, data_module, timestep_sampler, teacher)
    train_tokens, valid_tokens = data_module.tokens["train"], data_module.tokens["valid"]
    reader = (components.context.model.tokenizer, components.context.states.length) if components.context else ()
    log_corpus_stats(run, corpus, data_module.tokenizer, *reader)
    run.log(summarize_run(run, named_components(components), corpus, train_tokens))

    def save_artifacts() -> None:
        data_module.save_artifacts(run.folder)
        save_encoder_config(model.denoiser, run.folder)
        if teacher is not None:
            take_adapted_decoder(find_teacher(settings, run.folder), run.folder)

    run.write_files(save_artifacts, now=not config.run.resume_training)

    # training state
    state = make_train_state(run, model, extra=dict(timestep_sampler.state_to_checkpoint()))
    make_averages(settings, state)
    resumed = resume(run, state)
    if resumed:
        state.best = load_best_score(run.folder, state.best)
    initial = None if resumed else load_initial_checkpoint(run, teacher, model)
    save_args(  # only after resume(), which changes nothing in a folder that cannot be resumed
        run,
        **data_module.metadata(run.folder),
        **teacher_facts(settings, run.folder),
        parts=named_components(components),
        latent_dim=space.dim,
        latent_length=space.length,
        class_names=list(corpus.class_names) if config.denoiser.class_conditional else [],
        seq2seq=components.seq2seq,
        **null_source_facts(settings, components),
        trainable_params=sum(p.numel() for p in state.parameters()),
    )
    evaluator = build_evaluator(run, components, corpus)
    check_best_metric(settings, (*LOSSES, *evaluator.output.metrics), evaluator.output.best_metric)
    evaluator.load_models()  # a missing scorer must fail now, not after hours of encoding
    if initial is not None:
        load_into(model, initial)  # before setup(), which encodes with weights that may be among these
    data_module.setup(estimate_stats=not resumed)
    if not resumed:
        if initial is not None:
            load_into(model, initial)  # again: its latent statistics replace those that setup() estimated
        make_averages(settings, state)  # from the weights and statistics as they are now
        if initial is not None and config.intervals.init_optimizer:
            take_optimizer(run, state, initial)

    # step and training
    state.wrapped = network = wrap(make_step.network, run.dist)
    step = make_step(network, run.batch_sampler())
    validation_sampler = run.validation_sampler(len(valid_tokens))
    validation_step = make_step(make_step.network, validation_sampler)
    if config.process.T_schedule != "normal":
        run.log(
            f"note: --T_schedule {config.process.T_schedule} limits the noise levels of training (logged as t_max); "
            "validation losses and samples always use all levels"
        )
        if settings.checkpoint_args.get("num_train_steps", config.loop.num_train_steps) != config.loop.num_train_steps:
            run.log(
                f"note: --T_schedule {config.process.T_schedule} follows the new number of steps: t_max is "
                f"{process.max_time(state.step, config.loop.num_train_steps):.3g} at step {state.step}"
            )

    measured: dict[int, dict[str, float]] = {}  # losses of the last validation, by its step

    def compute_losses(state: State) -> dict[str, float]:
        if state.step not in measured:
            measured.clear()
            measured[state.step] = compute_validation_losses(run, model, validation_step, validation_sampler, state)
        return measured[state.step]

    def log_validation_losses(state: State, report: StepResult) -> None:
        """No PeriodicHook, which skips a step that a signal ends: the log of a resumed run would lack that step."""
        if state.step % config.loop.log_every == 0:
            run.logger.record(compute_losses(state), state.step)

    def sample(state: State) -> None:
        losses = compute_losses(state)
        loss = choose_average(run, state, losses)
        with state.best_ema.applied():
            log_text_norms(run, data_module, space, state.step)
            metrics = evaluator.evaluate_training(state.step)
        found = None if metrics is None else {**losses, "val_ema_loss": loss, **metrics}
        save_if_best(run, state, best_score(run, found, evaluator.output.best_metric))

    progress, num_steps = progress_metrics(run, len(train_tokens)), config.loop.num_train_steps
    run.logger.extra = lambda step: {**progress(step), "t_max": process.max_time(step, num_steps)}
    sample_every = config.intervals.sample_every or config.intervals.save_and_sample_every
    code = run_training(
        run,
        state,
        step,
        started=started,
        hooks=[timestep_sampler.sync_losses, *getattr(make_step, "hooks", ())],
        validation_losses=log_validation_losses,
        evaluation=PeriodicHook(sample_every, sample, name="sample"),
        save_every=config.loop.save_every or config.intervals.save_and_sample_every,
        interval_flag="sample_every",
    )
    if joint and run.dist.is_main:
        # the weights that are read by default: --checkpoint chooses those of --joint_run here
        best = components.seq2seq or config.best.best_metric is not None
        write_autoencoder_copy(run.folder, read_checkpoint(run.folder, best))
    return code


def log_text_norms(
    run: RunContext[DiffusionConfig], data_module: DataModule, space: NormalizedSpace, step: int
) -> None:
    """Log the norms of the latents of validation texts, as the denoiser sees them."""
    tokens = data_module.tokens["valid"]
    rows = torch.arange(min(NUM_TEXTS, len(tokens)))
    cached = getattr(data_module, "latents", {}).get("valid")
    with torch.no_grad(), run.autocast():
        latents = space.encode(tokens.batch(rows, space.length).to(run.device)) if cached is None else cached(rows)[0]
    found = Histogram.of(norms(latents))
    run.logger.histogram("latent_norm/texts", found, step)
    if run.dist.is_main:
        write_norms(run.folder, {"validation texts": found})


def evaluate(run: RunContext[DiffusionConfig], components: Components, corpus: Corpus) -> int:
    """Evaluate a trained run, or sample a labeled data set from it. Returns the exit code."""
    config = run.settings.config
    folder, pairs = _components_folder(run), components.seq2seq
    run.weights = load_trained_weights(components.model, folder, run.settings, pairs=pairs)
    evaluator = build_evaluator(run, components, corpus)
    if not config.evaluation.gen_data:
        evaluator.load_models()
    code = evaluator.evaluate_run()
    finish(run, 0)
    return code


def build_evaluator(run: RunContext[DiffusionConfig], components: Components, corpus: Corpus) -> Evaluator:
    """The evaluator of a run, with a Trajectory hook if --trajectory is set."""
    generator = make_generator(run.settings, components, run.device, run.autocast, run.dist)
    options = run.settings.config.trajectory
    if options.trajectory and run.dist.is_main:
        generator.with_trajectory(
            texts=options.trajectory_texts,
            snapshots=options.trajectory_steps,
            file=sys.stderr,
            path=run.folder / "trajectory.json",
        )
    return make_evaluator(run, generator, corpus, make_sources(run.settings, components, run.device, run.autocast))


def _components_folder(run: RunContext[DiffusionConfig]) -> Path:
    """The folder from which components are loaded: that of a trained run, or of the teacher for a new student."""
    config = run.settings.config
    if config.distillation.distill_run and not config.run.resume_dir:
        return Path(config.distillation.distill_run)
    return Path(config.run.resume_dir or run.folder) if run.is_eval else run.folder


def null_source_facts(settings: Settings[DiffusionConfig], components: Components) -> dict[str, bool]:
    """Entry of args.json of a run that packs its sources: whether it also trains with null ones."""
    if not components.seq2seq or components.context is not None:
        return {}
    return {"null_sources": settings.config.process.seq2seq_unconditional_prob > 0}


def check_classes(settings: Settings[DiffusionConfig], corpus: Corpus) -> None:
    """UserError if the corpus lacks the classes that flags or the trained run need."""
    if settings.config.denoiser.class_conditional:
        corpus.require_classes()
    trained = settings.checkpoint_args.get("class_names")
    if trained and list(corpus.class_names) != canonical_names(trained):
        raise UserError(
            f"{settings.config.run.resume_dir} was trained on the classes {', '.join(trained)}, and {corpus.name} has "
            f"{', '.join(corpus.class_names) or 'none'}: name texts with the same classes"
        )


def compute_validation_losses(
    run: RunContext[DiffusionConfig], model: DiffusionModel, step: Step, sampler: ValidationSampler, state: State
) -> dict[str, float]:
    """Mean losses of --val_loss_examples validation texts over all noise levels: val_loss, and val_ema_loss; where the
    step logs its loss by quarter of the noise range also val_loss_q0 to val_loss_q3, and val_ema_loss_q0 and so on.
    With --ema_decays also val_ema_loss_DECAY of each.

    Every rank must call it: each computes its share.
    """
    quarters = step.logs_quarters * [f"_q{q}" for q in QUARTERS]

    def mean(name: str) -> dict[str, float]:
        def losses(micro: int) -> dict[str, Tensor]:
            loss, logged = step(step.num_steps, micro)
            return {name: loss, **{name + quarter: logged["loss" + quarter] for quarter in quarters}}

        return mean_losses(run.dist, sampler, [name, *(name + quarter for quarter in quarters)], losses)

    with eval_mode(model), run.autocast():
        losses = mean("val_loss")
        for name, ema in state.emas.items():
            with ema.applied():
                found = mean(ema_loss(name))
            losses |= found if name is None else {ema_loss(name): found[ema_loss(name)]}
    return losses


def _meta_components(settings: Settings[DiffusionConfig]) -> Parts:
    """The components on the meta device, for a dry run."""
    num_classes, source_tokens = _expected_conditions(settings)
    run = Path(settings.config.run.resume_dir or settings.config.distillation.distill_run or ".")
    components = build_components(settings, run, torch.device("meta"), num_classes, source_tokens)
    teacher = settings.config.distillation.distill_run
    return Parts(
        named_components(components), _planned_caches(settings, components), (teacher, settings.config.run.resume_dir)
    )


def _planned_caches(settings: Settings[DiffusionConfig], components: Components) -> list[PlannedCache]:
    """The caches that a training would write: those of LatentDataModule."""
    if settings.config.latents.no_latent_cache:
        return []
    space, context, dtype = components.space, components.context, settings.config.cache.latent_cache_dtype
    found: list[PlannedCache] = []
    if not space.learned_with_denoiser:
        found += plan_splits(space.space, settings.config.language_model.max_seq_len, dtype)
    if context is not None and not context.trained:
        found += plan_splits(context.states, context.states.length, dtype, "sources")
    return found


def _expected_conditions(settings: Settings[DiffusionConfig]) -> tuple[int, int]:
    """Number of classes, and longest source in tokens (0: no sources), of a corpus whose files may be missing."""
    row = registry.DATASETS.get(settings.config.data.dataset_name or "")
    if settings.checkpoint_args:
        classes = len(settings.checkpoint_args.get("class_names", ()))
        sources = settings.config.context.max_source_len or 0 if settings.checkpoint_args.get("seq2seq") else 0
    elif row is not None:
        classes, sources = len(row.class_names), row.max_source_tokens if row.source else 0
    elif registry.missing_files_message(settings.config.data) is None:
        corpus = registry.load(settings.config.data)
        classes, sources = corpus.num_classes, corpus.spec.max_source_tokens if corpus.train.sources else 0
    else:
        classes = sources = 0
    if settings.config.denoiser.class_conditional and not classes:
        classes = 2  # unknown until the corpus is read; two are enough to show the parts
    return classes, 0 if settings.config.context.ignore_sources else sources
