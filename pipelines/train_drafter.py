"""Train a drafter for an autoencoder: greedy decoding then writes the same texts, sooner (latent_models/drafting).

    python -m pipelines.train_drafter --latent_model_path runs/quickstart/diffusion/autoencoder

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
from pipelines.building.drafters import DRAFTER_COPY, facts, new_drafter
from pipelines.building.models import autoencoder_args, empty_autoencoder, load_autoencoder, relative
from pipelines.data.cached_latents import encoded_split
from pipelines.data.tokens import tokenize_split
from pipelines.describe import dry_run, parameters
from pipelines.flags.programs import DRAFTER
from pipelines.job import fit, load_corpus, new_state, open_job, record_args
from pipelines.training.autoencoder_step import Disturbance
from pipelines.training.drafter_step import JUDGED, DrafterStep, judge
from pipelines.training.held_out import held_out_means
from utils import checkpoints
from utils.config import parse
from utils.distributed import finish, wrap
from utils.errors import UserError, one_line
from utils.hooks import Every
from utils.modes import evaluating
from utils.runs import resolve
from utils.seeding import derive
from utils.settings import Settings
from utils.state import State
from utils.stop import EXIT_CODES


def run(settings: Settings) -> int:
    """Train and save. Returns the exit code."""
    import torch

    started = time.monotonic()
    autoencoder = _autoencoder(settings)
    saved = autoencoder_args(autoencoder)
    corpus_of(settings, saved)
    if settings.dry_run:
        return dry_run(settings, partial(_parts, autoencoder, saved["max_seq_len"]), max_seq_len=saved["max_seq_len"])
    if settings.output_dir is None and not settings.resume_training:
        settings.set("output_dir", str(autoencoder / DRAFTER_COPY))
    job = open_job(settings, "text_latent_drafter", "drafter")
    space, _ = load_autoencoder(autoencoder, job.device, settings.enc_dec_model)
    corpus = load_corpus(job)
    torch.manual_seed(derive(settings.random_seed, "weights"))
    drafter = new_drafter(space, {**settings.as_dict(), "max_seq_len": saved["max_seq_len"]}).to(job.device)
    job.say(parameters({"latent space": space, "drafter": drafter}))
    state = new_state(job, drafter)
    known = facts(space, saved["max_seq_len"])
    if settings.resume_training:
        if any(settings.saved.get(name) != value for name, value in known.items()):
            raise UserError(
                f"{job.folder} was begun for another autoencoder than the one in {autoencoder}: name that one with "
                "--latent_model_path, or begin anew in another --output_dir"
            )
        state.restore(checkpoints.load(job.folder))
    folder = _cache(settings, autoencoder, job.folder)
    texts = {
        name: encoded_split(
            space,
            tokenize_split(corpus.splits[name], space.language_model, saved["max_seq_len"]),
            folder,
            name,
            f"latents of the {name} split",
            job.ranks,
            "auto",
        )
        for name in ("train", "valid")
    }
    record_args(
        job,
        **known,
        latent_model_path_relative=relative(str(autoencoder), job.folder),
        trainable_params=sum(p.numel() for p in drafter.parameters()),
    )
    state.wrapped = wrap(drafter, job.ranks)
    disturbance = Disturbance(settings.latent_noise, settings.latent_noise_prob)
    step = DrafterStep(space, state.wrapped, texts["train"], job.plan(), disturbance)
    checker = DrafterStep(space, drafter, texts["valid"], job.held_out_plan(len(corpus.valid)), Disturbance())

    def validate(state: State) -> None:
        with evaluating(drafter), job.autocast():
            found = held_out_means(job.ranks, checker.plan, JUDGED, partial(judge, checker, drafter))
        job.log.record({f"val_{name}": value for name, value in found.items()}, state.step)
        job.log.say(
            f"drafts {100 * found['tokens_right']:.1f} % of the tokens right that the language model writes for "
            f"held-out texts, and {100 * found['texts_right']:.1f} % of the texts: {found['passes']:.2f} passes a text"
        )

    validation = Every(settings.eval_every, validate, name="validate")
    saving = Every(settings.save_every or settings.eval_every, lambda state: state.save(job.folder))
    reason = fit(job, state, step, [validation, saving], started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    made_up = bool(state.owed)
    validation.at_end(state)
    if made_up:
        state.save(job.folder)
    return 0


def corpus_of(settings: Settings, saved: Mapping[str, Any]) -> None:
    """Unless a corpus is named, take that of the autoencoder, whose args.json is given."""
    if any(settings.values[name] for name in ("dataset_name", "data_dir", "train_file")):
        return
    for f in fields(DataOptions):
        if f.name not in settings.typed and f.name in saved:
            settings.set(f.name, saved[f.name])


def _autoencoder(settings: Settings) -> Path:
    """The folder of the autoencoder: as given, or where it is from a run that goes on."""
    if settings.latent_model_path is None:
        raise UserError("--latent_model_path is missing: name the run folder of the autoencoder whose texts to draft")
    recorded = settings.saved.get("latent_model_path_relative")
    moved = "latent_model_path" not in settings.typed and not Path(settings.latent_model_path).is_dir()
    path = recorded if recorded and moved else settings.latent_model_path
    return resolve(path, settings.resume_dir, "--latent_model_path")


def _cache(settings: Settings, autoencoder: Path, run: Path) -> Path:
    """Where latents are kept: as told, where the diffusion run that holds this autoencoder keeps them, or here."""
    there = autoencoder.parent / "latent_cache"
    return Path(settings.latent_cache_dir or (there if there.is_dir() else run / "latent_cache"))


def _parts(autoencoder: Path, max_seq_len: int, settings: Settings) -> dict[str, Any]:
    """What a dry run builds."""
    import torch

    space = empty_autoencoder(autoencoder, settings.enc_dec_model)
    with torch.device("meta"):
        drafter = new_drafter(space, {**settings.as_dict(), "max_seq_len": max_seq_len})
    return {"language model": space.language_model, "autoencoder": space.autoencoder, "drafter": drafter}


@one_line
def main() -> int:
    code = run(parse(DRAFTER))
    finish()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
