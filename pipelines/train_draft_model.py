"""Train a draft model for an autoencoder: greedy decoding verifies its drafts, and writes the same texts sooner.

    python -m pipelines.train_draft_model --latent_model_path runs/quickstart/diffusion/autoencoder

The corpus is that of the autoencoder unless another is given. The draft model is saved in drafter/ in the autoencoder's
folder, where every program that decodes its latents loads it from; diffusion runs trained later copy it with the
autoencoder. Takes minutes for a small corpus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from dataset_utils.options import DataOptions
from latent_models.spaces.compressed import CompressedSpace, read_autoencoder_args
from latent_models.speculative.draft_model import DraftModel, draft_metadata
from pipelines.best_checkpoint import best_score, check_best_metric, load_best_score, save_if_best
from pipelines.builders.draft_models import DRAFT_MODEL_COPY
from pipelines.cli.configs import DraftModelConfig
from pipelines.cli.programs import DRAFT_MODEL
from pipelines.data.cache_plan import Parts, plan_splits
from pipelines.data.cached_latents import encode_or_load
from pipelines.data.tokens import tokenize_split
from pipelines.run_context import dataset_label, load_corpus, make_train_state, save_args, setup_run
from pipelines.steps.autoencoder import LatentAugmentation
from pipelines.steps.draft_model import METRICS, DraftModelStep, evaluate_draft
from pipelines.summary import dry_run, parameters
from pipelines.training import resume, run_training
from pipelines.validation import mean_losses
from utils.cache_folder import encoded_folder
from utils.checkpoints import Checkpoint
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.distributed import cleanup, wrap
from utils.errors import UserError, exit_on_user_error
from utils.hooks import PeriodicHook
from utils.pretrained import relative_path
from utils.run_folder import resolve
from utils.seeding import derive_seed
from utils.state import State
from utils.train_eval import eval_mode


def train(settings: Settings[DraftModelConfig]) -> int:
    """Train and save. Returns the exit code."""
    import torch

    started = time.monotonic()
    config, autoencoder = settings.config, _autoencoder_folder(settings)
    saved = read_autoencoder_args(autoencoder)
    max_seq_len = saved["max_seq_len"]
    use_corpus_of_autoencoder(settings, saved)
    if config.run.dry_run:
        return dry_run(settings, partial(_meta_components, autoencoder, max_seq_len), max_seq_len=max_seq_len)

    if config.run.output_dir is None and not config.run.resume_training:
        settings.set("output_dir", str(autoencoder / DRAFT_MODEL_COPY))
    check_best_metric(settings, [f"val_{name}" for name in METRICS])
    run = setup_run(settings, "text_latent_drafter", "draft model")
    space = CompressedSpace.from_pretrained(autoencoder, device=run.device, language_model=config.task.enc_dec_model)
    if space.variable_length:
        raise UserError(
            f"--latent_model_path {autoencoder} has one latent per token, and a draft model reads a fixed number: name "
            "another autoencoder"
        )
    corpus = load_corpus(run)
    torch.manual_seed(derive_seed(config.loop.random_seed, "weights"))
    draft_model = DraftModel(space.language_model.dim, max_seq_len, config.draft_model).to(run.device)
    run.log(parameters({"latent space": space, "draft model": draft_model}))

    state = make_train_state(run, draft_model)
    metadata = draft_metadata(space)

    def check_autoencoder(checkpoint: Checkpoint) -> None:
        if any(settings.checkpoint_args.get(name) != value for name, value in metadata.items()):
            raise UserError(
                f"{run.folder} was trained for another autoencoder than {autoencoder}: name the right one with "
                "--latent_model_path, or train from scratch into another --output_dir"
            )

    if resume(run, state, check_autoencoder):
        state.best = load_best_score(run.folder, state.best)
    runs = (autoencoder.parent, run.folder)
    cache = encoded_folder(config.cache.cache_dir, config.task.latent_cache_dir, runs)
    latents = {
        name: encode_or_load(
            space,
            tokenize_split(corpus.splits[name], space.language_model, max_seq_len),
            cache,
            name,
            f"latents of the {name} split",
            run.dist,
            "auto",
            config.cache.latent_cache_dtype,
            max_bytes=1e9 * config.cache.max_cache_gb,
            corpus=dataset_label(settings),
        )
        for name in ("train", "valid")
    }
    save_args(
        run,
        parts={"latent space": space, "draft model": draft_model},
        **metadata,
        latent_model_path_relative=relative_path(str(autoencoder), run.folder),
        trainable_params=sum(p.numel() for p in draft_model.parameters()),
    )
    state.wrapped = wrap(draft_model, run.dist)
    augmentation = LatentAugmentation(config.task.max_latent_noise, config.task.latent_noise_prob)
    step = DraftModelStep(space, state.wrapped, latents["train"], run.batch_sampler(), augmentation)
    validation_sampler = run.validation_sampler(len(corpus.valid))
    validation_step = DraftModelStep(space, draft_model, latents["valid"], validation_sampler, LatentAugmentation())

    def validate(state: State) -> None:
        evaluate = partial(evaluate_draft, validation_step, draft_model)
        with eval_mode(draft_model), run.autocast():
            means = mean_losses(run.dist, validation_sampler, METRICS, evaluate)
        metrics = {f"val_{name}": value for name, value in means.items()}
        run.logger.record(metrics, state.step)
        save_if_best(run, state, best_score(run, metrics, None))
        run.logger.print(
            f"drafts equal {100 * means['token_accuracy']:.1f} % of the tokens and {100 * means['exact_match']:.1f} % "
            f"of the texts that greedy decoding writes for held-out latents; {means['verify_passes']:.2f} passes per "
            "text"
        )

    return run_training(
        run,
        state,
        step,
        started=started,
        evaluation=PeriodicHook(config.task.eval_every, validate, name="validate"),
        save_every=config.loop.save_every or config.task.eval_every,
    )


def use_corpus_of_autoencoder(settings: Settings[DraftModelConfig], saved: Mapping[str, Any]) -> None:
    """Unless a corpus is given, set the corpus flags to those of the autoencoder. saved: its args.json."""
    if any(settings.get(name) for name in ("dataset_name", "data_dir", "train_file")):
        return
    for f in fields(DataOptions):
        if f.name not in settings.explicit and f.name in saved:
            settings.set(f.name, saved[f.name])


def _autoencoder_folder(settings: Settings[DraftModelConfig]) -> Path:
    """The folder of --latent_model_path; for a resumed run that was moved, its path relative to the run."""
    task = settings.config.task
    if task.latent_model_path is None:
        raise UserError("--latent_model_path is missing: name the run folder of the autoencoder to draft for")
    recorded = settings.checkpoint_args.get("latent_model_path_relative")
    moved = "latent_model_path" not in settings.explicit and not Path(task.latent_model_path).is_dir()
    path = recorded if recorded and moved else task.latent_model_path
    return resolve(path, settings.config.run.resume_dir, "--latent_model_path")


def _meta_components(autoencoder: Path, max_seq_len: int, settings: Settings[DraftModelConfig]) -> Parts:
    """The components on the meta device, for a dry run."""
    import torch

    space = CompressedSpace.from_pretrained(autoencoder, language_model=settings.config.task.enc_dec_model, meta=True)
    with torch.device("meta"):
        draft_model = DraftModel(space.language_model.dim, max_seq_len, settings.config.draft_model)
    parts = {"language model": space.language_model, "autoencoder": space.autoencoder, "draft model": draft_model}
    caches = plan_splits(space, max_seq_len, settings.config.cache.latent_cache_dtype)
    return Parts(parts, caches, (str(autoencoder.parent), settings.config.run.resume_dir))


@exit_on_user_error
def main() -> int:
    code = train(parse(DRAFT_MODEL))
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
