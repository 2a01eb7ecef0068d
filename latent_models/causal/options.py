"""Flags of causal language models: the model, what it is conditioned on, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


@dataclass
class CausalModelOptions:
    """A pretrained causal language model, or a GPT-2 from scratch; see latent_models/causal/model."""

    model: str | None = flag(
        None,
        "pretrained causal language model to fine-tune, a local folder (python -m latent_models.pretrained "
        "smollm2-135m) or a hub id; unset: a small GPT-2 from scratch",
    )
    lora_rank: int = flag(
        0, "rank of the LoRA adapters that train in a frozen --model; 0: all weights train", at_least=0, needs="model"
    )
    lora_alpha: int = flag(
        16, "LoRA: the update is scaled by alpha / rank", at_least=1, needs="lora_rank", config_only=True
    )
    tokenizer: str = flag(
        "bpe",
        "of a model from scratch: word or bpe, trained on the corpus, or the folder of a tokenizer, such as that of a "
        "run of stage 0",
        needs=("model", None),
    )
    vocab_size: int = flag(
        4000, "largest vocabulary of a tokenizer that is trained", unit="tokens", at_least=1, needs=("model", None)
    )
    d_model: int = flag(192, "width of a model from scratch", unit="channels", at_least=1, needs=("model", None))
    layers: int = flag(
        4, "layers of a model from scratch", unit="layers", at_least=1, at_most=1000, needs=("model", None)
    )
    heads: int = flag(4, "attention heads of a model from scratch", unit="heads", at_least=1, needs=("model", None))
    lm_dropout: float = flag(
        0.1, "dropout of a model from scratch", at_least=0, at_most=1, needs=("model", None), config_only=True
    )
    max_seq_len: int = flag(64, "longest text; longer ones are truncated", unit="tokens", at_least=3)


@dataclass
class PromptOptions:
    """What precedes a text: its class or its source. The loss is that of the text alone."""

    class_conditional: bool = flag(False, "condition on the class label of the corpus: its name precedes the text")
    ignore_sources: bool = flag(False, "ignore the sources of the corpus and train on its texts unconditionally")
    max_source_len: int | None = flag(
        None,
        "longest source; longer ones are truncated; unset: the limit of the corpus",
        unit="tokens",
        at_least=1,
    )


@dataclass
class CausalSamplingOptions:
    """Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751."""

    top_p: float = flag(
        0.95,
        "nucleus: a token is drawn from the likeliest ones that hold this share of probability",
        above=0,
        at_most=1,
    )
    temperature: float = flag(1.0, "the logits are divided by it before a token is drawn", above=0)
