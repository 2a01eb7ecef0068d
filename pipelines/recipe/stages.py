"""The stages of the recipe: each is an ordinary program, whose flags follow from the choices."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.adapt_decoder import network_flags
from pipelines.cli.configs import AutoencoderConfig
from pipelines.cli.programs import AUTOENCODER, CAUSAL_LM, DIFFUSION, PRETRAIN, TEXT_DECODER
from pipelines.recipe.left_out import left_out, without_flags
from pipelines.recipe.plan import (
    AUTOENCODER_WAY,
    FEWEST_STEPS,
    HALF_BATCH,
    POOLED,
    POOLED_LAYER,
    PRETRAINED_WAY,
    SCRATCH_WAY,
    TRAINED_HERE,
    Choice,
    Choices,
    Steps,
    encoder_of,
    has_one_vector,
    shares,
)
from pipelines.stages import ROBUST_AUTOENCODER, Stage
from utils.cli.parse import check_flags
from utils.cli.settings import Program, Settings
from utils.cli.words import as_words
from utils.errors import UserError

SHOWN = 16  # samples of the training of a denoiser
UNSCORED = "--config training_scores=False"  # of so few: the recipe evaluates in the end
DECODED_PER_SECOND = 0.05  # texts for each second of training: SmolLM2 decodes five a second on two cores
DECODER_NOISE = 0.5  # of samples, as a part of the largest noise that the decoder of an autoencoder was trained with
OWN_MODEL = "{root}/causal_lm/model"  # the language model that is trained here, an ordinary Hugging Face folder
# Of an MLP on one vector: most training times where there is neither little noise, which the decoder reads as well, nor
# so much that only the mean is left (docs/real-text-study.md)
MIDDLE_TIMES = "--schedule_sampler logit_normal --config time_logit_mean=0.45 --config time_logit_std=0.75"
LATENT_CACHE = "latent_cache"  # folder of the encoded corpus, which all stages and their probes share


@dataclass(frozen=True)
class StageRow:
    """A stage of a way: its program, and the choices that hold its batch size and its number of steps."""

    program: Program
    title: str
    done_file: str
    own_flags: str  # the flag of the recipe whose flags are passed through
    batch_size: str | None = None  # name of the choice; None: of the row
    least_batch: int = 64  # where no choice holds it
    fewest: int = 0  # steps, below which the batch is halved
    with_fewer: str = ""  # what goes wrong then, for a note
    smallest_batch: int = 8  # to which it is halved
    half_batch: float = HALF_BATCH  # times the rate, with half as many texts
    steps_flag: str = "decoder_steps"  # flag of the recipe that fixes the number of steps


STAGE_ROWS = {
    "decoder": StageRow(
        TEXT_DECODER, "a language model learns to write a text from its latents", "validation.json", "decoder_flags",
        batch_size="decoder_batch_size", fewest=FEWEST_STEPS, with_fewer="texts do not follow their latents",
        half_batch=1.85, steps_flag="decoder_steps",
    ),
    "causal_lm": StageRow(
        CAUSAL_LM, "a small causal language model", "model/config.json", "language_model_flags", least_batch=32,
        steps_flag="language_model_steps",
    ),
    "lm": StageRow(PRETRAIN, "a small BART, pretrained by denoising", "validation.json", "language_model_flags",
                   steps_flag="language_model_steps"),
    "autoencoder": StageRow(
        AUTOENCODER, "an autoencoder that is robust to noise, around the BART", "validation.json", "autoencoder_flags",
        least_batch=32, steps_flag="autoencoder_steps",
    ),
    "diffusion": StageRow(
        DIFFUSION, "the denoiser learns to generate latents", "metrics.json", "denoiser_flags",
        batch_size="denoiser_batch_size", fewest=800, smallest_batch=64, steps_flag="denoiser_steps",
    ),
    "joint": StageRow(
        DIFFUSION, "autoencoder and denoiser train together", "metrics.json", "joint_flags",
        batch_size="denoiser_batch_size", smallest_batch=16, steps_flag="joint_steps",
    ),
    "adapted": StageRow(
        AUTOENCODER, "the decoder, fine-tuned on latents of the denoiser", "validation.json", "adapted_flags",
        least_batch=32, steps_flag="adapted_steps",
    ),
}  # fmt: skip
STEPS_FLAGS = tuple(dict.fromkeys(row.steps_flag for row in STAGE_ROWS.values()))
OWN_FLAGS = tuple(dict.fromkeys(row.own_flags for row in STAGE_ROWS.values()))


ADDED_BY = {"joint": "--joint", "adapted": "--adapt_decoder"}  # stages that a flag of the recipe adds


def check_stage_flags(given: Mapping[str, Any], stages: Collection[str]) -> None:
    """UserError for a typed flag of a stage that is not among these."""
    for name, row in STAGE_ROWS.items():
        if given.get(row.own_flags) and name not in stages:
            how = f", or add {ADDED_BY[name]}" if name in ADDED_BY else ""
            raise UserError(
                f"--{row.own_flags} is for a stage that is not trained here (stages: {', '.join(stages)}): leave it out"
                + how
            )


@dataclass(frozen=True)
class Setting:
    """All that the flags of a stage follow from, but its steps."""

    corpus: str  # flags of the corpus, quoted for a shell
    choices: Choices
    language_model: str | None
    encoder_model: str | None
    has_sources: bool  # of the corpus
    given: Mapping[str, Any]

    def value(self, name: str) -> Any:
        if name not in self.choices:
            raise UserError(f"recipe.json has no choice {name}: another release wrote it; name another --output_dir")
        return self.choices[name].value

    @property
    def parts(self) -> dict[str, str | None]:
        """The pretrained models that the way uses, by their flags."""
        way = self.value("way")
        return {
            "language_model": None if way in TRAINED_HERE else self.language_model,
            "encoder_model": self.encoder_model if way == PRETRAINED_WAY else None,
        }

    @property
    def autoencoder_decodes(self) -> bool:
        """Whether the decoder is that of the autoencoder."""
        return bool(self.value("way") == AUTOENCODER_WAY)

    def batch_size(self, stage: str) -> int:
        row = STAGE_ROWS[stage]
        return row.least_batch if row.batch_size is None else int(self.value(row.batch_size))

    @property
    def latents(self) -> str:
        """The stage whose run folder holds the latent space of the denoiser."""
        return "autoencoder" if self.autoencoder_decodes else "decoder"

    @property
    def denoiser(self) -> str:
        """The stage whose run is sampled: the last one in which the denoiser trains."""
        return "joint" if "joint" in shares(self.choices) else "diffusion"

    @property
    def decoding(self) -> str:
        return str(self.value("decoding"))


def choices_of_record(state: Mapping[str, Any]) -> Choices:
    """The choices that recipe.json holds. KeyError or TypeError where it is no such record."""
    return {name: Choice(**row) for name, row in state["choices"].items()}


def setting_of_record(state: Mapping[str, Any]) -> Setting:
    """The setting that recipe.json holds. KeyError or TypeError where it is no such record."""
    models = state["models"]
    return Setting(
        corpus=state["corpus_flags"],
        choices=choices_of_record(state),
        language_model=models["language_model"],
        encoder_model=models["encoder_model"],
        has_sources=state["corpus"]["has_sources"],
        given=state["given"],
    )


def steps_of_record(record: Mapping[str, Any]) -> Steps:
    """The length of a stage that recipe.json holds."""
    return Steps(**{key: record[key] for key in Steps.__dataclass_fields__})


def make_stage(name: str, setting: Setting, steps: Steps) -> Stage:
    """The stage of that name with all its flags; those of the user come last, so that they replace ours."""
    row = STAGE_ROWS[name]
    program = row.program
    if name == "adapted" and not setting.autoencoder_decodes:
        program = TEXT_DECODER
    words = [
        setting.corpus,
        f"--max_train_texts {setting.value('max_train_texts')} --max_seq_len {setting.value('max_seq_len')}",
        f"--num_train_steps {steps.steps} --train_batch_size {steps.batch_size} --lr_warmup_steps {steps.warmup}",
        f"--lr_schedule cosine --log_every {log_interval(steps)}",
        FLAGS[name](setting, steps),
        setting.given.get(row.own_flags) or "",
    ]
    return Stage(name, program, row.title, row.done_file, " ".join(words))


def check_own_flags(name: str, setting: Setting) -> None:
    """UserError for a choice of the recipe in the flags of a stage: it would plan with another value, and print that.

    These are the number of steps, and all that the command of the stage has of the table of choices.
    """
    row = STAGE_ROWS[name]
    without = replace(setting, given={key: value for key, value in setting.given.items() if key != row.own_flags})
    stage = make_stage(name, without, replace(SHORT, batch_size=setting.batch_size(name)))
    typed = check_flags(stage.program, shlex.split(setting.given.get(row.own_flags) or "")).explicit
    words = set(stage.argv(Path()))
    renamed = {"num_train_steps": row.steps_flag, "train_batch_size": row.batch_size}
    if name == "diffusion":
        renamed["learning_rate"] = "denoiser_learning_rate"
    for flag in sorted(typed):
        ours = renamed.get(flag, flag)
        if ours is not None and (flag in renamed or (flag in setting.choices and f"--{flag}" in words)):
            raise UserError(f"--{row.own_flags} has --{flag}, which the recipe chooses: type --{ours} instead")


def log_interval(steps: Steps) -> int:
    """Steps between log lines: a line comes with validation losses, which take time, and no more than every 10 s.

    The rate of a stage whose steps were typed is not known, and 0.
    """
    often = int(10 * steps.steps_per_second) if steps.steps_per_second else steps.steps
    return max(1, min(50, often, steps.steps // 4))


def _causal_lm(setting: Setting, steps: Steps) -> str:
    c = setting.value
    every = max(1, steps.steps // 4)  # the best of four: it overfits a small corpus
    sources = f" --max_source_len {c('max_seq_len')}" if c("condition") == "source" else _sources(setting)
    return (
        f"--max_seq_len {c('max_seq_len') + _prefix_tokens(setting, steps)}"  # it will read a prefix before a text
        f" --tokenizer bpe --vocab_size {c('vocab_size')} --d_model {c('d_model')} --layers {c('layers')} --heads 4"
        f" --learning_rate 1e-3 --eval_every {every}{sources}"
    )


def _prefix_tokens(setting: Setting, steps: Steps) -> int:
    """Vectors that the decoder reads before a text, with the flags of the user."""
    from latent_models.causal.prefix import default_prefix_tokens

    typed = check_flags(TEXT_DECODER, shlex.split(make_stage("decoder", setting, steps).flags)).config.decoder
    latents = int(setting.value("num_sentence_latents"))
    return latents * (typed.num_prefix_tokens or default_prefix_tokens(latents))


def _sources(setting: Setting) -> str:
    return " --ignore_sources" if setting.has_sources and setting.value("condition") != "source" else ""


def _decoder(setting: Setting, steps: Steps) -> str:
    if setting.value("way") == SCRATCH_WAY:
        model = f"--decoder_model {OWN_MODEL} --decoder_mode ft --learning_rate 1e-3"
    else:
        assert setting.language_model is not None
        model = f"--decoder_model {shlex.quote(setting.language_model)} --lora_rank 16 --learning_rate 2e-3"
    source = " --source_prompt" if setting.value("condition") == "source" else ""
    return (
        f"{_space(setting)}{source} {model} --max_latent_noise 0.6"
        f" --eval_every {max(1, steps.steps)} --save_every {_part(steps, 10)}"
        f" --eval_texts {decoded_texts(steps)} --latent_cache_dir {{root}}/{LATENT_CACHE}"
    )


def decoded_texts(steps: Steps) -> int:
    """Held-out texts that the last evaluation of a decoder decodes, three times each: as many as its time allows."""
    return max(16, min(200, int(steps.seconds * DECODED_PER_SECOND)))


def _space(setting: Setting) -> str:
    if setting.value("way") not in POOLED:
        return "--latent_model_path {root}/autoencoder"
    layer: int | None
    if setting.value("way") == SCRATCH_WAY:
        encoder, layer = OWN_MODEL, min(POOLED_LAYER, int(setting.value("layers")))
    else:
        model, layer = encoder_of(setting.value("way"), setting.language_model, setting.encoder_model)
        assert model is not None
        encoder = shlex.quote(model)
    pooling, number = setting.value("pooling"), setting.value("num_sentence_latents")
    if layer is not None:
        encoder += f" --encoder_layer {layer}"
        encoder += "" if pooling == "learned" else " --latent_scaling half_whiten"
    space = f"--latent_space sentence --encoder_model {encoder} --pooling {pooling}"
    return space + (f" --num_sentence_latents {number}" if number > 1 else "")


def _lm(setting: Setting, steps: Steps) -> str:
    c = setting.value
    rate = 2e-3 if int(c("d_model")) <= 128 else 1e-3  # at 2e-3 a wider one learned nothing in 119 steps of ROC
    return (
        f"--tokenizer bpe --vocab_size {c('vocab_size')} --d_model {c('d_model')} --layers {c('layers')} --heads 4"
        " --config pos_init=sinusoidal --config random_token_prob=0.3 --mask_prob 0.1 --config uncorrupted_prob=0.6"
        f" --learning_rate {rate:g} --eval_every {max(1, steps.steps)} --save_every {_part(steps, 5)} --eval_texts 200"
    )


def _autoencoder(setting: Setting, steps: Steps) -> str:
    sizes = {name: str(setting.value(name)) for name in ("num_encoder_latents", "dim_ae")}
    words = without_flags(shlex.split(f"{ROBUST_AUTOENCODER} --noise_level_conditioning"), sizes)
    words += [word for name, value in sizes.items() for word in (f"--{name}", value)]
    words = without_flags(words, [row.flag for row in left_out(setting.given)])
    return f"--enc_dec_model {{root}}/lm {_autoencoder_training(steps)} {shlex.join(words)}"


def _autoencoder_training(steps: Steps) -> str:
    return (
        f"--learning_rate 1e-3 --eval_every {max(1, steps.steps)} --save_every {_part(steps, 5)} --eval_texts 200"
        " --eval_batch_size 100 --decoding greedy"
    )


def _autoencoder_settings(setting: Setting, steps: Steps) -> Settings[AutoencoderConfig]:
    """The settings of the autoencoder stage, with the flags of the user."""
    return check_flags(AUTOENCODER, shlex.split(make_stage("autoencoder", setting, steps).flags))


def _diffusion(setting: Setting, steps: Steps) -> str:
    c = setting.value
    condition = " --class_conditional" if c("condition") == "class" else ""
    condition += _sources(setting)
    network = f"--denoiser_variant {c('denoiser_variant')} --tx_dim {c('tx_dim')} --tx_depth {c('tx_depth')}"
    network += _training_times(setting)
    if c("denoiser_variant") != "mlp":
        network += " --scale_shift"
        if setting.denoiser == "diffusion":  # latents stay as they are
            network += " --linear_denoiser"
    if setting.autoencoder_decodes and not _autoencoder_settings(setting, steps).config.perceiver.l2_normalize_latents:
        network += " --normalize_latent"
    if "pooling" in setting.choices and setting.value("pooling") == "learned":
        network += " --normalize_latent"  # their scaling in stage 1 is of latents before they were learned
    return (
        f"--latent_model_path {{root}}/{setting.latents} {network} --self_condition --disable_dropout"
        f" --objective pred_v --learning_rate {c('denoiser_learning_rate')} --ema_decay {steps.ema_decay}"
        f" --sampler {c('sampler')} --time_grid {c('time_grid')} --sampling_timesteps {c('sampling_timesteps')}"
        f" --cls_free_guidance {c('cls_free_guidance')}"
        f" --save_and_sample_every {max(1, steps.steps)} --save_every {_part(steps, 5)} --num_samples {SHOWN}"
        f" {_decoding(setting, steps)} {UNSCORED}"
        f" --latent_cache_dir {{root}}/{LATENT_CACHE}{condition}"
    )


def _training_times(setting: Setting) -> str:
    """Flags of the training times, unless the user names others: means and deviations of ours would be a note then."""
    typed = shlex.split(setting.given.get("denoiser_flags") or "")
    is_named = without_flags(typed, ["schedule_sampler"]) != typed
    is_mlp = setting.value("denoiser_variant") == "mlp"
    return f" {MIDDLE_TIMES}" if is_mlp and has_one_vector(setting.choices) and not is_named else ""


def _joint(setting: Setting, steps: Steps) -> str:
    return (
        f"--joint_run {{root}}/diffusion --joint_warmup_steps {min(500, steps.steps // 4)} --learning_rate 1e-4"
        f" --ema_decay {steps.ema_decay} --save_and_sample_every {max(1, steps.steps)} --save_every {_part(steps, 5)}"
        f" --num_samples {SHOWN} {_decoding(setting, steps)} {UNSCORED}"
    )


def _decoding(setting: Setting, steps: Steps) -> str:
    """How the texts of a denoiser are written."""
    flags = f"--decoding {setting.decoding}"
    if setting.decoding == "nucleus":
        flags += f" --top_p {setting.value('top_p')}"
    if not setting.autoencoder_decodes or setting.value("adapt_decoder"):
        return flags
    autoencoder = _autoencoder_settings(setting, steps).config
    if not autoencoder.latent_augmentation.noise_level_conditioning:
        return flags
    return f"{flags} --decoder_noise {DECODER_NOISE * autoencoder.autoencoder.max_latent_noise:g}"


def _adapted(setting: Setting, steps: Steps) -> str:
    if setting.autoencoder_decodes:
        network = network_flags(_autoencoder_settings(setting, steps).values)
        words = [word for name, value in network.items() for word in as_words(AUTOENCODER, name, value)]
        trained = "{root}/joint/autoencoder" if setting.denoiser == "joint" else "{root}/autoencoder"
        return (
            f"{shlex.join(words)} {_autoencoder_training(steps)} --lm_mode decoder --resume_dir {trained}"
            f" --denoiser_run {{root}}/{setting.denoiser} --denoiser_prob 0.7 --max_latent_noise 0"
        )
    return (
        "--resume_dir {root}/decoder --denoiser_run {root}/diffusion --denoiser_prob 0.7 --learning_rate 3e-4"
        f" --eval_every {max(1, steps.steps)} --save_every {_part(steps, 5)} --eval_texts {decoded_texts(steps)}"
        f" --latent_cache_dir {{root}}/{LATENT_CACHE}"
    )


FLAGS: Mapping[str, Callable[[Setting, Steps], str]] = {
    "decoder": _decoder, "causal_lm": _causal_lm, "lm": _lm, "autoencoder": _autoencoder, "diffusion": _diffusion,
    "joint": _joint, "adapted": _adapted,
}  # fmt: skip


def _part(steps: Steps, parts: int) -> int:
    return max(1, steps.steps // parts)


# Two lengths of a stage: a word of its command in which they differ follows from the rate of its probe.
SHORT, LONG = Steps(100, 0, 8, 0.9, 60.0, 1.0), Steps(9000, 0, 100, 0.999, 6000.0, 3.0)
FOLLOWS = "N"  # is printed for such a word


def shown_command(name: str, setting: Setting, root: Path, steps: Steps | None) -> str:
    """The program and flags of a stage as they will be run. steps: None where no probe has measured its rate."""
    lengths = [steps] if steps else [replace(one, batch_size=setting.batch_size(name)) for one in (SHORT, LONG)]
    stages = [make_stage(name, setting, one) for one in lengths]
    words = [set(same) for same in zip(*(stage.argv(root) for stage in stages), strict=True)]
    shown = [FOLLOWS if len(same) > 1 else same.pop() for same in words]
    return f"{stages[0].program.name} {shlex.join(shown)}"


def notes(setting: Setting) -> list[str]:
    """A line for each flag of the recipe that flags of the user leave out."""
    if "autoencoder" not in shares(setting.choices):
        return []
    return [f"the autoencoder does without --{row.flag}: {row.reason}" for row in left_out(setting.given)]


def evaluation_flags(setting: Setting, num_samples: int, judges: Mapping[str, str | None]) -> str:
    """Flags of the evaluation of the denoiser. judges: scorer and mauve_encoder, each a folder or None."""
    flags = f"--eval --resume_dir {{root}}/{setting.denoiser} --num_samples {num_samples} --eval_batch_size 250"
    flags += f" --decoding {setting.decoding}"
    return flags + "".join(f" --{name} {shlex.quote(value)}" for name, value in judges.items() if value)
