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
from utils.pretrained import load_into
from pipelines.builders.process import make_process
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.context_encoder import load_context_encoder, resolve_source_limit
from pipelines.describe import describe_run, dry_run, survey_corpus
from pipelines.evaluators.evaluator import Evaluator, make_evaluator
from pipelines.job import Job, fit, load_corpus, new_state, open_job, record_args
from pipelines.parts import (
    Parts,
    fill_from_run,
    make_generator,
    make_parts,
    make_sources,
    named_parts,
    new_model,
    refuse_guidance_without_null,
)
from pipelines.steps.teacher import Teacher, load_teacher, teacher_facts
from pipelines.steps.timestep_sampler import TimestepSampler
from pipelines.training.best import keep_if_best, remembered_best
from pipelines.training.held_out import held_out_means
from pipelines.training.spaces import SPACES, Step
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.cli.settings import Settings
from utils.distributed import wrap
from utils.ema import EMA
from utils.errors import UserError
from utils.hooks import Hook, PeriodicHook, StepResult
from utils.preemption import EXIT_CODES
from utils.state import State
from utils.train_eval import eval_mode


def run(settings: Settings[DiffusionConfig]) -> int:
    """Train, sample and evaluate; with --eval, --eval_test or --gen_data use a trained run. Returns the exit code."""
    started = time.monotonic()
    if settings.config.run.dry_run:
        return dry_run(settings, _empty_parts, tokenizer_of(settings))
    job = open_job(settings, "text_denoising_diffusion", "diffusion")
    run_folder = Path(settings.config.run.resume_dir) if job.evaluating else job.folder
    if settings.config.distillation.distill_run and not settings.config.run.resume_dir:
        run_folder = Path(settings.config.distillation.distill_run)  # a new student's parts are those of its teacher
    corpus = _corpus(job)
    parts = make_parts(
        settings,
        run_folder,
        job.device,
        corpus.num_classes,
        resolve_source_limit(settings, corpus),
        corpus.train.all_texts(),
    )
    if job.evaluating:
        fill_from_run(parts.model, run_folder, best=parts.seq2seq and not settings.config.pairs.newest_checkpoint)
        evaluator = _evaluator(job, parts, corpus)
        if not settings.config.evaluation.gen_data:
            evaluator.load_models()
        return evaluator.evaluate_run()
    return _train(job, parts, corpus, started)


def _evaluator(job: Job[DiffusionConfig], parts: Parts, corpus: Corpus) -> Evaluator:
    generator = make_generator(job.settings, parts, job.device, job.autocast, job.dist)
    options = job.settings.config.trajectory
    if options.trajectory and job.dist.is_main:
        generator.with_trajectory(
            texts=options.trajectory_texts,
            snapshots=options.trajectory_views,
            file=sys.stderr,
            path=job.folder / "trajectory.json",
        )
    return make_evaluator(job, generator, corpus, make_sources(job.settings, parts, job.device, job.autocast))


def _corpus(job: Job[DiffusionConfig]) -> Corpus:
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


def _train(job: Job[DiffusionConfig], parts: Parts, corpus: Corpus, started: float) -> int:
    settings, model, space = job.settings, parts.model, parts.space
    teacher = None
    if settings.config.distillation.distill_run is not None:
        teacher = load_teacher(settings, job.folder, parts.process.grid, job.device)
    times = TimestepSampler(parts.process, job.dist)
    data_module = SPACES[settings.config.latents.latent_space].make_data(job, parts, corpus)
    make_step = SPACES[settings.config.latents.latent_space].steps(job, parts, data_module, times, teacher)
    data = data_module.tokens["train"]
    reader = (parts.context.model.tokenizer, parts.context.states.length) if parts.context else ()
    survey_corpus(job, corpus, data_module.tokenizer, *reader)
    job.say(describe_run(job, named_parts(parts), corpus, data))
    if not settings.config.run.resume_training and job.dist.is_main:
        data_module.save_artifacts(job.folder)
        save_encoder_config(model.denoiser, job.folder)
    state = new_state(job, model, new_averages(settings, model), extra=dict(times.stateful()))
    if settings.config.run.resume_training:
        state.restore(checkpoints.load(job.folder))
        state.best = remembered_best(job.folder, state.best)
    record_args(  # only now: a folder that cannot be resumed is left as it is
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
        state.ema = new_averages(settings, model)

    state.wrapped = network = wrap(make_step.network, job.dist)
    batch_sampler = job.batch_sampler()
    validation_sampler = job.validation_sampler(len(data_module.tokens["valid"]))
    step, checker = make_step(network, batch_sampler), make_step(make_step.network, validation_sampler)

    if settings.config.process.T_schedule != "normal":
        job.say(
            f"note: --T_schedule {settings.config.process.T_schedule} anneals the noise levels of training (logged as T); validation "
            "losses and samples are over the whole range throughout"
        )

    def validate(state: State, report: StepResult) -> None:
        """Not an Every: done at a step that a signal ends, too, or the log of the resumed run would lack it."""
        assert state.ema is not None
        if state.step % settings.config.loop.log_every == 0:
            job.log.record(validation_losses(job, model, state.ema, checker), state.step)

    def sample(state: State) -> None:
        assert state.ema is not None
        with state.ema.applied():
            score = evaluator.evaluate_training(state.step)
        keep_if_best(job, state, score)

    job.log.extra = lambda done: {
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


def new_averages(settings: Settings[DiffusionConfig], model: DiffusionModel) -> EMA:
    """The weights as they are now, from which their average sets out."""
    foreach = not settings.config.optimizer.no_fused_optimizer
    return EMA(model, settings.config.ema.ema_decay, settings.config.ema.ema_update_every, foreach=together)


def first_weights(settings: Settings[DiffusionConfig], teacher: Teacher | None) -> Callable[[DiffusionModel], None]:
    """What gives a new run the weights of --init_path, or those of its teacher; nothing without."""
    if settings.config.run.resume_training or not (settings.config.intervals.init_path or teacher):
        return lambda model: None
    if teacher is None:
        return partial(fill, checkpoint=checkpoints.load(settings.config.intervals.init_path))
    return partial(
        fill, checkpoint=Checkpoint({"model": teacher.weights}, {}, Path(settings.config.distillation.distill_run))
    )


def validation_losses(job: Job[DiffusionConfig], model: DiffusionModel, ema: EMA, step: Step) -> dict[str, float]:
    """Over --val_loss_texts validation texts and the whole range of times, by the weights and by their average.

    Every rank must ask: each does its share.
    """

    def mean(name: str) -> dict[str, float]:
        return held_out_means(
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
    refuse_guidance_without_null(settings, sources > 0)
    process = make_process(
        settings.config.process,
        settings.config.sampling,
        options.denoiser_variant,
        student=settings.config.distillation.distill_run is not None,
    )
    return named_parts(Parts(model.normalize(space), model, process, context))


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
