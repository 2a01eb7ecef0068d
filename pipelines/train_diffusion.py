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
from dataset_utils.options import DataOptions
from diffusion.options import ProcessOptions, SamplingOptions
from evaluation.options import EvaluationOptions
from model.options import DenoiserOptions
from pipelines.building.embeddings import EmptyEmbeddings, tokenizer_of
from pipelines.building.models import DiffusionModel, empty_space, encoder_options, fill, keep_encoder
from pipelines.building.process import make_process
from pipelines.data.context_encoder import load_context, source_tokens
from pipelines.data.datamodule import Step, Supply
from pipelines.data.embedding_datamodule import EmbeddingSupply
from pipelines.data.latent_datamodule import LatentSupply
from pipelines.describe import describe_run, dry_run, survey_corpus
from pipelines.evaluators.classes import ClassEvaluator
from pipelines.evaluators.pairs import PairEvaluator
from pipelines.evaluators.unconditional import Evaluator
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
from pipelines.training.best import keep_if_best, remembered_best
from pipelines.training.held_out import held_out_means
from pipelines.training.teacher import Teacher
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.distributed import wrap
from utils.ema import EMA
from utils.errors import UserError
from utils.hooks import Every, Hook, Report
from utils.modes import evaluating
from utils.settings import Settings
from utils.state import State
from utils.stop import EXIT_CODES


def run(settings: Settings) -> int:
    """Train, sample and evaluate; with --eval, --eval_test or --gen_data use a trained run. Returns the exit code."""
    started = time.monotonic()
    if settings.dry_run:
        return dry_run(settings, _empty_parts, tokenizer_of(settings))
    job = open_job(settings, "text_denoising_diffusion", "diffusion")
    run_folder = Path(settings.resume_dir) if job.evaluating else job.folder
    if settings.distill_run and not settings.resume_dir:
        run_folder = Path(settings.distill_run)  # a new student's parts are those of its teacher
    corpus = _corpus(job)
    parts = make_parts(
        settings, run_folder, job.device, corpus.num_classes, source_tokens(settings, corpus), corpus.train.all_texts()
    )
    if job.evaluating:
        fill_from_run(parts.model, run_folder, best=parts.seq2seq and not settings.newest_checkpoint)
        evaluator = _evaluator(job, parts, corpus)
        if not settings.gen_data:
            evaluator.load_judges()
        return evaluator.evaluate_run()
    return _train(job, parts, corpus, started)


def _evaluator(job: Job, parts: Parts, corpus: Corpus) -> Evaluator:
    generator = make_generator(job.settings, parts, job.device, job.autocast, job.ranks)
    options = job.settings.build(EvaluationOptions)
    if job.settings.trajectory and job.ranks.main:
        s = job.settings
        generator.watched(
            texts=s.trajectory_texts, views=s.trajectory_views, file=sys.stderr, path=job.folder / "trajectory.json"
        )
    sources = make_sources(job.settings, parts, job.device, job.autocast)
    if sources is not None:
        return PairEvaluator(job, generator, corpus, options, sources)
    kind = ClassEvaluator if job.settings.class_conditional else Evaluator
    return kind(job, generator, corpus, options)


def _corpus(job: Job) -> Corpus:
    """The corpus of the flags, with the labels that the run needs."""
    settings, corpus = job.settings, load_corpus(job)
    if settings.class_conditional:
        corpus.need_classes()
    trained = settings.saved.get("class_names")
    if trained and list(corpus.class_names) != trained:
        raise UserError(
            f"{settings.resume_dir} learned the classes {', '.join(trained)}, and {corpus.name} has "
            f"{', '.join(corpus.class_names) or 'none'}: name texts with the same classes"
        )
    return corpus


def _train(job: Job, parts: Parts, corpus: Corpus, started: float) -> int:
    settings, model, space = job.settings, parts.model, parts.space
    supply = make_supply(job, parts, corpus)
    data = supply.data
    reader = (parts.context.model.tokenizer, parts.context.states.length) if parts.context else ()
    survey_corpus(job, corpus, supply.tokenizer, *reader)
    job.say(describe_run(job, named_parts(parts), corpus, data))
    if not settings.resume_training and job.ranks.main:
        supply.keep(job.folder)
        keep_encoder(model.denoiser, job.folder)
    state = new_state(job, model, new_averages(settings, model), more=dict(supply.times.memory()))
    if settings.resume_training:
        state.restore(checkpoints.load(job.folder))
        state.best = remembered_best(job.folder, state.best)
    record_args(  # only now: a folder that cannot be resumed is left as it is
        job,
        **supply.facts(job.folder),
        latent_dim=space.dim,
        latent_length=space.length,
        class_names=list(corpus.class_names) if settings.class_conditional else [],
        seq2seq=parts.seq2seq,
        trainable_params=sum(p.numel() for p in state.parameters()),
    )
    # what the flags name and is not there, or is of another kind, is better known before hours of encoding
    evaluator = _evaluator(job, parts, corpus)
    evaluator.load_judges()
    begin = first_weights(settings, supply.teacher)
    begin(model)
    supply.open(measure=not settings.resume_training)
    if not settings.resume_training:
        begin(model)  # its statistics, too, count over those just measured
        # made anew, of the weights and statistics as they are now
        state.ema = new_averages(settings, model)

    state.wrapped = network = wrap(supply.network(), job.ranks)
    plan = job.plan()
    step, checker = supply.step(network, "train"), supply.step(supply.network(), "valid")

    if settings.T_schedule != "normal":
        job.say(
            f"note: --T_schedule {settings.T_schedule} anneals the noise levels of training (logged as T); validation "
            "losses and samples are over the whole range throughout"
        )

    def validate(state: State, report: Report) -> None:
        """Not an Every: done at a step that a signal ends, too, or the log of the resumed run would lack it."""
        assert state.ema is not None
        if state.step % settings.log_every == 0:
            job.log.record(validation_losses(job, model, state.ema, checker), state.step)

    def sample(state: State) -> None:
        assert state.ema is not None
        with state.ema.applied():
            score = evaluator.evaluate_training(state.step)
        keep_if_best(job, state, score)

    job.log.extra = lambda done: {
        "epoch": done * plan.total / len(data),
        "samples": done * plan.total,
        "T": parts.process.t_max(done, settings.num_train_steps),
    }
    sampling = Every(settings.sample_every or settings.save_and_sample_every, sample, name="sample")
    hooks: list[Hook] = [
        supply.times.remember,
        validate,
        # first to the disk: what an evaluation stumbles over must not cost the steps before it
        Every(settings.save_every or settings.save_and_sample_every, lambda state: state.save(job.folder)),
        sampling,
    ]
    reason = fit(job, state, step, hooks, started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    made_up = bool(state.owed)
    sampling.at_end(state)
    if made_up:
        state.save(job.folder)  # that it need not be made up for again
    return 0


def new_averages(settings: Settings, model: DiffusionModel) -> EMA:
    """The weights as they are now, from which their average sets out."""
    together = not settings.no_fused_optimizer
    return EMA(model, settings.ema_decay, settings.ema_update_every, together=together)


def first_weights(settings: Settings, teacher: Teacher | None) -> Callable[[DiffusionModel], None]:
    """What gives a new run the weights of --init_path, or those of its teacher; nothing without."""
    if settings.resume_training or not (settings.init_path or teacher):
        return lambda model: None
    if teacher is None:
        return partial(fill, checkpoint=checkpoints.load(settings.init_path))
    return partial(fill, checkpoint=Checkpoint({"model": teacher.weights}, {}, Path(settings.distill_run)))


def make_supply(job: Job, parts: Parts, corpus: Corpus) -> Supply:
    kind = EmbeddingSupply if parts.space.trainable else LatentSupply
    return kind(job, parts, corpus)


def validation_losses(job: Job, model: DiffusionModel, ema: EMA, step: Step) -> dict[str, float]:
    """Over --val_loss_texts validation texts and the whole range of times, by the weights and by their average.

    Every rank must ask: each does its share.
    """

    def mean(name: str) -> dict[str, float]:
        return held_out_means(job.ranks, step.plan, [name], lambda micro: {name: step(step.num_steps, micro)[0]})

    with evaluating(model), job.autocast():
        found = mean("val_loss")
        with ema.applied():
            return found | mean("val_ema_loss")


def _empty_parts(settings: Settings) -> Mapping[str, nn.Module]:
    """What a dry run builds, without weights."""
    options = settings.build(DenoiserOptions)
    classes, sources = _expected_conditions(settings)
    embeddings, context = settings.latent_space == "embeddings", None
    space: Any = EmptyEmbeddings(settings) if embeddings else empty_space(settings, sources > 0)
    if sources and not embeddings:
        run = Path(settings.resume_dir or settings.distill_run or ".")
        context = load_context(settings, run, space, torch.device("cpu"), sources, empty=True)
    with torch.device("meta"):
        classes = classes if options.class_conditional else 0
        encoder = encoder_options(settings, None)
        model = new_model(space, options, settings.max_seq_len, classes, context, encoder)
    refuse_guidance_without_null(settings, sources > 0)
    process = make_process(
        settings.build(ProcessOptions),
        settings.build(SamplingOptions),
        options.denoiser_variant,
        student=settings.distill_run is not None,
    )
    return named_parts(Parts(model.normalised(space), model, process, context))


def _expected_conditions(settings: Settings) -> tuple[int, int]:
    """Classes, and the longest source in tokens (0 without sources), of a corpus that may not be at hand."""
    row = registry.DATASETS.get(settings.dataset_name or "")
    if settings.saved:
        classes = len(settings.saved.get("class_names", ()))
        sources = settings.max_source_len or 0 if settings.saved.get("seq2seq") else 0
    elif row is not None:
        classes, sources = len(row.class_names), row.max_source_tokens if row.source else 0
    elif registry.find(settings.build(DataOptions)) is None:
        corpus = registry.load(settings.build(DataOptions))
        classes, sources = corpus.num_classes, corpus.spec.max_source_tokens if corpus.train.sources else 0
    else:
        classes = sources = 0
    if settings.class_conditional and not classes:
        classes = 2  # unknown until the corpus is read; two are enough to show the parts
    return classes, 0 if settings.ignore_sources else sources
