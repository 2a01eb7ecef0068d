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
from evaluation.distributed import on_rank0
from evaluation.protocols import evaluate_reconstruction
from latent_models.generation.decoding import strategies
from latent_models.language_models import LanguageModel
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from pipelines.builders.draft_models import attach_draft_model
from pipelines.builders.models import configure_generation, load_model_of_texts, new_space
from pipelines.cli.configs import AutoencoderConfig
from pipelines.data.cached_latents import EncodedSplit, encode_or_load
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.summary import summarize_run, dry_run, log_corpus_stats
from pipelines.evaluators.interpolation import decode_all, evaluate_interpolation, midpoints
from pipelines.evaluators.reconstruction import Decode, reconstruct, via_encoder, via_latents
from pipelines.run_context import EVALUATION, RunContext, fit, load_corpus, make_train_state, setup_run, save_args
from pipelines.steps.autoencoder import AutoencoderStep, LatentAugmentation
from pipelines.validation import mean_losses
from pipelines.steps.denoiser_augmentation import load_denoiser_augmentation
from utils import checkpoints
from utils.cli.settings import Settings
from utils.compile import compile_network, should_compile
from utils.distributed import DistContext, wrap
from utils.hooks import Hook, PeriodicHook, StepResult
from utils.preemption import EXIT_CODES
from utils.pretrained import load_into, locate_model, relative_path
from utils.records import Batch
from utils.seeding import derive_seed
from utils.sharding import is_sharded, layers_of, shard, unsharded
from utils.state import State
from utils.train_eval import eval_mode


def run(settings: Settings[AutoencoderConfig]) -> int:
    """Train and validate, or only validate with --eval. Returns the exit code."""
    started = time.monotonic()
    if settings.config.run.dry_run:
        return dry_run(settings, _parts)
    job = setup_run(settings, "latent_finetuning", "autoencoder", {"loss": "train/loss", "learning_rate": "lr"})
    if job.is_eval:
        return _evaluate(job)

    explicit = "enc_dec_model" in settings.explicit
    recorded = None if explicit else settings.checkpoint_args.get("enc_dec_model_relative")
    name = locate_model(settings.config.language_model.enc_dec_model, job.folder, recorded)
    model = load_model_of_texts(settings, name, frozen=settings.config.autoencoder.lm_mode == "freeze")
    corpus = load_corpus(job)
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    space = new_space(settings, model).to(job.device)
    log_corpus_stats(job, corpus, model.tokenizer)
    model.chunked_loss = not settings.config.loss.whole_logits
    configure_generation(settings, model)
    data = tokenize_split(corpus.train, model, settings.config.language_model.max_seq_len)
    held_out = tokenize_split(corpus.valid, model, settings.config.language_model.max_seq_len)
    job.log(summarize_run(job, {"language model": model, "autoencoder": space.autoencoder}, corpus, data))

    if settings.config.autoencoder.lm_mode == "decoder":
        space.freeze_encoder()
    for network in (space.autoencoder.encoder, space.autoencoder.decoder):
        compile_network(network, settings.config.compilation.compile, job.device, job.log, part=True)
    sharded = (
        settings.config.sharding.fsdp and job.dist.world_size > 1
    )  # before the optimizer, which must see the pieces
    if sharded:
        shard(space, job.dist, layers_of(model))
    elif settings.config.sharding.fsdp:
        job.log("note: --fsdp spreads the weights over several processes, and this is one")
    state = make_train_state(job, space)
    state.wrapped = space if sharded else wrap(space, job.dist)
    fingerprint = model.fingerprint() if settings.config.autoencoder.lm_mode == "freeze" else None
    metadata: dict[str, Any] = {"language_model_fingerprint": fingerprint}
    if settings.config.run.resume_training:
        checkpoint = checkpoints.load(job.folder)
        model.check_fingerprint(checkpoint.metadata.get("language_model_fingerprint"), job.folder)
        state.restore(checkpoint)
    elif settings.config.run.resume_dir:
        load_into(
            space, checkpoints.load(settings.config.run.resume_dir)
        )  # weights only, as in the published command line
    save_args(
        job,
        enc_dec_model_relative=relative_path(name, job.folder),
        language=model.language,
        trainable_params=sum(p.numel() for p in state.parameters()),
    )
    validation = Validation(job, space, held_out)

    def validate(state: State) -> None:
        result = validation.of_latents()
        validation.record(result, state.step)
        score = result[f"autoencoder/{validation.strategies[0]}/bleu"]
        # how well a decoder serves a denoiser shows in no reconstruction: the newest is the best
        if settings.config.augmentation.denoiser_run is not None or score > state.best.get("bleu", -1.0):
            state.best = {"bleu": score, "step": state.step}
            state.save_best(job.folder, **metadata)

    if state.step == 0:
        validation.record(validation.of_language_model(), 0)
    step = AutoencoderStep(
        space,
        data,
        job.batch_sampler(),
        job.device,
        wrapped=state.wrapped,
        disturbance=_disturbance(job, space),
        pad_to=settings.config.language_model.max_seq_len
        if should_compile(settings.config.compilation.compile, job.device)
        else None,  # then one shape is compiled
        states=_cached_states(job, model, data),
    )
    lm_loss = validation.language_model_loss() if settings.config.autoencoder.lm_mode == "freeze" else {}

    def losses(state: State, report: StepResult) -> None:
        """Not an Every: done at a step that a signal ends, too, or the log of the resumed run would lack it."""
        if state.step % settings.config.loop.log_every == 0:
            job.logger.record({**validation.loss(), **lm_loss}, state.step)

    total = job.batch_sampler().global_batch_size
    job.logger.extra = lambda done: {"epoch": done * total / len(data), "samples": done * total}
    validating = PeriodicHook(settings.config.validation.eval_every, validate, name="validate")
    saving = PeriodicHook(
        settings.config.loop.save_every or settings.config.validation.eval_every,
        lambda state: state.save(job.folder, **metadata),
    )
    hooks: list[Hook] = [losses, validating, saving]
    reason = fit(job, state, step, hooks, started, **metadata)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    if state.step % settings.config.validation.eval_every or state.pending:
        validating.finish(state)
        state.save(job.folder, **metadata)
    validation.write(job.folder, "validation")
    return 0


def _disturbance(job: RunContext[AutoencoderConfig], space: CompressedSpace) -> LatentAugmentation:
    settings = job.settings
    run, steps = settings.config.augmentation.denoiser_run, settings.config.augmentation.denoiser_steps
    prior = None if run is None else load_denoiser_augmentation(run, space, steps, job.device)
    return LatentAugmentation(
        settings.config.autoencoder.max_latent_noise,
        settings.config.autoencoder.latent_noise_prob,
        prior,
        settings.config.augmentation.denoiser_prob,
    )


def _cached_states(job: RunContext[AutoencoderConfig], model: LanguageModel, data: TokenSplit) -> EncodedSplit | None:
    """The frozen encoder's states of the training texts, with --cache_encoder_states."""
    options = job.settings.config.encoder_cache
    if options.cache_encoder_states == "no":
        return None
    space = EncoderStatesSpace(model, data.table.max_length)
    folder = Path(options.latent_cache_dir or job.folder / "latent_cache")
    disk_full_hint = "name a roomier place with --latent_cache_dir, or leave --cache_encoder_states out"
    what, dtype = "encoder states of the training texts", options.cache_encoder_states
    on_device = options.states_on_device
    return encode_or_load(space, data, folder, "train", what, job.dist, on_device, dtype, disk_full_hint)


class Validation:
    """Reconstruction of held-out texts, by each decoding strategy, from latents and by the plain language model."""

    def __init__(self, job: RunContext[AutoencoderConfig], space: CompressedSpace, held_out: TokenSplit) -> None:
        self.job, self.space, self.held_out = job, space, held_out
        self.strategies = list(strategies(job.settings.config.evaluation.decoding))
        self.rows = torch.arange(min(job.settings.config.validation.eval_texts, len(held_out)))
        self.texts = [held_out.split.texts[row] for row in self.rows.tolist()]
        source = (
            job.settings.config.evaluation.scorer
        )  # perplexity only by a scorer that was asked for: one is not trained for this
        self.scorer = scorers.load(source, device=job.device) if source else None
        self.results: dict[str, Any] = {}
        self.written: dict[str, list[str]] = {}

    def loss(self) -> dict[str, float]:
        """Cross-entropy of val_loss_examples held-out texts, in nats per token."""
        return self._mean("val/loss", self.space)

    def language_model_loss(self) -> dict[str, float]:
        """The same of the plain language model, which while it is frozen needs to be known only once."""
        model = self.space.language_model
        return self._mean("val/lm_loss", lambda batch: model(batch.input_ids, batch.input_ids, batch.attention_mask))

    def _mean(self, name: str, losses: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
        job, n = self.job, len(self.held_out)
        # sharded, every rank must do the same, so each does it all
        dist = DistContext(device=job.device) if is_sharded(self.space) else job.dist
        batch_sampler = replace(job.validation_sampler(n), rank=dist.rank, world_size=dist.world_size)

        def values(micro: int) -> dict[str, torch.Tensor]:
            return {name: losses(self.held_out.batch(batch_sampler.rows(0, micro, n)).to(job.device))}

        with eval_mode(self.space), job.autocast():
            return mean_losses(dist, batch_sampler, [name], values)

    def of_latents(self) -> dict[str, Any]:
        return self._score("autoencoder", via_latents(self.space, self.job.settings.config.language_model.max_seq_len))

    def of_language_model(self) -> dict[str, Any]:
        return self._score(
            "bart", via_encoder(self.space.language_model, self.job.settings.config.language_model.max_seq_len)
        )

    def _score(self, title: str, decode: Decode) -> dict[str, Any]:
        """title: also the first part of the keys, in the published names."""
        job, size, sharded = self.job, self.job.settings.config.evaluation.eval_batch_size, is_sharded(self.space)
        found: dict[str, Any] = {}
        for strategy in self.strategies:
            name = f"reconstruct ({title}, {strategy})"
            with eval_mode(self.space), unsharded(self.space):
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
                    None if sharded else job.dist,  # sharded, every rank must do the same
                )
            self.written[f"{title}/{strategy}"] = written
            found |= on_rank0(
                job.dist,
                self.scorer,
                partial(evaluate_reconstruction, written, self.texts, self.scorer, prefix=f"{title}/{strategy}/"),
            )
        return found

    def of_midpoints(self, corpus: Corpus) -> dict[str, Any]:
        """What lies between texts; by the main rank alone, since it is a matter of seconds."""
        job, size = self.job, self.job.settings.config.evaluation.eval_batch_size

        def judge() -> dict[str, Any]:
            texts = None if self.scorer else corpus.train.texts
            scorer = self.scorer or scorers.load(None, texts=texts, folder=job.folder / "scorer", device=job.device)
            found: dict[str, Any] = {}
            with eval_mode(self.space):
                latents, others = midpoints(self.space, self.held_out, self.rows, size, job.device, job.autocast)
                for name in self.strategies:
                    texts = decode_all(
                        self.space,
                        latents,
                        name,
                        size,
                        job.settings.config.language_model.max_seq_len,
                        job.autocast,
                        job.quiet,
                    )
                    self.written[f"midpoints/{name}"] = texts
                    found |= evaluate_interpolation(
                        texts, self.texts, others.tolist(), scorer, prefix=f"midpoints/{name}/"
                    )
            return found

        return on_rank0(job.dist, None, judge)

    def record(self, result: Mapping[str, Any], step: int) -> None:
        self.results |= result
        numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
        self.job.logger.record(numbers, step)
        self.job.log(report.table(numbers, f"step {step}, {len(self.texts)} held-out texts"))
        rows = list(zip(self.texts, *self.written.values(), strict=True))[:20]
        self.job.logger.table("Samples", ["reference", *self.written], rows, step)

    def write(self, folder, name: str) -> None:
        """Metrics and texts, side by side."""
        if self.job.dist.is_main and self.results:
            columns = list(self.written)
            samples = [
                {"reference": text, **dict(zip(columns, row, strict=True)), "text": row[-1]}
                for text, *row in zip(self.texts, *self.written.values(), strict=True)
            ]
            report.write(folder, name, self.results, samples)


def _evaluate(job: RunContext[AutoencoderConfig]) -> int:
    """--eval: the best checkpoint, on the validation split (--eval_test: on the test split)."""
    settings = job.settings
    typed = settings.config.language_model.enc_dec_model if "enc_dec_model" in settings.explicit else None
    space = CompressedSpace.from_pretrained(
        Path(settings.config.run.resume_dir), device=job.device, language_model=typed
    )
    configure_generation(settings, space.language_model)
    attach_draft_model(settings, space, Path(settings.config.run.resume_dir))
    split = "test" if settings.config.evaluation.eval_test else "valid"
    corpus = load_corpus(job)
    held_out = tokenize_split(corpus.splits[split], space.language_model, settings.config.language_model.max_seq_len)
    validation = Validation(job, space, held_out)
    validation.record(validation.of_language_model(), 0)
    validation.record(validation.of_latents(), 0)
    if settings.config.validation.eval_interpolation:
        validation.record(validation.of_midpoints(corpus), 0)
    validation.write(job.folder / EVALUATION, f"eval-{split}")
    return 0


def _parts(settings: Settings[AutoencoderConfig]) -> dict[str, torch.nn.Module]:
    """What a dry run builds."""
    model = load_model_of_texts(
        settings,
        settings.config.language_model.enc_dec_model,
        frozen=settings.config.autoencoder.lm_mode == "freeze",
        meta=True,
    )
    with torch.device("meta"):
        space = new_space(settings, model)
    return {"language model": model, "autoencoder": space.autoencoder}
