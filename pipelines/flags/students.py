"""Distillation on the command line: a student (--distill_run) takes after its teacher, and keeps to its own steps."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from dataset_utils.options import DataOptions, PackingOptions
from diffusion.options import ProcessOptions
from latent_models.options import (
    ContextOptions,
    EmbeddingOptions,
    LanguageModelOptions,
    LatentOptions,
    TokenizerOptions,
)
from model.options import DenoiserOptions, EncoderDenoiserOptions
from pipelines.flags.options import AbsorbingOptions, EmbeddingLossOptions
from utils.errors import UserError
from utils.flag_files import read_args, saved_flags
from utils.flags import shown
from utils.settings import Settings

# What a student is made of is its teacher's, and so is its corpus unless another is named.
INHERITED = (
    DataOptions, PackingOptions, LanguageModelOptions, LatentOptions, ContextOptions, TokenizerOptions,
    EmbeddingOptions, EmbeddingLossOptions, DenoiserOptions, EncoderDenoiserOptions, ProcessOptions, AbsorbingOptions,
)  # fmt: skip
# Times of training: a student's are those of its steps.
NOT_INHERITED = frozenset({"T_schedule", "polynomial_T_power", "schedule_sampler", "time_bins"})
# Of what is inherited, what may be typed all the same.
FREE = frozenset(f.name for f in fields(DataOptions)) | {
    "enc_dec_model", "context_encoder", "latent_cache_dir", "no_latent_cache", "latents_on_device", "disable_dropout",
    "train_prob_self_cond", "class_unconditional_prob", "seq2seq_unconditional_prob", "loss_type", "loss_weighting",
    "min_snr_gamma", "p2_loss_weight_gamma",
}  # fmt: skip
# How a student samples follows from its steps.
WALK = ("sampler", "sampling_timesteps", "ddim_sampling_eta", "sampling_schedule", "timestep_respacing")
GRID = ("time_grid", "grid_shift", "grid_rho")


def students_take_after_their_teacher(settings: Settings) -> None:
    """First of the rules. A new student gets its teacher's flags; a trained one is held to the steps it has learned."""
    if settings.distill_run is None:
        return
    if settings.distill_guidance != 1 and settings.cls_free_guidance != 1:
        raise UserError(
            f"--cls_free_guidance {settings.cls_free_guidance:g}: a student that is taught with a guidance of "
            f"{settings.distill_guidance:g} has it in its weights: leave it out"
        )
    if settings.saved:
        _keep_to_its_steps(settings)
        return
    teacher = Path(settings.distill_run)
    saved = read_args(teacher)
    if saved.get("program") != settings.program.name:
        raise UserError(f"--distill_run {teacher} is not a run of {settings.program.name}: name one that is")
    for name in WALK:
        if name in settings.typed:
            raise UserError(
                f"--{name} is not for a student of --distill_run: it samples in its --distill_steps; leave it out"
            )
    if settings.init_path is not None:
        raise UserError("--init_path and --distill_run both say which weights to start from: give one")
    if saved.get("latent_space") == "embeddings":
        raise UserError(f"--distill_run {teacher} diffuses token embeddings: only runs on frozen latents are distilled")
    _inherit(settings, saved, teacher)
    if settings.objective == "pred_noise":
        raise UserError(
            f"--distill_run {teacher} predicts noise, which says nothing of a text at t = 1: name a run that was "
            "trained with --objective pred_v or pred_x0"
        )
    settings.saved = saved  # its parts are found and checked as those of the teacher's run itself
    settings.set("sampler", "ddim")
    settings.set("ddim_sampling_eta", 0.0)
    settings.set("sampling_timesteps", settings.distill_steps)
    if saved.get("distill_run") is not None:
        _halve(settings, saved, teacher)


def _inherit(settings: Settings, saved: dict[str, Any], teacher: Path) -> None:
    known = saved_flags(settings.program, saved, teacher)
    another_corpus = bool({"dataset_name", "train_file"} & settings.typed)
    for name in dict.fromkeys(f.name for group in INHERITED for f in fields(group)):
        if name not in known or name in NOT_INHERITED:
            if name in settings.typed and name in NOT_INHERITED:
                raise UserError(f"--{name} chooses times of training, and a student's are those of its steps: drop it")
            continue
        if name in settings.typed:
            if name not in FREE and settings.values[name] != known[name]:
                raise UserError(
                    f"--{name} {shown(settings.values[name])} differs from {shown(known[name])}, what {teacher} was "
                    "trained with: a student has its teacher's layout; leave it out"
                )
        elif not (another_corpus and name in DataOptions.__dataclass_fields__):
            settings.set(name, known[name], source="saved")
    own = teacher / "autoencoder"  # of which the student keeps a copy in its turn
    if (own / "args.json").is_file():
        settings.set("latent_model_path", str(own), source="saved")


def _halve(settings: Settings, saved: dict[str, Any], teacher: Path) -> None:
    """A student's student walks along its teacher's own steps."""
    steps, own = settings.distill_steps, saved["sampling_timesteps"]
    if own % steps or own == steps:
        raise UserError(
            f"--distill_steps {steps}: {teacher} is itself a student of {own} steps, and each of its student's has to "
            f"span some of these: give a smaller divisor of {own}"
        )
    for name in GRID:
        if name in settings.typed and settings.values[name] != saved[name]:
            raise UserError(f"--{name}: {teacher} is itself a student, whose grid its own student shares: leave it out")
        settings.set(name, saved[name], source="saved")
    if "distill_guidance" in settings.typed and settings.distill_guidance != 1:
        raise UserError(f"--distill_guidance: {teacher} is itself a student, with its guidance in it: leave it out")
    settings.set("distill_substeps", own // steps)


def _keep_to_its_steps(settings: Settings) -> None:
    for name in (*WALK, *GRID, "scale"):
        if name in settings.typed and settings.values[name] != settings.saved.get(name):
            raise UserError(
                f"--{name}: this run is a student of {settings.distill_steps} steps and has learned no others: leave "
                f"it out, or sample its teacher, {settings.distill_run}"
            )
