"""Rules of the flags of python -m pipelines.train_causal_lm and python -m pipelines.train_seq2seq."""

from __future__ import annotations

from latent_models.generation.decoding import check_decoding, given_settings, strategies
from pipelines.cli.configs import BaselineConfig, CausalLMConfig
from utils.cli.settings import Settings
from utils.errors import UserError

CAUSAL_STRATEGIES = ("nucleus", "greedy")
FULL, ADAPTERS = 5e-5, 3e-4  # learning rates of a pretrained model: of all its weights, and of LoRA adapters


def check_causal_strategies(settings: Settings[CausalLMConfig]) -> None:
    """UserError for a decoding strategy that a causal language model without latents lacks."""
    for name in (part.strip() for part in settings.config.evaluation.decoding.split(",")):
        if name not in CAUSAL_STRATEGIES:
            raise UserError(
                f"--decoding {name}: a causal language model is sampled by {' or '.join(CAUSAL_STRATEGIES)}: give one "
                "of them"
            )


def check_evaluation(settings: Settings[BaselineConfig]) -> None:
    """UserError for what a language model without latents cannot do at an evaluation."""
    config = settings.config
    names = list(strategies(config.evaluation.decoding))
    if settings.mode in (None, "resume_training"):
        names.append("nucleus")  # of the samples that a validation shows
    given = given_settings(config.sampling)
    typed = {name: value for name, value in given.items() if name in settings.explicit}
    check_decoding(names, typed, config.model.max_seq_len)
    if config.evaluation.gen_data:
        raise UserError("--gen_data samples from a run of train_text_diffusion.py: leave it out")
    if config.classes.class_id is not None and not config.prompts.class_conditional:
        raise UserError(
            f"--class_id {config.classes.class_id} needs a run with --class_conditional, and this run has none: leave "
            "it out"
        )


def set_learning_rate(settings: Settings[BaselineConfig]) -> None:
    """A pretrained model takes smaller steps than one from scratch, unless --learning_rate is given."""
    if settings.config.model.model is not None and settings.origins["learning_rate"] == "default":
        settings.set("learning_rate", ADAPTERS if settings.values.get("lora_rank") else FULL)
