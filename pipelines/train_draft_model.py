"""Train a drafter for an autoencoder: greedy decoding then writes the same texts, sooner (latent_models/speculative/draft_model).

    python -m pipelines.train_draft_model --latent_model_path runs/quickstart/diffusion/autoencoder

The corpus is that of the autoencoder unless another is named. The drafter lands in drafter/ below the autoencoder's
folder, where everything that decodes its latents finds it, and goes with it into the diffusion runs that are trained
from then on. Minutes for a small corpus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from dataset_utils.options import DataOptions
from pipelines.builders.draft_models import DRAFT_MODEL_COPY
from latent_models.speculative.draft_model import draft_metadata, DraftModel
from latent_models.spaces.compressed import read_autoencoder_args, CompressedSpace
from utils.pretrained import relative_path
from pipelines.cli.configs import DraftModelConfig
from pipelines.cli.programs import DRAFT_MODEL
from pipelines.data.cached_latents import encode_or_load
from pipelines.data.tokens import tokenize_split
from pipelines.summary import dry_run, parameters
from pipelines.run_context import fit, load_corpus, make_train_state, setup_run, save_args
from pipelines.steps.autoencoder import LatentAugmentation
from pipelines.steps.draft_model import METRICS, DraftModelStep, evaluate_draft
from pipelines.validation import mean_losses
from utils import checkpoints
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.distributed import cleanup, wrap
from utils.errors import UserError, exit_on_user_error
from utils.hooks import PeriodicHook
from utils.preemption import EXIT_CODES
from utils.run_folder import resolve
from utils.seeding import derive_seed
from utils.state import State
from utils.train_eval import eval_mode


def run(settings: Settings[DraftModelConfig]) -> int:
    """Train and save. Returns the exit code."""
    import torch

    started = time.monotonic()
    autoencoder = _autoencoder(settings)
    saved = read_autoencoder_args(autoencoder)
    corpus_of(settings, saved)
    if settings.config.run.dry_run:
        return dry_run(settings, partial(_parts, autoencoder, saved["max_seq_len"]), max_seq_len=saved["max_seq_len"])
    if settings.config.run.output_dir is None and not settings.config.run.resume_training:
        settings.set("output_dir", str(autoencoder / DRAFT_MODEL_COPY))
    job = setup_run(settings, "text_latent_drafter", "drafter")
    space = CompressedSpace.from_pretrained(
        autoencoder, device=job.device, language_model=settings.config.task.enc_dec_model
    )
    corpus = load_corpus(job)
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    drafter = DraftModel(space.language_model.dim, saved["max_seq_len"], settings.config.drafter).to(job.device)
    job.log(parameters({"latent space": space, "drafter": drafter}))
    state = make_train_state(job, drafter)
    known = draft_metadata(space)
    if settings.config.run.resume_training:
        if any(settings.checkpoint_args.get(name) != value for name, value in known.items()):
            raise UserError(
                f"{job.folder} was begun for another autoencoder than the one in {autoencoder}: name that one with "
                "--latent_model_path, or begin anew in another --output_dir"
            )
        state.restore(checkpoints.load(job.folder))
    folder = _cache(settings, autoencoder, job.folder)
    texts = {
        name: encode_or_load(
            space,
            tokenize_split(corpus.splits[name], space.language_model, saved["max_seq_len"]),
            folder,
            name,
            f"latents of the {name} split",
            job.dist,
            "auto",
        )
        for name in ("train", "valid")
    }
    save_args(
        job,
        **known,
        latent_model_path_relative=relative_path(str(autoencoder), job.folder),
        trainable_params=sum(p.numel() for p in drafter.parameters()),
    )
    state.wrapped = wrap(drafter, job.dist)
    disturbance = LatentAugmentation(settings.config.task.max_latent_noise, settings.config.task.latent_noise_prob)
    step = DraftModelStep(space, state.wrapped, texts["train"], job.batch_sampler(), disturbance)
    checker = DraftModelStep(space, drafter, texts["valid"], job.validation_sampler(len(corpus.valid)), LatentAugmentation())

    def validate(state: State) -> None:
        with eval_mode(drafter), job.autocast():
            found = mean_losses(job.dist, checker.batch_sampler, METRICS, partial(evaluate_draft, checker, drafter))
        job.logger.record({f"val_{name}": value for name, value in found.items()}, state.step)
        job.logger.print(
            f"drafts {100 * found['tokens_right']:.1f} % of the tokens right that the language model writes for "
            f"held-out texts, and {100 * found['texts_right']:.1f} % of the texts: {found['passes']:.2f} passes a text"
        )

    validation = PeriodicHook(settings.config.task.eval_every, validate, name="validate")
    saving = PeriodicHook(
        settings.config.loop.save_every or settings.config.task.eval_every, lambda state: state.save(job.folder)
    )
    reason = fit(job, state, step, [validation, saving], started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    made_up = bool(state.pending)
    validation.finish(state)
    if made_up:
        state.save(job.folder)
    return 0


def corpus_of(settings: Settings[DraftModelConfig], saved: Mapping[str, Any]) -> None:
    """Unless a corpus is named, take that of the autoencoder, whose args.json is given."""
    if any(settings.get(name) for name in ("dataset_name", "data_dir", "train_file")):
        return
    for f in fields(DataOptions):
        if f.name not in settings.explicit and f.name in saved:
            settings.set(f.name, saved[f.name])


def _autoencoder(settings: Settings[DraftModelConfig]) -> Path:
    """The folder of the autoencoder: as given, or where it is from a run that goes on."""
    if settings.config.task.latent_model_path is None:
        raise UserError("--latent_model_path is missing: name the run folder of the autoencoder whose texts to draft")
    recorded = settings.checkpoint_args.get("latent_model_path_relative")
    moved = "latent_model_path" not in settings.explicit and not Path(settings.config.task.latent_model_path).is_dir()
    path = recorded if recorded and moved else settings.config.task.latent_model_path
    return resolve(path, settings.config.run.resume_dir, "--latent_model_path")


def _cache(settings: Settings[DraftModelConfig], autoencoder: Path, run: Path) -> Path:
    """Where latents are kept: as told, where the diffusion run that holds this autoencoder keeps them, or here."""
    there = autoencoder.parent / "latent_cache"
    return Path(settings.config.task.latent_cache_dir or (there if there.is_dir() else run / "latent_cache"))


def _parts(autoencoder: Path, max_seq_len: int, settings: Settings[DraftModelConfig]) -> dict[str, Any]:
    """What a dry run builds."""
    import torch

    space = CompressedSpace.from_pretrained(autoencoder, language_model=settings.config.task.enc_dec_model, meta=True)
    with torch.device("meta"):
        drafter = DraftModel(space.language_model.dim, max_seq_len, settings.config.drafter)
    return {"language model": space.language_model, "autoencoder": space.autoencoder, "drafter": drafter}


@exit_on_user_error
def main() -> int:
    code = run(parse(DRAFT_MODEL))
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
