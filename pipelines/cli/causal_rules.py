"""Rules of the flags of python -m pipelines.train_causal_lm."""

from __future__ import annotations

from latent_models.generation.decoding import check_decoding, given_settings
from pipelines.cli.configs import CausalLMConfig
from utils.cli.settings import Settings
from utils.errors import UserError

STRATEGIES = ("nucleus", "greedy")
FULL, ADAPTERS = 5e-5, 3e-4  # learning rates of a pretrained model: of all its weights, and of LoRA adapters


def check_evaluation(settings: Settings[CausalLMConfig]) -> None:
    """UserError for what a causal language model cannot do at an evaluation."""
    options = settings.config.evaluation
    names = [part.strip() for part in options.decoding.split(",")]
    for name in names:
        if name not in STRATEGIES:
            raise UserError(
                f"--decoding {name}: a causal language model is sampled by {' or '.join(STRATEGIES)}: give one of them"
            )
    if settings.mode in (None, "resume_training"):
        names.append("nucleus")  # of the samples that a validation shows
    given = given_settings(settings.config.sampling)
    typed = {name: value for name, value in given.items() if name in settings.explicit}
    check_decoding(names, typed, settings.config.model.max_seq_len)
    if options.gen_data:
        raise UserError("--gen_data samples from a run of train_text_diffusion.py: leave it out")
    if settings.config.classes.class_id is not None and not settings.config.prompts.class_conditional:
        raise UserError(
            f"--class_id {settings.config.classes.class_id} needs a run with --class_conditional, and this run has "
            "none: leave it out"
        )


def set_learning_rate(settings: Settings[CausalLMConfig]) -> None:
    """A pretrained model takes smaller steps than one from scratch, unless --learning_rate is given."""
    if settings.config.model.model is not None and settings.origins["learning_rate"] == "default":
        settings.set("learning_rate", ADAPTERS if settings.config.model.lora_rank else FULL)
