"""How the flags of one command line meet: a rule fills in what follows from others, or refuses what contradicts them.

A rule takes Settings and may set values. Which program has which rules is said in pipelines/flags/programs.py.
"""

from __future__ import annotations

import sys
from dataclasses import fields

from pipelines.flags.presets import PRESETS
from pipelines.flags.students import GRID, WALK
from pipelines.flags.without_effect import NEEDS
from utils.errors import UserError
from utils.settings import MODES, Settings

STUDENTS_OWN = (*WALK, *GRID)
MAY_BE_ZERO = {"lr_warmup_steps", "num_dense_connections", "random_seed", "seed", "num_train_steps"}


def schedules_meet(settings: Settings) -> None:
    """Continuous and discrete processes exclude each other; eta has a default of its own in each."""
    typed = settings.typed
    if settings.beta_schedule is not None:
        clash = [flag for flag in ("train_schedule", "sampling_schedule") if flag in typed]
        if clash:
            raise UserError(
                f"--beta_schedule (a discrete chain) and --{clash[0]} (continuous time) exclude each other: give one"
            )
    elif "timesteps" in typed:
        raise UserError(
            "--timesteps is the length of a discrete chain and means nothing without one: add --beta_schedule NAME"
        )
    if "ddim_sampling_eta" in typed and settings.ddim_sampling_eta is not None:
        if "sampler" not in typed:
            settings.set("sampler", "ddim")
        elif settings.sampler != "ddim":
            raise UserError(
                f"--ddim_sampling_eta belongs to --sampler ddim, not to {settings.sampler}: drop one of them"
            )
    if settings.ddim_sampling_eta is None:
        settings.set("ddim_sampling_eta", 1.0 if settings.beta_schedule else 0.0)


def respacing_counts_the_steps(settings: Settings) -> None:
    """--timestep_respacing decides how many steps there are, and --sampling_timesteps then says so."""
    if settings.timestep_respacing is None:
        return
    if "timestep_respacing" not in settings.typed and "sampling_timesteps" in settings.typed:
        settings.set("timestep_respacing", None)  # a number typed at evaluation replaces the respacing of training
        return
    clash = [flag for flag in ("sampling_timesteps", "time_grid") if flag in settings.typed]
    if clash:
        raise UserError(f"--timestep_respacing and --{clash[0]} both choose the steps of sampling: give one")
    if settings.beta_schedule is None:
        raise UserError("--timestep_respacing chooses steps of a discrete chain: add --beta_schedule, or drop it")
    from diffusion.respacing import kept_steps  # torch, which --help does without

    settings.set("sampling_timesteps", len(kept_steps(settings.timestep_respacing, settings.timesteps)))


def own_files_replace_default_corpus(settings: Settings) -> None:
    """The corpus that a program takes by default steps back where the user names files."""
    if settings.train_file and settings.dataset_name and "dataset_name" not in settings.typed:
        settings.set("dataset_name", None)


def preset_fills_in(settings: Settings) -> None:
    """A preset that was asked for now gives every flag of its row that was not; to a student how it decodes alone."""
    if "preset" not in settings.typed or settings.preset is None:
        return
    student = settings.values.get("distill_run") is not None
    for name, value in PRESETS[settings.preset].items():
        if name not in settings.typed and not (student and name in STUDENTS_OWN):
            settings.set(name, value)
    if student:
        print(
            f"note: --preset {settings.preset}: a student samples in its own {settings.distill_steps} steps; of the "
            f"preset it takes --decoding {settings.decoding}",
            file=sys.stderr,
        )


def a_shift_goes_with_its_grid(settings: Settings) -> None:
    """Where another time grid is asked for, the shift that a run was trained with is none of its business."""
    if "grid_shift" not in settings.typed and settings.time_grid not in NEEDS["grid_shift"][1]:
        settings.set("grid_shift", None)


def resume_dir_says_what_for(settings: Settings) -> None:
    if settings.resume_dir and not any(settings.values.get(mode) for mode in MODES):
        modes = ", ".join(f"--{mode}" for mode in MODES if mode in settings.values)
        raise UserError(f"--resume_dir {settings.resume_dir} alone does nothing: add one of {modes}")


def decoder_latents_equal(settings: Settings) -> None:
    if settings.num_decoder_latents is None:
        settings.set("num_decoder_latents", settings.num_encoder_latents)
    if settings.num_decoder_latents != settings.num_encoder_latents:
        raise UserError(
            f"--num_decoder_latents {settings.num_decoder_latents} differs from --num_encoder_latents "
            f"{settings.num_encoder_latents}: the decoder turns each latent into one state, so leave it out"
        )


def autoencoders_generate_nothing(settings: Settings) -> None:
    if settings.gen_data:
        raise UserError(
            "--gen_data belongs to a run of train_text_diffusion.py: an autoencoder only writes texts out again"
        )


def middles_are_of_a_trained_space(settings: Settings) -> None:
    if settings.midpoints and not (settings.eval or settings.eval_test):
        raise UserError("--midpoints judges a trained autoencoder: give it with --eval or --eval_test --resume_dir RUN")


def drafters_are_of_a_trained_space(settings: Settings) -> None:
    if settings.drafter is not None and "drafter" in settings.typed and not (settings.eval or settings.eval_test):
        raise UserError(
            f"--drafter {settings.drafter} drafts texts of a trained autoencoder, and this one is about to be trained: "
            "give it with --eval or --eval_test --resume_dir RUN"
        )


def only_frozen_states_are_cached(settings: Settings) -> None:
    if settings.cache_encoder_states != "no" and settings.lm_mode != "freeze":
        raise UserError(
            f"--cache_encoder_states {settings.cache_encoder_states} keeps what the language model's own encoder says, "
            f"and with --lm_mode {settings.lm_mode} another one speaks: drop one of them"
        )


def decoders_are_trained_of_a_run(settings: Settings) -> None:
    if settings.lm_mode == "decoder" and not settings.resume_dir:
        raise UserError(
            "--lm_mode decoder trains the decoder of an autoencoder that is there: name its run with --resume_dir"
        )


def priors_are_for_decoders(settings: Settings) -> None:
    if settings.prior_run is not None and settings.lm_mode != "decoder":
        raise UserError(
            f"--prior_run {settings.prior_run} is a denoiser of latents that must stay what they are: add --lm_mode "
            "decoder, or leave it out"
        )


def classes_are_conditions(settings: Settings) -> None:
    for flag in ("class_id", "classifier"):
        if settings.values[flag] is not None and not settings.class_conditional:
            raise UserError(
                f"--{flag} {settings.values[flag]} belongs to a run with --class_conditional, and this one has no "
                "classes: leave it out"
            )
    weight, sources = settings.cls_free_guidance, settings.saved.get("seq2seq", not settings.saved)
    if settings.class_id == "unconditional" and weight != 1 and not sources:
        raise UserError(
            f"--cls_free_guidance {weight:g} follows a class, and --class_id unconditional tells none: drop one of them"
        )


def only_what_trains_is_sharded(settings: Settings) -> None:
    if not settings.fsdp or any(settings.values.get(mode) for mode in ("eval", "eval_test")):
        return
    if settings.lm_mode == "freeze":
        raise UserError(
            "--fsdp spreads a language model that trains, and --lm_mode freeze trains none: add --lm_mode ft, or "
            "leave --fsdp out (the autoencoder alone is small)"
        )
    if settings.optimizer == "muon":
        raise UserError("--fsdp cuts matrices into pieces, and --optimizer muon needs them whole: use adamw or lion")


def numbers_in_range(settings: Settings) -> None:
    """Counts are at least one and probabilities lie between 0 and 1, whatever part they belong to."""
    for group in settings.program.groups.values():
        for f in fields(group):
            value, unit = settings.values[f.name], f.metadata.get("unit")
            if unit == "probability" and not 0 <= value <= 1:
                raise UserError(f"--{f.name} {value} is not a probability: give a number from 0 to 1")
            if isinstance(value, int) and not isinstance(value, bool) and value < (0 if f.name in MAY_BE_ZERO else 1):
                raise UserError(f"--{f.name} {value} is too small: give {0 if f.name in MAY_BE_ZERO else 1} or more")
