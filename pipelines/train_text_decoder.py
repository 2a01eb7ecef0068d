"""Stage 1 with frozen encodings: a language model learns to decode the latents of texts.

    python -m pipelines.train_text_decoder --train_file captions.jsonl --latent_space sentence \
        --encoder_model models/minilm-l6 --decoder_model models/smollm2-135m --output_dir runs/decoder
    python -m pipelines.train_text_decoder --train_file stories.jsonl --latent_model_path runs/autoencoder ...
    python -m pipelines.train_text_decoder --eval --resume_dir runs/decoder
    python -m pipelines.train_text_decoder --resume_dir runs/decoder --denoiser_run runs/diffusion ...

Latents are encoded once, scaled by statistics of the training texts, and noised; see latent_models/causal. The run
folder is a --latent_model_path of train_text_diffusion.py. The last command adapts a decoder to a denoiser's latents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset_utils.corpus import Corpus
from dataset_utils.splits import Split
from latent_models.cache import NotFinite
from latent_models.causal.sequences import Sequences, encode
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace, copy_autoencoder
from latent_models.spaces.decoded import (
    AUTOENCODER,
    DecodedSpace,
    new_decoded_space,
    new_sentence_space,
    text_decoder_metadata,
)
from latent_models.spaces.encoder_states import EncoderStatesSpace
from pipelines.best_checkpoint import (
    LOSSES,
    best_score,
    check_best_metric,
    checkpoint_of,
    checkpoint_to_train_on,
    given_checkpoint,
    load_best_score,
    save_if_best,
)
from pipelines.builders.models import load_model_of_texts
from pipelines.cli.configs import TextDecoderConfig
from pipelines.cli.programs import TEXT_DECODER
from pipelines.data.cache_plan import Parts, plan_splits
from pipelines.data.cached_latents import encode_or_load
from pipelines.data.length_buckets import LengthBuckets
from pipelines.data.tokens import TokenSplit, tokenize_for
from pipelines.evaluators.text_decoder import TextDecoderEvaluator
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
from pipelines.steps.text_decoder import DecoderAugmentation, DecoderNetwork, Denoiser, TextDecoderStep
from pipelines.summary import dry_run, log_corpus_stats, summarize_run
from pipelines.training import progress_metrics, resume, run_training
from utils.cache_folder import encoded_folder
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.distributed import wrap
from utils.errors import UserError, exit_on_user_error
from utils.hooks import PeriodicHook
from utils.pretrained import WeightsRead, load_into, locate_model
from utils.records import Latents
from utils.seeding import derive_seed
from utils.state import State

SCALING_TEXTS = 20_000  # training texts from which the scaling of latents is estimated
CACHE_DTYPE = "float16"
METRICS = (*LOSSES[1:], "similarity", "bleu", "rougeL", "loss_clean", "share_of_latents")


def train(settings: Settings[TextDecoderConfig]) -> int:
    """Train and validate, or only evaluate with --eval or --eval_test. Returns the exit code."""
    started = time.monotonic()
    config = settings.config
    if config.run.dry_run:
        return dry_run(settings, _meta_parts)
    check_best_metric(settings, METRICS, "val_loss")
    run = setup_run(settings, "text_decoder", "text decoder")
    if run.is_eval:
        return evaluate(run)

    # data and model
    corpus = load_corpus(run)
    resumed = config.run.resume_training
    if config.latents.latent_space == "compressed" and not resumed:
        run.write_files(lambda: _copy_autoencoder(run), now=True)
        run.dist.barrier()
    space = make_space(settings, run.folder).to(run.device)
    log_corpus_stats(run, corpus, space.writer_tokenizer)
    longest = config.language_model.max_seq_len
    tokens = {name: tokenize_for(space, corpus.splits[name], longest) for name in ("train", "valid")}
    targets = {name: target_tokens(space, corpus.splits[name], longest) for name in ("train", "valid")}
    _add_prompts(space, tokens["valid"])
    facts = text_decoder_metadata(space, run.folder)  # before training changes the weights
    run.log(summarize_run(run, _parts(space), corpus, tokens["train"]))

    # training state
    state = make_train_state(run, space)
    if resume(run, state):
        state.best = load_best_score(run.folder, state.best)
    elif config.augmentation.denoiser_run is not None:
        _start(run, space)
    read = {name: latent_reader(run, space, data, name) for name, data in tokens.items()}
    if not space.scaling.is_estimated:
        space.scaling.estimate(_unscaled_latents(run, space, tokens["train"], read["train"]))
    for name in facts.keys() & settings.values.keys():  # flags that follow from others
        settings.set(name, facts.pop(name))
    denoiser = load_denoiser(run, space, corpus)
    save_args(
        run,
        parts=_parts(space),
        trainable_params=sum(p.numel() for p in state.parameters()),
        **facts,
    )
    augmentation = DecoderAugmentation(config.decoder, denoiser, config.augmentation.denoiser_prob)
    network = DecoderNetwork(space.decoder, space if read["train"].makes_tokens else None)
    state.wrapped = wrap(network, run.dist)
    sampler = LengthBuckets(run.batch_sampler(), targets["train"].lengths())
    step = TextDecoderStep(
        state.wrapped,
        read["train"].scaled,
        targets["train"],
        sampler,
        run.device,
        augmentation=augmentation,
        variable_length=space.variable_length,
    )
    evaluator = make_evaluator(run, space, tokens["valid"], targets["valid"], read["valid"])

    def validate(state: State) -> None:
        metrics = evaluator.evaluate()
        evaluator.record(state.step)
        save_if_best(run, state, best_score(run, metrics, "val_loss"))
        evaluator.write(run.folder, "validation")

    run.logger.extra = progress_metrics(run, len(tokens["train"]))
    return run_training(
        run,
        state,
        step,
        started=started,
        evaluation=PeriodicHook(config.validation.eval_every, validate, name="validate"),
        save_every=config.loop.save_every or config.validation.eval_every,
    )


def evaluate(run: RunContext[TextDecoderConfig]) -> int:
    """--eval: evaluate the checkpoint of --checkpoint on the validation split; --eval_test: on the test split."""
    settings, config = run.settings, run.settings.config
    folder = settings.path("resume_dir")
    typed = {name: settings.get(name) for name in ("encoder_model", "decoder_model") if name in settings.explicit}
    checkpoint = checkpoint_of(folder, settings, default=True)
    run.weights = WeightsRead.of(checkpoint)
    language_model = config.language_model.enc_dec_model if "enc_dec_model" in settings.explicit else None
    space = DecodedSpace.from_pretrained(
        folder, device=run.device, language_model=language_model, checkpoint=checkpoint, **typed
    )
    del checkpoint  # it may hold the state of an optimizer
    _set_generation(settings, space)
    split = "test" if config.evaluation.eval_test else "valid"
    texts = load_corpus(run).splits[split]
    longest = config.language_model.max_seq_len
    tokens, targets = tokenize_for(space, texts, longest), target_tokens(space, texts, longest)
    _add_prompts(space, tokens)
    evaluator = make_evaluator(run, space, tokens, targets, LatentReader(space, tokens, None, run.device))
    evaluator.evaluate()
    evaluator.record(0)
    evaluator.write(run.folder / EVALUATION, f"eval-{split}")
    finish(run, 0)
    return 0


def make_evaluator(
    run: RunContext[TextDecoderConfig], space: DecodedSpace, data: TokenSplit, targets: Sequences, read: LatentReader
) -> TextDecoderEvaluator:
    step = TextDecoderStep(
        DecoderNetwork(space.decoder, space if read.makes_tokens else None),
        read.scaled,
        targets,
        run.validation_sampler(len(data)),
        run.device,
        augmentation=DecoderAugmentation(run.settings.config.decoder),
        variable_length=space.variable_length,
    )
    return TextDecoderEvaluator(run, space, data, step)


# ----------------------------------------------------------------------------------------------------------- the space


def make_space(settings: Settings[TextDecoderConfig], folder: Path, *, meta: bool = False) -> DecodedSpace:
    """The space to train, with frozen models where the flags or the run folder say. meta: for a dry run."""
    config, seed = settings.config, settings.config.loop.random_seed
    # of the run that goes on, or is adapted: then settings hold its flags alone
    trained_in = Path(config.run.resume_dir) if config.run.resume_dir else folder
    saved = settings.checkpoint_args or (read_args(trained_in) if config.run.resume_dir else {})

    def find(flag: str) -> str:
        recorded = None if flag in settings.explicit else settings.checkpoint_args.get(f"{flag}_relative")
        run = Path(config.run.resume_dir) if config.run.resume_dir else None
        return locate_model(settings.get(flag), run, recorded, f"--{flag}")

    def sentence() -> LatentSpace:
        torch.manual_seed(derive_seed(seed, "pooling"))
        space = new_sentence_space(settings.values, encoder_model=find("encoder_model"), meta=meta)
        if not meta:
            space.language_model.check_fingerprint(saved.get("encoder_fingerprint"), trained_in)
        return space

    def compressed() -> LatentSpace:
        path = settings.path("latent_model_path") if meta else folder / AUTOENCODER
        explicit = config.language_model.enc_dec_model if "enc_dec_model" in settings.explicit else None
        return CompressedSpace.from_pretrained(path, language_model=explicit, meta=meta)

    def states() -> LatentSpace:
        texts: Any = settings  # of another program, with the same flags of language models
        model = load_model_of_texts(texts, find("enc_dec_model"), meta=meta)
        if not meta:
            model.check_fingerprint(saved.get("language_model_fingerprint"), trained_in)
        return EncoderStatesSpace(model, config.language_model.max_seq_len).requires_grad_(False)

    encoding = {"sentence": sentence, "compressed": compressed, "states": states}[str(config.latents.latent_space)]()
    name = find("decoder_model")
    space = new_decoded_space(encoding, settings.values, decoder_model=name, meta=meta, seed=seed)
    if not meta:
        space.check_decoder(saved, trained_in)
    _set_generation(settings, space)
    return space


def _set_generation(settings: Settings[TextDecoderConfig], space: DecodedSpace) -> None:
    space.decoder.generation_dtype = settings.config.generation.generation_dtype


def _parts(space: DecodedSpace) -> dict[str, nn.Module]:
    return {"encoding": space.space, "decoder": space.decoder}


def _meta_parts(settings: Settings[TextDecoderConfig]) -> Parts:
    """The components on the meta device, for a dry run."""
    config, space = settings.config, make_space(settings, Path(), meta=True)
    is_cached = not space.trains or config.augmentation.denoiser_run is not None
    caches = plan_splits(space, config.language_model.max_seq_len, CACHE_DTYPE) if is_cached else []
    return Parts(_parts(space), caches, [config.run.resume_dir])


def _copy_autoencoder(run: RunContext[TextDecoderConfig]) -> None:
    """The run folder holds the autoencoder whose latents it decodes."""
    settings = run.settings
    source = settings.path("latent_model_path")
    if settings.config.augmentation.denoiser_run is not None:
        source = settings.path("resume_dir") / AUTOENCODER
    explicit = settings.config.language_model.enc_dec_model if "enc_dec_model" in settings.explicit else None
    name = CompressedSpace.from_pretrained(source, language_model=explicit).language_model.name
    copy_autoencoder(source, run.folder / AUTOENCODER, name)


def _start(run: RunContext[TextDecoderConfig], space: DecodedSpace) -> None:
    """Load the weights and the scaling of the decoder in --resume_dir, which is adapted to a denoiser."""
    checkpoint = checkpoint_to_train_on(run.settings)
    load_into(space, checkpoint)
    run.record_weights("resume_dir", WeightsRead.of(checkpoint))


def load_denoiser(run: RunContext[TextDecoderConfig], space: DecodedSpace, corpus: Corpus) -> Denoiser | None:
    """The denoiser of --denoiser_run, as a function of latents; None without it."""
    options = run.settings.config.augmentation
    if options.denoiser_run is None:
        return None
    from pipelines.steps.denoiser_augmentation import load_denoiser_augmentation

    given, steps = given_checkpoint(run.settings, "denoiser_run"), options.denoiser_steps
    denoiser = load_denoiser_augmentation(options.denoiser_run, space, steps, run.device, corpus, **given)
    run.record_weights("denoiser_run", denoiser.weights_read)
    return denoiser


# ------------------------------------------------------------------------------------------------------------ the data


def target_tokens(space: DecodedSpace, split: Split, longest: int) -> Sequences:
    """Texts, each after its source if the decoder reads it, as token ids of the decoder.

    longest: text in tokens, start and end included. UserError for a corpus without the sources that it should read.
    """
    lm, length = space.decoder.lm, space.source_length
    if length and split.sources is None:
        raise UserError("--source_prompt needs a corpus of pairs, and this one has no sources: leave it out")
    return encode(lm.tokenizer, lm.boundaries, split.texts, split.sources if length else None, longest, length)


def _add_prompts(space: DecodedSpace, tokens: TokenSplit) -> None:
    """What the decoder reads beside latents goes with the held-out texts, which are decoded from their latents."""
    if space.source_length and tokens.split.sources is not None:
        tokens.prompts = space.prompts(tokens.split.sources)


class LatentReader:
    """rows (B,) -> latents of the texts of a split, or their tokens where the encoding trains with the decoder."""

    def __init__(self, space: DecodedSpace, data: TokenSplit, cached: Any, device: torch.device) -> None:
        """cached: rows -> latents before scaling, from a cache; None: they are encoded."""
        self.space, self.data, self.cached, self.device = space, data, cached, device

    @property
    def makes_tokens(self) -> bool:
        return self.cached is None and self.space.trains

    def scaled(self, rows: Tensor) -> Any:
        """Latents as the decoder reads them; or tokens, see makes_tokens."""
        if self.makes_tokens:
            return self.data.batch(rows).to(self.device)
        with torch.no_grad():
            return self.space.scale(self.unscaled(rows))

    @torch.no_grad()
    def unscaled(self, rows: Tensor) -> Latents:
        if self.cached is not None:
            found: Latents = self.cached(rows)
            return found
        return self.space.encode_unscaled(self.data.batch(rows).to(self.device))


def latent_reader(
    run: RunContext[TextDecoderConfig], space: DecodedSpace, data: TokenSplit, title: str
) -> LatentReader:
    """The latents of a split, encoded once and kept in half precision, unless their encoding trains.

    Adapted to a denoiser, it does not: the denoiser's latents have to stay valid.
    """
    if space.trains and run.settings.config.augmentation.denoiser_run is None:
        return LatentReader(space, data, None, run.device)
    config = run.settings.config
    try:
        cached = encode_or_load(
            space.unscaled,
            data,
            encoded_folder(config.cache.cache_dir, config.latents.latent_cache_dir, [run.folder]),
            title,
            f"latents of the {title} texts",
            run.dist,
            "auto",
            CACHE_DTYPE,
            "name a folder on a larger disk with --cache_dir",
            max_bytes=1e9 * config.cache.max_cache_gb,
            corpus=dataset_label(run.settings),
        )
    except NotFinite as error:
        layer = "read another layer with --encoder_layer, or " if config.latents.latent_space == "sentence" else ""
        raise UserError(
            f"{error.problem}: {layer}encode them at each step, in float32, with --max_cache_gb 0"
        ) from error
    return LatentReader(space, data, cached, run.device)


def _unscaled_latents(
    run: RunContext[TextDecoderConfig], space: DecodedSpace, data: TokenSplit, read: LatentReader
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Latents before scaling of training texts that are spread over the corpus; of all if there are few."""
    count = min(SCALING_TEXTS, len(data))
    rows = torch.arange(len(data)) if count == len(data) else torch.linspace(0, len(data) - 1, count).long()
    for part in rows.split(512):
        latents = read.unscaled(part)
        yield latents.x0.float(), latents.mask if space.variable_length else None


@exit_on_user_error
def main() -> int:
    code = train(parse(TEXT_DECODER))
    from utils.distributed import cleanup

    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
