"""Flags that mean something only beside another one: typed without it, one line says that they have no effect.

A note and no error, since published command lines name such flags. What contradicts is refused elsewhere (rules).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from utils.settings import Settings

ON = ("on",)  # the other flag is a switch, a number above 0, or names something
NEEDS: Mapping[str, tuple[str, tuple[str | bool | None, ...]]] = {
    # flag: (the flag it goes with, values of that one with which it counts)
    "train_prob_self_cond": ("self_condition", ON),
    "class_unconditional_prob": ("class_conditional", ON),
    "scale": ("beta_schedule", (None,)),
    "polynomial_T_power": ("T_schedule", ("polynomial",)),
    "min_snr_gamma": ("loss_weighting", ("min_snr",)),
    "time_bins": ("schedule_sampler", ("lossaware",)),
    "posterior_variance": ("sampler", ("ddpm",)),
    "grid_shift": ("time_grid", ("shifted", "logit_normal")),
    "grid_rho": ("time_grid", ("karras",)),
    "normalize_batches": ("normalize_latent", ON),
    "latent_cache_dir": ("no_latent_cache", (False,)),
    "latents_on_device": ("no_latent_cache", (False,)),
    "states_on_device": ("cache_encoder_states", ("float16", "float32")),
    "tx_dim": ("denoiser_variant", ("latent", "states")),
    "tx_depth": ("denoiser_variant", ("latent", "states")),
    "scale_shift": ("denoiser_variant", ("latent", "states")),
    "num_dense_connections": ("denoiser_variant", ("latent", "states")),
    "dense_pairing": ("num_dense_connections", ON),
    "encoder_config": ("denoiser_variant", ("encoder",)),
    "encoder_init": ("denoiser_variant", ("encoder",)),
    "encoder_dropout": ("denoiser_variant", ("encoder",)),
    "encoder_time_dim": ("denoiser_variant", ("encoder",)),
    "clamp_from": ("clamp", ON),
    "clamp_until": ("clamp", ON),
    "denoise_rate": ("denoise", ON),
    "reg_rate": ("learned_mean_embed", ON),
    "prefix_share": ("unlabelled", ON),
    "guidance_kind": ("latent_classifier", ON),
    "guidance_steps": ("latent_classifier", ON),
    "guidance_strength": ("latent_classifier", ON),
    "guidance_fluency": ("latent_classifier", ON),
    "guidance_rate": ("latent_classifier", ON),
    "guidance_langevin": ("latent_classifier", ON),
    "trajectory_texts": ("trajectory", ON),
    "trajectory_views": ("trajectory", ON),
    "muon_momentum": ("optimizer", ("muon",)),
    "latent_noise_prob": ("latent_noise", ON),
    "drafter": ("drafting", ("auto",)),
    "distill_steps": ("distill_run", ON),
    "distill_substeps": ("distill_run", ON),
    "distill_guidance": ("distill_run", ON),
    "prior_prob": ("prior_run", ON),
    "prior_steps": ("prior_run", ON),
}


def said_where_without_effect(settings: Settings) -> None:
    """A rule: one note for all flags that were typed, with other values than their defaults, for nothing."""
    idle = {}
    flags = settings.program.flags
    for flag, (other, values) in NEEDS.items():
        if flag in flags and other in flags and flag in settings.typed and settings.values[flag] != flags[flag].default:
            there = settings.values[other]
            if not (there if values == ON else there in values):
                idle[f"--{flag}"] = _wanted(other, values)
    if idle:
        said = "; ".join(f"{flag} counts only {wanted}" for flag, wanted in idle.items())
        print(f"note: without effect here: {said}", file=sys.stderr)


def _wanted(other: str, values: tuple[str | bool | None, ...]) -> str:
    if values == ON:
        return f"with --{other}"
    if values in ((None,), (False,)):
        return f"without --{other}"
    return f"with --{other} {' or '.join(map(str, values))}"
