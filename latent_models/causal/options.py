"""Flags of causal language models: the model, what it is conditioned on, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from latent_models.options import BaselineModelOptions
from utils.cli.flags import flag

ENCODINGS = ("sentence", "compressed", "states")  # spaces whose latents a language model decodes


@dataclass
class CausalModelOptions(BaselineModelOptions):
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


@dataclass
class PromptOptions:
    """What precedes a text, or what an encoder reads: its class or its source. The loss is that of the text alone."""

    class_conditional: bool = flag(
        False, "condition on the class label of the corpus: its name precedes the source, or the text without one"
    )
    max_source_len: int | None = flag(
        None,
        "longest source; longer ones are truncated; unset: the limit of the corpus",
        unit="tokens",
        at_least=1,
    )


@dataclass
class CausalPromptOptions(PromptOptions):
    ignore_sources: bool = flag(False, "ignore the sources of the corpus and train on its texts unconditionally")


@dataclass
class TextDecoderOptions:
    """A language model that decodes latents; see latent_models/causal/prefix_decoder and memory_decoder."""

    decoder_model: str | None = flag(
        None,
        "language model that decodes the latents, causal (GPT-2, SmolLM2, Llama, Qwen) or an encoder-decoder (BART, "
        "T5, mT5, mBART): a local folder (python -m latent_models.pretrained smollm2-135m) or a hub id",
        may_change="both",
    )
    decoder_mode: str = flag(
        "lora",
        "what trains beside the network that makes vectors of latents; freeze: nothing, lora: LoRA adapters in "
        "--decoder_model, ft: all its weights; of an encoder-decoder, in its decoder",
        choices=("freeze", "lora", "ft"),
    )
    lora_rank: int = flag(16, "rank of the LoRA adapters", at_least=1, needs=("decoder_mode", "lora"))
    lora_alpha: int = flag(
        16, "LoRA: the update is scaled by alpha / rank", at_least=1, needs=("decoder_mode", "lora"), config_only=True
    )
    num_prefix_tokens: int | None = flag(
        None,
        "prefix vectors of each latent, or vectors that an encoder-decoder attends to; unset: 4 where a text has at "
        "most 8 latents, else 1",
        unit="vectors",
        at_least=1,
        at_most=1000,
    )
    max_latent_noise: float = flag(
        0.6,
        "largest sigma of the noise of the latents on which the decoder trains; each text's sigma is uniform between 0 "
        "and this, and the decoder reads it",
        at_least=0,
        at_most=1,
    )
    source_prompt: bool = flag(
        False,
        "of a corpus of pairs, the decoder also reads the source, before the text; what is beyond --max_seq_len tokens "
        "is cut off; with a causal --decoder_model",
    )
    source_dropout: float = flag(
        0.0,
        "share of the texts whose source the decoder does not read in training, so that it learns to read their "
        "latents",
        at_least=0,
        at_most=1,
        needs="source_prompt",
        config_only=True,
    )
    latent_dropout: float = flag(
        0.05,
        "share of the texts whose latents are pure noise, so that the decoder learns the language without them",
        at_least=0,
        at_most=1,
    )
    token_dropout: float = flag(
        0.0,
        "share of the decoder's input tokens that a learned vector (of an encoder-decoder: its mask token, or unknown "
        "word) replaces in training, so that it reads its latents",
        at_least=0,
        at_most=1,
    )


@dataclass
class DecodedLatentOptions:
    """The latents that a language model learns to decode."""

    latent_space: str | None = flag(
        None,
        "sentence: frozen embeddings of --encoder_model (the default with it); compressed: latents of "
        "--latent_model_path (the default with it); states: states of the encoder of --enc_dec_model",
        choices=ENCODINGS,
    )
    latent_model_path: str | None = flag(None, "run folder of a trained autoencoder, whose latents are decoded")
    latent_cache_dir: str | None = flag(
        None, "folder of encoded corpora; unset: encoded/ in --cache_dir", may_change="both"
    )


@dataclass
class DecoderGenerationOptions:
    generation_dtype: str = flag(
        "run",
        "precision of the language model while it generates; run: that of --mixed_precision; bf16: a bfloat16 copy of "
        "the model",
        choices=("run", "fp32", "bf16"),
    )
