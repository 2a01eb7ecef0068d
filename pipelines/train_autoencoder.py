"""Stage 1: train the autoencoder between a language model and its latents, and evaluate it by reconstruction."""

from __future__ import annotations

import time
from typing import Any

import torch

from dataset_utils.corpus import Corpus
from latent_models.autoencoders.augmentations import used_augmentations
from latent_models.language_models import LanguageModel
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from pipelines.best_checkpoint import (
    best_score,
    check_best_metric,
    checkpoint_of,
    checkpoint_to_train_on,
    given_checkpoint,
    metric_name,
    save_if_best,
)
from pipelines.builders.draft_models import attach_draft_model
from pipelines.builders.models import configure_generation, load_model_of_texts, new_space
from pipelines.cli.configs import AutoencoderConfig
from pipelines.data.alignment import (
    FEATURES_DTYPE,
    PooledStates,
    load_alignment_encoder,
    load_encode_before_training,
    make_alignment_targets,
)
from pipelines.data.cache_plan import Parts, PlannedCache
from pipelines.data.cached_latents import EncodedSplit, encode_or_load
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.evaluators.autoencoder import AutoencoderEvaluator
from pipelines.finish import finish
from pipelines.run_context import (
    EVALUATION,
    RunContext,
    dataset_label,
    load_corpus,
    make_train_state,
    save_args,
    setup_run,
)
from pipelines.steps.autoencoder import AutoencoderStep, LatentAugmentation
from pipelines.steps.denoiser_augmentation import load_denoiser_augmentation
from pipelines.summary import dry_run, log_corpus_stats, summarize_run
from pipelines.training import progress_metrics, resume, run_training
from utils.cache_folder import encoded_folder
from utils.checkpoints import Checkpoint
from utils.cli.settings import Settings
from utils.compile import compile_network, needs_one_shape
from utils.distributed import wrap
from utils.hooks import PeriodicHook, StepResult
from utils.pretrained import WeightsRead, load_into, locate_model, relative_path
from utils.seeding import derive_seed
from utils.sharding import layers_of, shard
from utils.state import State

DEFAULT_METRIC = "bleu"  # selects the best checkpoint
RECONSTRUCTION_METRICS = ("bleu", "exact_match", "rouge1", "rouge2", "rougeL")
MIDPOINT_METRICS, RECOVERY_METRICS = ("imauve", "midpoints/perplexity"), ("recovery",)
DECODER_METRICS = ("similarity", "share_of_latents")
METRICS = (*RECONSTRUCTION_METRICS, *MIDPOINT_METRICS, *RECOVERY_METRICS, *DECODER_METRICS)


def train(settings: Settings[AutoencoderConfig]) -> int:
    """Train and validate, or only evaluate with --eval or --eval_test. Returns the exit code."""
    started = time.monotonic()
    config = settings.config
    if config.run.dry_run:
        return dry_run(settings, _meta_components)
    check_best_metric(settings, METRICS, DEFAULT_METRIC)
    run = setup_run(settings, "latent_finetuning", "autoencoder", {"loss": "train/loss", "learning_rate": "lr"})
    if run.is_eval:
        return evaluate(run)

    # data and model
    name = _language_model_name(run)
    model = load_language_model(settings, name)
    corpus = load_corpus(run)
    features = load_alignment_encoder(config.latent_losses, name)
    torch.manual_seed(derive_seed(config.loop.random_seed, "weights"))
    space = new_space(settings, model, None if features is None else features.dim).to(run.device)
    space.encode_before_training = load_encode_before_training(config, name, features, run.device)
    log_corpus_stats(run, corpus, model.tokenizer)
    model.chunked_loss = not config.loss.whole_logits
    configure_generation(settings, model)
    train_tokens = tokenize_split(corpus.train, model, config.language_model.max_seq_len)
    valid_tokens = tokenize_split(corpus.valid, model, config.language_model.max_seq_len)
    run.log(summarize_run(run, _components(space), corpus, train_tokens))

    # training state
    sharded = prepare_for_training(run, space)
    state = make_train_state(run, space)
    state.wrapped = space if sharded else wrap(space, run.dist)
    frozen = config.autoencoder.lm_mode == "freeze"
    metadata: dict[str, Any] = {"language_model_fingerprint": model.fingerprint() if frozen else None}
    resumed = resume(
        run,
        state,
        lambda checkpoint: model.check_fingerprint(checkpoint.metadata.get("language_model_fingerprint"), run.folder),
    )
    if "bleu" in state.best:  # of an earlier version
        state.best = {"metric": DEFAULT_METRIC, "value": state.best["bleu"], "step": state.best["step"]}
    if config.run.resume_dir and not resumed:  # weights only, as in the published command line
        _start(run, space)
    augmentation = make_augmentation(run, space, corpus)
    save_args(
        run,
        enc_dec_model_relative=relative_path(name, run.folder),
        parts=_components(space),
        language=model.language,
        **({} if features is None else {"alignment_dim": features.dim}),
        trainable_params=sum(p.numel() for p in state.parameters()),
    )

    # evaluation
    evaluator = AutoencoderEvaluator(run, space, valid_tokens)
    if state.step == 0:
        evaluator.record(evaluator.evaluate_language_model(), 0)

    def validate(state: State) -> None:
        metrics = evaluator.evaluate_latents()
        selecting = metric_name(settings, DEFAULT_METRIC) or ""
        if "midpoints" in selecting or selecting.endswith("imauve"):
            metrics |= evaluator.evaluate_midpoints(corpus)
        elif "noise/" in selecting or selecting.endswith("recovery"):
            metrics |= evaluator.evaluate_recovery()
        evaluator.record(metrics, state.step)
        evaluator.log_norms(state.step)
        score = best_score(run, metrics, DEFAULT_METRIC, only=f"autoencoder/{evaluator.strategies[0]}/")
        # reconstruction does not measure the quality of samples that a decoder gives: the newest checkpoint is the best
        newest = config.augmentation.denoiser_run is not None and config.best.best_metric is None
        save_if_best(run, state, score, always=newest, **metadata)
        evaluator.write(run.folder, "validation")

    # step and training
    step = AutoencoderStep(
        space,
        train_tokens,
        run.batch_sampler(),
        run.device,
        wrapped=state.wrapped,
        augmentation=augmentation,
        pad_to=config.language_model.max_seq_len if needs_one_shape(config.compilation.compile, run.device) else None,
        states=load_encoder_states(run, model, train_tokens),
        targets=None if features is None else make_alignment_targets(run, features, corpus),
    )
    lm_loss = evaluator.language_model_loss() if frozen else {}

    def log_losses(state: State, report: StepResult) -> None:
        """No PeriodicHook, which skips a step that a signal ends: the log of a resumed run would lack that step."""
        if state.step % config.loop.log_every == 0:
            run.logger.record({**evaluator.validation_loss(), **lm_loss}, state.step)

    run.logger.extra = progress_metrics(run, len(train_tokens))
    return run_training(
        run,
        state,
        step,
        started=started,
        validation_losses=log_losses,
        evaluation=PeriodicHook(config.validation.eval_every, validate, name="validate"),
        save_every=config.loop.save_every or config.validation.eval_every,
        **metadata,
    )


def evaluate(run: RunContext[AutoencoderConfig]) -> int:
    """--eval: evaluate the checkpoint of --checkpoint on the validation split; --eval_test: on the test split."""
    settings, config = run.settings, run.settings.config
    folder = settings.path("resume_dir")
    explicit = config.language_model.enc_dec_model if "enc_dec_model" in settings.explicit else None
    checkpoint = checkpoint_of(folder, settings, default=True)
    run.weights = WeightsRead.of(checkpoint)
    space = CompressedSpace.from_pretrained(folder, device=run.device, language_model=explicit, checkpoint=checkpoint)
    del checkpoint  # it may hold the state of an optimizer
    configure_generation(settings, space.language_model)
    attach_draft_model(settings, space, folder)
    split = "test" if config.evaluation.eval_test else "valid"
    corpus = load_corpus(run)
    data = tokenize_split(corpus.splits[split], space.language_model, config.language_model.max_seq_len)
    evaluator = AutoencoderEvaluator(run, space, data)
    evaluator.record(evaluator.evaluate_language_model(), 0)
    evaluator.record(evaluator.evaluate_latents(), 0)
    if config.validation.eval_interpolation:
        evaluator.record(evaluator.evaluate_midpoints(corpus), 0)
    if config.validation.eval_recovery:
        evaluator.record(evaluator.evaluate_recovery(), 0)
    evaluator.write(run.folder / EVALUATION, f"eval-{split}")
    finish(run, 0)
    return 0


def _start(run: RunContext[AutoencoderConfig], space: CompressedSpace) -> None:
    """Load the weights of the autoencoder in --resume_dir, which is trained on."""
    checkpoint = checkpoint_to_train_on(run.settings)
    load_into(space, _without_other_heads(checkpoint, space))
    run.record_weights("resume_dir", WeightsRead.of(checkpoint))


def load_language_model(settings: Settings[AutoencoderConfig], name: str, *, meta: bool = False) -> LanguageModel:
    """The language model of the flags, frozen with --lm_mode freeze. meta: on the meta device, without weights."""
    return load_model_of_texts(settings, name, frozen=settings.config.autoencoder.lm_mode == "freeze", meta=meta)


def _language_model_name(run: RunContext[AutoencoderConfig]) -> str:
    """The name or folder of the language model; if a resumed run was moved, the folder where the model is now."""
    settings = run.settings
    explicit = "enc_dec_model" in settings.explicit
    recorded = None if explicit else settings.checkpoint_args.get("enc_dec_model_relative")
    return locate_model(settings.config.language_model.enc_dec_model, run.folder, recorded)


def prepare_for_training(run: RunContext[AutoencoderConfig], space: CompressedSpace) -> bool:
    """Freeze, compile and shard the space by the flags. Returns whether it is sharded."""
    config = run.settings.config
    if config.autoencoder.lm_mode == "decoder":
        space.freeze_encoder()
    for network in (space.autoencoder.encoder, space.autoencoder.decoder):
        steps = config.loop.num_train_steps
        compile_network(network, config.compilation.compile, run.device, run.log, part=True, steps=steps)
    if not config.sharding.fsdp:
        return False
    if run.dist.world_size == 1:
        run.log("note: --fsdp shards the weights over several processes, and there is only one: it has no effect")
        return False
    shard(space, run.dist, layers_of(space.language_model))  # before the optimizer, which must get the shards
    return True


def make_augmentation(run: RunContext[AutoencoderConfig], space: CompressedSpace, corpus: Corpus) -> LatentAugmentation:
    """The augmentation of the flags; it loads the denoiser of --denoiser_run."""
    config, options = run.settings.config.autoencoder, run.settings.config.augmentation
    denoiser = None
    if options.denoiser_run is not None:
        steps = options.denoiser_steps
        given = given_checkpoint(run.settings, "denoiser_run")
        denoiser = load_denoiser_augmentation(options.denoiser_run, space, steps, run.device, corpus, **given)
        run.record_weights("denoiser_run", denoiser.weights_read)
    return LatentAugmentation(
        config.max_latent_noise,
        config.latent_noise_prob,
        denoiser,
        options.denoiser_prob,
        used_augmentations(run.settings.config.latent_augmentation),
        run.settings.config.latent_losses.kl_weight > 0,
    )


def _without_other_heads(checkpoint: Checkpoint, space: CompressedSpace) -> Checkpoint:
    """A checkpoint without the heads of losses that this run has not, so that a decoder can be trained on alone."""
    present = space.state_dict().keys()
    model = {name: x for name, x in checkpoint.tensors["model"].items() if name in present or "heads." not in name}
    return Checkpoint({**checkpoint.tensors, "model": model}, checkpoint.metadata, checkpoint.path)


def load_encoder_states(
    run: RunContext[AutoencoderConfig], model: LanguageModel, data: TokenSplit
) -> EncodedSplit | None:
    """The frozen encoder's states of the training texts, from a cache; None without one: each batch is encoded."""
    options = run.settings.config.encoder_cache
    if options.cache_encoder_states == "no":
        return None
    found = encode_or_load(
        EncoderStatesSpace(model, data.table.max_length),
        data,
        encoded_folder(options.cache_dir, options.latent_cache_dir, [run.folder]),
        "train",
        "encoder states of the training texts",
        run.dist,
        options.states_on_device,
        options.cache_encoder_states,
        "name a folder on a larger disk with --cache_dir, or leave --cache_encoder_states out",
        max_bytes=1e9 * options.max_cache_gb,
        corpus=dataset_label(run.settings),
    )
    return None if found.cache is None else found


def _components(space: CompressedSpace) -> dict[str, torch.nn.Module]:
    heads = {"heads of losses": space.heads} if any(True for _ in space.heads.parameters()) else {}
    return {"language model": space.language_model, "autoencoder": space.autoencoder, **heads}


def _meta_components(settings: Settings[AutoencoderConfig]) -> Parts:
    """The components on the meta device, for a dry run."""
    config = settings.config
    name, longest = config.language_model.enc_dec_model, config.language_model.max_seq_len
    model = load_language_model(settings, name, meta=True)
    features = load_alignment_encoder(config.latent_losses, name, meta=True)
    caches: list[PlannedCache] = []
    dtype = config.encoder_cache.cache_encoder_states
    if dtype != "no":
        caches.append(PlannedCache("train", "texts", EncoderStatesSpace(model, longest), longest, dtype))
    if features is not None:
        caches.append(PlannedCache("train", "features", PooledStates(features), longest, FEATURES_DTYPE))
    with torch.device("meta"):
        space = new_space(settings, model, None if features is None else features.dim)
    return Parts(_components(space), caches, [config.run.resume_dir])
