"""Stage 2, whole: latents of a corpus -> a denoiser, sampled from and evaluated while it trains and afterwards."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from pipelines.builders.embeddings import MetaEmbeddings, tokenizer_of
from pipelines.builders.models import DiffusionModel, encoder_options, meta_space, save_encoder_config
from pipelines.builders.diffusion_process import make_process
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.context_encoder import load_context_encoder, resolve_source_limit
from pipelines.summary import summarize_run, dry_run, log_corpus_stats
from pipelines.evaluators.evaluator import Evaluator, make_evaluator
from pipelines.run_context import RunContext, fit, load_corpus, make_train_state, setup_run, save_args
from pipelines.builders.components import (
    Components,
    load_trained_weights,
    make_generator,
    build_components,
    make_sources,
    named_components,
    new_model,
    check_guidance,
)
from pipelines.steps.spaces import SPACES, Step
from pipelines.steps.teacher import Teacher, load_teacher, teacher_facts
from pipelines.steps.timestep_sampler import TimestepSampler
from pipelines.best_checkpoint import save_if_best, load_best_score
from pipelines.validation import mean_losses
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.cli.settings import Settings
from utils.distributed import wrap
from utils.ema import EMA
from utils.errors import UserError
from utils.hooks import Hook, PeriodicHook, StepResult
from utils.preemption import EXIT_CODES
from utils.pretrained import load_into
from utils.state import State
from utils.train_eval import eval_mode


def run(settings: Settings[DiffusionConfig]) -> int:
    """Train, sample and evaluate; with --eval, --eval_test or --gen_data use a trained run. Returns the exit code."""
    started = time.monotonic()
    if settings.config.run.dry_run:
        return dry_run(settings, _empty_parts, tokenizer_of(settings))
    job = setup_run(settings, "text_denoising_diffusion", "diffusion")
    run_folder = Path(settings.config.run.resume_dir) if job.is_eval else job.folder
    if settings.config.distillation.distill_run and not settings.config.run.resume_dir:
        run_folder = Path(settings.config.distillation.distill_run)  # a new student's parts are those of its teacher
    corpus = _corpus(job)
    parts = build_components(
        settings,
        run_folder,
        job.device,
        corpus.num_classes,
        resolve_source_limit(settings, corpus),
        corpus.train.all_texts(),
    )
    if job.is_eval:
        load_trained_weights(parts.model, run_folder, best=parts.seq2seq and not settings.config.pairs.newest_checkpoint)
        evaluator = _evaluator(job, parts, corpus)
        if not settings.config.evaluation.gen_data:
            evaluator.load_models()
        return evaluator.evaluate_run()
    return _train(job, parts, corpus, started)


def _evaluator(job: RunContext[DiffusionConfig], parts: Components, corpus: Corpus) -> Evaluator:
    generator = make_generator(job.settings, parts, job.device, job.autocast, job.dist)
    options = job.settings.config.trajectory
    if options.trajectory and job.dist.is_main:
        generator.with_trajectory(
            texts=options.trajectory_texts,
            snapshots=options.trajectory_steps,
            file=sys.stderr,
            path=job.folder / "trajectory.json",
        )
    return make_evaluator(job, generator, corpus, make_sources(job.settings, parts, job.device, job.autocast))


def _corpus(job: RunContext[DiffusionConfig]) -> Corpus:
    """The corpus of the flags, with the labels that the run needs."""
    settings, corpus = job.settings, load_corpus(job)
    if settings.config.denoiser.class_conditional:
        corpus.require_classes()
    trained = settings.checkpoint_args.get("class_names")
    if trained and list(corpus.class_names) != trained:
        raise UserError(
            f"{settings.config.run.resume_dir} learned the classes {', '.join(trained)}, and {corpus.name} has "
            f"{', '.join(corpus.class_names) or 'none'}: name texts with the same classes"
        )
    return corpus


def _train(job: RunContext[DiffusionConfig], parts: Components, corpus: Corpus, started: float) -> int:
    settings, model, space = job.settings, parts.model, parts.space
    teacher = None
    if settings.config.distillation.distill_run is not None:
        teacher = load_teacher(settings, job.folder, parts.process.grid, job.device)
    times = TimestepSampler(parts.process, job.dist)
    data_module = SPACES[settings.config.latents.latent_space].make_data(job, parts, corpus)
    make_step = SPACES[settings.config.latents.latent_space].steps(job, parts, data_module, times, teacher)
    data = data_module.tokens["train"]
    reader = (parts.context.model.tokenizer, parts.context.states.length) if parts.context else ()
    log_corpus_stats(job, corpus, data_module.tokenizer, *reader)
    job.log(summarize_run(job, named_components(parts), corpus, data))
    if not settings.config.run.resume_training and job.dist.is_main:
        data_module.save_artifacts(job.folder)
        save_encoder_config(model.denoiser, job.folder)
    state = make_train_state(job, model, make_ema(settings, model), extra=dict(times.stateful()))
    if settings.config.run.resume_training:
        state.restore(checkpoints.load(job.folder))
        state.best = load_best_score(job.folder, state.best)
    save_args(  # only now: a folder that cannot be resumed is left as it is
        job,
        **data_module.metadata(job.folder),
        **teacher_facts(settings, job.folder),
        latent_dim=space.dim,
        latent_length=space.length,
        class_names=list(corpus.class_names) if settings.config.denoiser.class_conditional else [],
        seq2seq=parts.seq2seq,
        trainable_params=sum(p.numel() for p in state.parameters()),
    )
    # what the flags name and is not there, or is of another kind, is better known before hours of encoding
    evaluator = _evaluator(job, parts, corpus)
    evaluator.load_models()
    begin = first_weights(settings, teacher)
    begin(model)
    data_module.setup(estimate_stats=not settings.config.run.resume_training)
    if not settings.config.run.resume_training:
        begin(model)  # its statistics, too, count over those just measured
        # made anew, of the weights and statistics as they are now
        state.ema = make_ema(settings, model)

    state.wrapped = network = wrap(make_step.network, job.dist)
    batch_sampler = job.batch_sampler()
    validation_sampler = job.validation_sampler(len(data_module.tokens["valid"]))
    step, checker = make_step(network, batch_sampler), make_step(make_step.network, validation_sampler)

    if settings.config.process.T_schedule != "normal":
        job.log(
            f"note: --T_schedule {settings.config.process.T_schedule} anneals the noise levels of training (logged as T); validation "
            "losses and samples are over the whole range throughout"
        )

    def validate(state: State, report: StepResult) -> None:
        """Not an Every: done at a step that a signal ends, too, or the log of the resumed run would lack it."""
        assert state.ema is not None
        if state.step % settings.config.loop.log_every == 0:
            job.logger.record(compute_validation_losses(job, model, state.ema, checker), state.step)

    def sample(state: State) -> None:
        assert state.ema is not None
        with state.ema.applied():
            score = evaluator.evaluate_training(state.step)
        save_if_best(job, state, score)

    job.logger.extra = lambda done: {
        "epoch": done * batch_sampler.global_batch_size / len(data),
        "samples": done * batch_sampler.global_batch_size,
        "T": parts.process.max_time(done, settings.config.loop.num_train_steps),
    }
    sampling = PeriodicHook(
        settings.config.intervals.sample_every or settings.config.intervals.save_and_sample_every, sample, name="sample"
    )
    hooks: list[Hook] = [
        times.sync_losses,
        validate,
        # first to the disk: what an evaluation stumbles over must not cost the steps before it
        PeriodicHook(
            settings.config.loop.save_every or settings.config.intervals.save_and_sample_every,
            lambda state: state.save(job.folder),
        ),
        sampling,
    ]
    reason = fit(job, state, step, hooks, started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    made_up = bool(state.pending)
    sampling.finish(state)
    if made_up:
        state.save(job.folder)  # that it need not be made up for again
    return 0


def make_ema(settings: Settings[DiffusionConfig], model: DiffusionModel) -> EMA:
    """The weights as they are now, from which their average sets out."""
    foreach = not settings.config.optimizer.no_fused_optimizer
    return EMA(model, settings.config.ema.ema_decay, settings.config.ema.ema_update_every, foreach=together)


def first_weights(settings: Settings[DiffusionConfig], teacher: Teacher | None) -> Callable[[DiffusionModel], None]:
    """What gives a new run the weights of --init_path, or those of its teacher; nothing without."""
    if settings.config.run.resume_training or not (settings.config.intervals.init_path or teacher):
        return lambda model: None
    if teacher is None:
        return partial(load_into, checkpoint=checkpoints.load(settings.config.intervals.init_path))
    return partial(
        load_into, checkpoint=Checkpoint({"model": teacher.weights}, {}, Path(settings.config.distillation.distill_run))
    )


def compute_validation_losses(job: RunContext[DiffusionConfig], model: DiffusionModel, ema: EMA, step: Step) -> dict[str, float]:
    """Over val_loss_examples validation texts and the whole range of times, by the weights and by their average.

    Every rank must ask: each does its share.
    """

    def mean(name: str) -> dict[str, float]:
        return mean_losses(
            job.dist, step.batch_sampler, [name], lambda micro: {name: step(step.num_steps, micro)[0]}
        )

    with eval_mode(model), job.autocast():
        found = mean("val_loss")
        with ema.applied():
            return found | mean("val_ema_loss")


def _empty_parts(settings: Settings[DiffusionConfig]) -> Mapping[str, nn.Module]:
    """What a dry run builds, without weights."""
    options = settings.config.denoiser
    classes, sources = _expected_conditions(settings)
    embeddings, context = settings.config.latents.latent_space == "embeddings", None
    space: Any = MetaEmbeddings(settings) if embeddings else meta_space(settings, sources > 0)
    if sources and not embeddings:
        run = Path(settings.config.run.resume_dir or settings.config.distillation.distill_run or ".")
        context = load_context_encoder(settings, run, space, torch.device("cpu"), sources, empty=True)
    with torch.device("meta"):
        classes = classes if options.class_conditional else 0
        encoder = encoder_options(settings, None)
        model = new_model(space, options, settings.config.language_model.max_seq_len, classes, context, encoder)
    check_guidance(settings, sources > 0)
    process = make_process(
        settings.config.process,
        settings.config.sampling,
        options.denoiser_variant,
        student=settings.config.distillation.distill_run is not None,
    )
    return named_components(Components(model.normalize(space), model, process, context))


def _expected_conditions(settings: Settings[DiffusionConfig]) -> tuple[int, int]:
    """Classes, and the longest source in tokens (0 without sources), of a corpus that may not be at hand."""
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
