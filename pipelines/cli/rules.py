"""Rules about flags that depend on each other: a rule fills in what follows from others, or refuses contradictions.

A rule takes Settings and may set values. pipelines.cli.programs lists the rules of each program. Constraints on one
flag (range, choices, the flag that it needs) are declared with the flag.
"""

from __future__ import annotations

import sys

from diffusion.options import UNWEIGHTED
from latent_models.generation.decoding import check_decoding, given_settings, strategies
from pipelines.cli.configs import AutoencoderConfig, DiffusionConfig, TrainingConfig
from pipelines.cli.presets import PRESETS
from utils.cli.settings import MODES, Settings
from utils.errors import UserError, one_line_text

# Values that --reference_kernels sets; each is also a flag of --config files.
REFERENCE_KERNELS = {
    "attention": "plain",
    "dropout": "uniform",
    "freed_memory": "return",
    "no_fused_optimizer": True,
    "whole_logits": True,
    "whole_batches": True,
}


def resolve_schedule_flags(settings: Settings[DiffusionConfig]) -> None:
    """Continuous and discrete processes exclude each other; eta and the variance have a separate default for each."""
    explicit, config = settings.explicit, settings.config
    discrete = config.process.beta_schedule is not None
    if discrete:
        clash = [flag for flag in ("train_schedule", "sampling_schedule") if flag in explicit]
        if clash:
            raise UserError(
                f"--beta_schedule (a discrete chain) and --{clash[0]} (continuous time) exclude each other: give one"
            )
    elif "timesteps" in explicit:
        raise UserError("--timesteps is the length of a discrete chain: add --beta_schedule NAME, or leave it out")
    eta, sampler = config.sampling.ddim_sampling_eta, config.sampling.sampler
    if "ddim_sampling_eta" in explicit and eta is not None:
        if "sampler" not in explicit:
            settings.set("sampler", "ddim")
        elif sampler != "ddim":
            raise UserError(f"--ddim_sampling_eta belongs to --sampler ddim, not to {sampler}: drop one of them")
    renoised, renoises = config.sampling.renoise_gamma > 0, settings.program.flags["renoise_gamma"].needed
    assert renoises is not None
    if renoised and {"renoise_gamma", "sampler"} <= explicit and sampler not in renoises[1]:
        raise UserError(
            f"--renoise_gamma belongs to --sampler {' or '.join(renoises[1])}, not to {sampler}: drop one of them"
        )
    if renoised and eta and "ddim_sampling_eta" in explicit:
        raise UserError(
            "--renoise_gamma and --ddim_sampling_eta both add noise to a step: drop one of them, or set it to 0"
        )
    if eta is None or renoised:
        settings.set("ddim_sampling_eta", 1.0 if discrete and not renoised else 0.0)
    learned = config.denoiser.learned_variance
    if learned and "posterior_variance" not in settings.explicit | settings.checkpoint_args.keys():
        settings.set("posterior_variance", "learned")
    times = config.process.schedule_sampler
    if learned and times in UNWEIGHTED and config.run.resume_dir is None:
        print(
            f"note: --learned_variance with --schedule_sampler {times}: times that are seldom drawn, near data above "
            "all, hardly teach the variance; stratified draws all alike",
            file=sys.stderr,
        )
    if learned and config.sampling.sampler != "ddpm" and config.run.resume_dir is None:
        print(
            f"note: --learned_variance with --sampler {config.sampling.sampler}: only ddpm reads the variance that the "
            "denoiser learns; add --sampler ddpm, or leave --learned_variance out",
            file=sys.stderr,
        )
    if config.sampling.posterior_variance == "learned" and not learned:
        raise UserError(
            "--posterior_variance learned needs a denoiser that trains with --learned_variance: use large or small"
        )


def resolve_respacing(settings: Settings[DiffusionConfig]) -> None:
    """--timestep_respacing sets the number of sampling steps; --sampling_timesteps is filled in."""
    respacing = settings.config.sampling.timestep_respacing
    if respacing is None:
        return
    if "timestep_respacing" not in settings.explicit and "sampling_timesteps" in settings.explicit:
        settings.set("timestep_respacing", None)  # a number typed at evaluation replaces the respacing of training
        return
    clash = [flag for flag in ("sampling_timesteps", "time_grid") if flag in settings.explicit]
    if clash:
        raise UserError(f"--timestep_respacing and --{clash[0]} both choose the steps of sampling: give one")
    if settings.config.process.beta_schedule is None:
        raise UserError("--timestep_respacing chooses steps of a discrete chain: add --beta_schedule, or drop it")
    from diffusion.timesteps import parse_respacing  # torch, which --help does without

    try:
        steps = parse_respacing(respacing, settings.config.process.timesteps)
    except ValueError as error:
        raise UserError(f"--timestep_respacing {one_line_text(respacing)[:40]}: {error}") from None
    settings.set("sampling_timesteps", len(steps))


def apply_preset(settings: Settings[DiffusionConfig]) -> None:
    """An explicit preset sets every flag of its row that is not explicit; for a student only those of decoding."""
    preset = settings.config.sampling.preset
    if "preset" not in settings.explicit or preset is None:
        return
    student = settings.config.distillation.distill_run is not None
    flags = settings.program.flags
    for name, value in PRESETS[preset].items():
        if name not in settings.explicit and not (student and flags[name].student in ("sampling", "grid")):
            settings.set(name, value)
    if student:
        print(
            f"note: --preset {preset}: a student samples in its own {settings.config.distillation.distill_steps} "
            f"steps, so the preset only sets --decoding {settings.config.evaluation.decoding}",
            file=sys.stderr,
        )


def check_decoding_flags(settings: Settings[AutoencoderConfig] | Settings[DiffusionConfig]) -> None:
    """Typed settings of decoding must fit --decoding; those that training recorded apply to their strategies."""
    config = settings.config
    given = {name: value for name, value in given_settings(config.decoding).items() if name in settings.explicit}
    if given:
        check_decoding(list(strategies(config.evaluation.decoding)), given, config.language_model.max_seq_len)


def reset_grid_shift(settings: Settings[DiffusionConfig]) -> None:
    """A shift that a run was trained with holds for its own time grid only."""
    needed = settings.program.flags["grid_shift"].needed
    assert needed is not None
    if "grid_shift" not in settings.explicit and settings.config.sampling.time_grid not in needed[1]:
        settings.set("grid_shift", None)


def apply_reference_kernels(settings: Settings[TrainingConfig]) -> None:
    """--reference_kernels sets the flags of each implementation, unless these are explicit."""
    if not settings.config.kernels.reference_kernels:
        return
    for name, value in REFERENCE_KERNELS.items():
        if name in settings.program.flags and name not in settings.explicit:
            settings.set(name, value)


def keep_cache_dtype(settings: Settings[TrainingConfig]) -> None:
    """A run of a release without --latent_cache_dtype has trained on float32, and goes on with it bit for bit."""
    given = {*settings.checkpoint_args, *settings.explicit}
    if settings.checkpoint_args and "latent_cache_dtype" not in given:
        settings.set("latent_cache_dtype", "float32")


def check_averages(settings: Settings[DiffusionConfig]) -> None:
    parse_decays(settings.config.ema.ema_decays)


def parse_decays(text: str | None) -> list[float]:
    """The decays of --ema_decays, each once. Raises UserError for what is no decay."""
    decays = []
    for word in [] if text is None else text.split(","):
        try:
            decays.append(float(word))
        except ValueError:
            decays.append(-1.0)
        if not 0 <= decays[-1] < 1:
            raise UserError(
                f"--ema_decays {one_line_text(text)[:60]}: {one_line_text(word.strip())[:20] or 'nothing'} is no "
                "decay: give numbers from 0 to below 1, such as 0.999,0.9995"
            )
    return list(dict.fromkeys(decays))


def check_init_optimizer(settings: Settings[DiffusionConfig]) -> None:
    intervals = settings.config.intervals
    if intervals.init_optimizer and intervals.init_path is None:
        raise UserError("--init_optimizer takes the optimizer of --init_path along: name a run with --init_path")


def check_resume_mode(settings: Settings[TrainingConfig]) -> None:
    """--resume_dir needs a flag that selects the use of the run: training or an evaluation."""
    folder = settings.config.run.resume_dir
    if folder and settings.mode is None:
        modes = ", ".join(f"--{mode}" for mode in MODES if mode in settings.program.flags)
        raise UserError(f"--resume_dir {folder} alone has no effect: add one of {modes}")


def check_num_latents(settings: Settings[AutoencoderConfig]) -> None:
    encoder, decoder = settings.config.perceiver.num_encoder_latents, settings.config.perceiver.num_decoder_latents
    if decoder is None:
        settings.set("num_decoder_latents", encoder)
    elif decoder != encoder:
        raise UserError(
            f"--num_decoder_latents {decoder} differs from --num_encoder_latents {encoder}: the decoder turns each "
            "latent into one state, so leave it out"
        )


def check_latent_losses(settings: Settings[AutoencoderConfig]) -> None:
    config = settings.config
    if config.autoencoder.autoencoder == "per_token" and "num_encoder_latents" in settings.explicit:
        raise UserError(
            f"--num_encoder_latents {config.perceiver.num_encoder_latents}: --autoencoder per_token has one latent for "
            "each token: leave it out"
        )
    if config.latent_losses.kl_weight and config.perceiver.l2_normalize_latents:
        raise UserError(
            "--kl_weight gives latents a mean and a variance, and --l2_normalize_latents a fixed norm: leave one out"
        )


def check_recovery(settings: Settings[AutoencoderConfig]) -> None:
    if settings.config.validation.eval_recovery and not _evaluates(settings):
        raise UserError(
            "--eval_recovery evaluates a trained autoencoder: add --eval or --eval_test and --resume_dir RUN; in "
            "training --best_metric recovery measures it"
        )


def check_gen_data(settings: Settings[AutoencoderConfig]) -> None:
    if settings.config.evaluation.gen_data:
        raise UserError("--gen_data samples from a run of train_text_diffusion.py: an autoencoder has no sampler")


def check_interpolation(settings: Settings[AutoencoderConfig]) -> None:
    if settings.config.validation.eval_interpolation and not _evaluates(settings):
        raise UserError(
            "--eval_interpolation evaluates a trained autoencoder: add --eval or --eval_test and --resume_dir RUN"
        )


def check_draft_model(settings: Settings[AutoencoderConfig]) -> None:
    drafter = settings.config.generation.draft_model
    if drafter is not None and "draft_model" in settings.explicit and not _evaluates(settings):
        raise UserError(
            f"--draft_model {drafter} drafts texts of a trained autoencoder, and this command trains a new one: add "
            "--eval or --eval_test and --resume_dir RUN"
        )


def check_encoder_cache(settings: Settings[AutoencoderConfig]) -> None:
    cache, mode = settings.config.encoder_cache.cache_encoder_states, settings.config.autoencoder.lm_mode
    if cache != "no" and mode != "freeze":
        raise UserError(
            f"--cache_encoder_states {cache} needs a frozen encoder, and --lm_mode is {mode}: use --lm_mode freeze, or "
            "leave the cache out"
        )


def check_decoder_mode(settings: Settings[AutoencoderConfig]) -> None:
    if settings.config.autoencoder.lm_mode == "decoder" and not settings.config.run.resume_dir:
        raise UserError("--lm_mode decoder trains the decoder of a trained autoencoder: name its run with --resume_dir")


def check_denoiser_run(settings: Settings[AutoencoderConfig]) -> None:
    run = settings.config.augmentation.denoiser_run
    if run is not None and settings.config.autoencoder.lm_mode != "decoder":
        raise UserError(
            f"--denoiser_run {run} needs latents that training does not change: add --lm_mode decoder, or leave it out"
        )


def check_time_width(settings: Settings[DiffusionConfig]) -> None:
    """UserError for a width in which --denoiser_variant encoder cannot write a noise level."""
    if settings.config.denoiser.denoiser_variant != "encoder":
        return
    width, kind = settings.get("encoder_time_dim"), settings.get("encoder_sinusoids")
    if width < 4 or (width % 2 and kind == "ddpm"):
        raise UserError(
            f"--config encoder_time_dim={width} has no room for sines and cosines: give an even number of 4 or more"
        )


def check_class_flags(settings: Settings[DiffusionConfig]) -> None:
    config = settings.config
    for flag, value in (("class_id", config.classes.class_id), ("classifier", config.classes.classifier)):
        if value is not None and not config.denoiser.class_conditional:
            raise UserError(
                f"--{flag} {value} needs a run with --class_conditional, and this run has none: leave it out"
            )
    weight = config.sampling.cls_free_guidance
    sources = settings.checkpoint_args.get("seq2seq", not settings.checkpoint_args)
    if config.classes.class_id == "unconditional" and weight != 1 and not sources:
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a condition, and --class_id unconditional gives none: drop one of "
            "them"
        )


def check_fsdp(settings: Settings[AutoencoderConfig]) -> None:
    if not settings.config.sharding.fsdp or _evaluates(settings):
        return
    if settings.config.autoencoder.lm_mode == "freeze":
        raise UserError(
            "--fsdp shards a language model that trains, and --lm_mode freeze trains none: add --lm_mode ft, or "
            "leave --fsdp out (the autoencoder alone is small)"
        )
    if settings.config.optimizer.optimizer == "muon":
        raise UserError("--fsdp shards matrices, and --optimizer muon needs them whole: use adamw or lion")


def _evaluates(settings: Settings[AutoencoderConfig]) -> bool:
    return settings.mode in ("eval", "eval_test")
