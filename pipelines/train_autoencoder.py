"""Stage 1, whole: a language model and a corpus -> the autoencoder between them, judged by writing texts out again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dataset_utils.corpus import Corpus
from evaluation import report, scorers
from evaluation.distributed import by_main
from evaluation.protocols import evaluate_reconstruction
from latent_models.compressed import CompressedSpace
from latent_models.decoding import strategies
from latent_models.encoder_states import EncoderStatesSpace
from latent_models.language_models import LanguageModel
from latent_models.options import AutoencoderOptions, EncoderCacheOptions
from pipelines.building.drafters import let_draft
from pipelines.building.models import (
    fill,
    find_language_model,
    let_write,
    load_autoencoder,
    load_model_of_texts,
    new_space,
    refuse_another_model,
    relative,
)
from pipelines.data.cached_latents import Encoded, encoded_split
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.describe import describe_run, dry_run, survey_corpus
from pipelines.evaluators.interpolation import evaluate_midpoints, middles, written
from pipelines.evaluators.reconstruction import Decode, reconstruct, through_latents, through_states
from pipelines.job import EVALUATION, Job, fit, load_corpus, new_state, open_job, record_args
from pipelines.training.autoencoder_step import AutoencoderStep, Disturbance
from pipelines.training.held_out import held_out_means
from pipelines.training.imagined import load_prior
from utils import checkpoints
from utils.distributed import Ranks, wrap
from utils.hooks import Every, Hook, Report
from utils.modes import evaluating
from utils.records import Batch
from utils.seeding import derive
from utils.settings import Settings
from utils.sharding import gathered, is_sharded, layers_of, shard
from utils.speed import compile_network, compiles
from utils.state import State
from utils.stop import EXIT_CODES


def run(settings: Settings) -> int:
    """Train and validate, or only validate with --eval. Returns the exit code."""
    started = time.monotonic()
    if settings.dry_run:
        return dry_run(settings, _parts)
    job = open_job(settings, "latent_finetuning", "autoencoder", {"loss": "train/loss", "learning_rate": "lr"})
    if job.evaluating:
        return _evaluate(job)

    name = find_language_model(
        settings.enc_dec_model,
        job.folder,
        settings.saved.get("enc_dec_model_relative"),
        "enc_dec_model" in settings.typed,
    )
    model = load_model_of_texts(settings, name, frozen=settings.lm_mode == "freeze")
    corpus = load_corpus(job)
    torch.manual_seed(derive(settings.random_seed, "weights"))
    space = new_space(model, settings.build(AutoencoderOptions), settings.max_seq_len).to(job.device)
    survey_corpus(job, corpus, model.tokenizer)
    model.chunked_loss = not settings.whole_logits
    let_write(settings, model)
    data = tokenize_split(corpus.train, model, settings.max_seq_len)
    held_out = tokenize_split(corpus.valid, model, settings.max_seq_len)
    job.say(describe_run(job, {"language model": model, "autoencoder": space.autoencoder}, corpus, data))

    if settings.lm_mode == "decoder":
        space.train_decoder_alone()
    for network in (space.autoencoder.encoder, space.autoencoder.decoder):
        compile_network(network, settings.compile, job.device, job.say, part=True)
    sharded = settings.fsdp and job.ranks.world > 1  # before the optimizer, which must see the pieces
    if sharded:
        shard(space, job.ranks, layers_of(model))
    elif settings.fsdp:
        job.say("note: --fsdp spreads the weights over several processes, and this is one")
    state = new_state(job, space)
    state.wrapped = space if sharded else wrap(space, job.ranks)
    fingerprint = model.fingerprint() if settings.lm_mode == "freeze" else None
    facts: dict[str, Any] = {"language_model_fingerprint": fingerprint}
    if settings.resume_training:
        checkpoint = checkpoints.load(job.folder)
        refuse_another_model(model, checkpoint.facts.get("language_model_fingerprint"), job.folder)
        state.restore(checkpoint)
    elif settings.resume_dir:
        fill(space, checkpoints.load(settings.resume_dir))  # weights only, as in the published command line
    record_args(
        job,
        enc_dec_model_relative=relative(name, job.folder),
        language=model.language,
        trainable_params=sum(p.numel() for p in state.parameters()),
    )
    validation = Validation(job, space, held_out)

    def validate(state: State) -> None:
        result = validation.of_latents()
        validation.record(result, state.step)
        score = result[f"autoencoder/{validation.strategies[0]}/bleu"]
        # how well a decoder serves a denoiser shows in no reconstruction: the newest is the best
        if settings.prior_run is not None or score > state.best.get("bleu", -1.0):
            state.best = {"bleu": score, "step": state.step}
            state.save_best(job.folder, **facts)

    if state.step == 0:
        validation.record(validation.of_language_model(), 0)
    step = AutoencoderStep(
        space,
        data,
        job.plan(),
        job.device,
        wrapped=state.wrapped,
        disturbance=_disturbance(job, space),
        pad_to=settings.max_seq_len if compiles(settings.compile, job.device) else None,  # then one shape is compiled
        states=_cached_states(job, model, data),
    )
    lm_loss = validation.language_model_loss() if settings.lm_mode == "freeze" else {}

    def losses(state: State, report: Report) -> None:
        """Not an Every: done at a step that a signal ends, too, or the log of the resumed run would lack it."""
        if state.step % settings.log_every == 0:
            job.log.record({**validation.loss(), **lm_loss}, state.step)

    total = job.plan().total
    job.log.extra = lambda done: {"epoch": done * total / len(data), "samples": done * total}
    validating = Every(settings.eval_every, validate, name="validate")
    saving = Every(settings.save_every or settings.eval_every, lambda state: state.save(job.folder, **facts))
    hooks: list[Hook] = [losses, validating, saving]
    reason = fit(job, state, step, hooks, started, **facts)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    if state.step % settings.eval_every or state.owed:
        validating.at_end(state)
        state.save(job.folder, **facts)
    validation.write(job.folder, "validation")
    return 0


def _disturbance(job: Job, space: CompressedSpace) -> Disturbance:
    settings = job.settings
    run, steps = settings.prior_run, settings.prior_steps
    prior = None if run is None else load_prior(run, space, steps, job.device)
    return Disturbance(settings.latent_noise, settings.latent_noise_prob, prior, settings.prior_prob)


def _cached_states(job: Job, model: LanguageModel, data: TokenSplit) -> Encoded | None:
    """The frozen encoder's states of the training texts, with --cache_encoder_states."""
    options = job.settings.build(EncoderCacheOptions)
    if options.cache_encoder_states == "no":
        return None
    space = EncoderStatesSpace(model, data.table.max_length)
    folder = Path(options.latent_cache_dir or job.folder / "latent_cache")
    no_room = "name a roomier place with --latent_cache_dir, or leave --cache_encoder_states out"
    what, dtype = "encoder states of the training texts", options.cache_encoder_states
    on_device = options.states_on_device
    return encoded_split(space, data, folder, "train", what, job.ranks, on_device, dtype, no_room)


class Validation:
    """Reconstruction of held-out texts, by each decoding strategy, from latents and by the plain language model."""

    def __init__(self, job: Job, space: CompressedSpace, held_out: TokenSplit) -> None:
        self.job, self.space, self.held_out = job, space, held_out
        self.strategies = list(strategies(job.settings.decoding))
        self.rows = torch.arange(min(job.settings.eval_texts, len(held_out)))
        self.texts = [held_out.split.texts[row] for row in self.rows.tolist()]
        source = job.settings.scorer  # perplexity only by a scorer that was asked for: one is not trained for this
        self.scorer = scorers.load(source, device=job.device) if source else None
        self.results: dict[str, Any] = {}
        self.written: dict[str, list[str]] = {}

    def loss(self) -> dict[str, float]:
        """Cross-entropy of --val_loss_texts held-out texts, in nats per token."""
        return self._mean("val/loss", self.space)

    def language_model_loss(self) -> dict[str, float]:
        """The same of the plain language model, which while it is frozen needs to be known only once."""
        model = self.space.language_model
        return self._mean("val/lm_loss", lambda batch: model(batch.input_ids, batch.input_ids, batch.attention_mask))

    def _mean(self, name: str, losses: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
        job, n = self.job, len(self.held_out)
        # sharded, every rank must do the same, so each does it all
        ranks = Ranks(device=job.device) if is_sharded(self.space) else job.ranks
        plan = replace(job.held_out_plan(n), rank=ranks.rank, world=ranks.world)

        def values(micro: int) -> dict[str, torch.Tensor]:
            return {name: losses(self.held_out.batch(plan.rows(0, micro, n)).to(job.device))}

        with evaluating(self.space), job.autocast():
            return held_out_means(ranks, plan, [name], values)

    def of_latents(self) -> dict[str, Any]:
        return self._score("autoencoder", through_latents(self.space, self.job.settings.max_seq_len))

    def of_language_model(self) -> dict[str, Any]:
        return self._score("bart", through_states(self.space.language_model, self.job.settings.max_seq_len))

    def _score(self, title: str, decode: Decode) -> dict[str, Any]:
        """title: also the first part of the keys, in the published names."""
        job, size, sharded = self.job, self.job.settings.eval_batch_size, is_sharded(self.space)
        found: dict[str, Any] = {}
        for strategy in self.strategies:
            name = f"reconstruct ({title}, {strategy})"
            with evaluating(self.space), gathered(self.space):
                written = reconstruct(
                    decode,
                    self.held_out,
                    self.rows,
                    size,
                    strategy,
                    job.device,
                    job.autocast,
                    name,
                    job.quiet,
                    None if sharded else job.ranks,  # sharded, every rank must do the same
                )
            self.written[f"{title}/{strategy}"] = written
            found |= by_main(
                job.ranks,
                self.scorer,
                partial(evaluate_reconstruction, written, self.texts, self.scorer, prefix=f"{title}/{strategy}/"),
            )
        return found

    def of_midpoints(self, corpus: Corpus) -> dict[str, Any]:
        """What lies between texts; by the main rank alone, since it is a matter of seconds."""
        job, size = self.job, self.job.settings.eval_batch_size

        def judge() -> dict[str, Any]:
            texts = None if self.scorer else corpus.train.texts
            scorer = self.scorer or scorers.load(None, texts=texts, folder=job.folder / "scorer", device=job.device)
            found: dict[str, Any] = {}
            with evaluating(self.space):
                latents, others = middles(self.space, self.held_out, self.rows, size, job.device, job.autocast)
                for name in self.strategies:
                    texts = written(self.space, latents, name, size, job.settings.max_seq_len, job.autocast, job.quiet)
                    self.written[f"midpoints/{name}"] = texts
                    found |= evaluate_midpoints(texts, self.texts, others.tolist(), scorer, prefix=f"midpoints/{name}/")
            return found

        return by_main(job.ranks, None, judge)

    def record(self, result: Mapping[str, Any], step: int) -> None:
        self.results |= result
        numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
        self.job.log.record(numbers, step)
        self.job.say(report.table(numbers, f"step {step}, {len(self.texts)} held-out texts"))
        rows = list(zip(self.texts, *self.written.values(), strict=True))[:20]
        self.job.log.table("Samples", ["reference", *self.written], rows, step)

    def write(self, folder, name: str) -> None:
        """Metrics and texts, side by side."""
        if self.job.ranks.main and self.results:
            columns = list(self.written)
            samples = [
                {"reference": text, **dict(zip(columns, row, strict=True)), "text": row[-1]}
                for text, *row in zip(self.texts, *self.written.values(), strict=True)
            ]
            report.write(folder, name, self.results, samples)


def _evaluate(job: Job) -> int:
    """--eval: the best checkpoint, on the validation split (--eval_test: on the test split)."""
    settings = job.settings
    typed = settings.enc_dec_model if "enc_dec_model" in settings.typed else None
    space, _ = load_autoencoder(Path(settings.resume_dir), job.device, typed)
    let_write(settings, space.language_model)
    let_draft(settings, space, Path(settings.resume_dir))
    split = "test" if settings.eval_test else "valid"
    corpus = load_corpus(job)
    held_out = tokenize_split(corpus.splits[split], space.language_model, settings.max_seq_len)
    validation = Validation(job, space, held_out)
    validation.record(validation.of_language_model(), 0)
    validation.record(validation.of_latents(), 0)
    if settings.midpoints:
        validation.record(validation.of_midpoints(corpus), 0)
    validation.write(job.folder / EVALUATION, f"eval-{split}")
    return 0


def _parts(settings: Settings) -> dict[str, torch.nn.Module]:
    """What a dry run builds."""
    model = load_model_of_texts(settings, settings.enc_dec_model, frozen=settings.lm_mode == "freeze", empty=True)
    with torch.device("meta"):
        space = new_space(model, settings.build(AutoencoderOptions), settings.max_seq_len)
    return {"language model": model, "autoencoder": space.autoencoder}
