"""The networks and the corpus of one size that the cases of benchmarks/throughput.py share, with random weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.throughput_sizes import Size, Switches
from dataset_utils.batching import TokenTable
from dataset_utils.splits import Split
from dataset_utils.synthetic_stories import generate_splits
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.generation.generator import TokenGenerator, make_token_generator
from latent_models.language_models import LanguageModel
from latent_models.options import GenerationOptions, PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.spaces.compressed import CompressedSpace
from latent_models.tokenizers.training import train_tokenizer
from model.options import DenoiserOptions
from pipelines.builders.models import DiffusionModel
from pipelines.data.tokens import TokenSplit
from utils.compile import compile_network, should_compile
from utils.distributed import DistContext, has_bf16
from utils.kernels import set_kernels
from utils.options import KernelOptions


class Networks:
    """Networks and a corpus of one size on one device, and the switches that are global to the process."""

    def __init__(self, size: Size, device: torch.device, folder: Path, freed_memory: str = "keep") -> None:
        """folder: of the caches. freed_memory: a process chooses once, so it is not one of the Switches."""
        self.size, self.device, self.dist, self.folder = size, device, DistContext(device=device), folder
        self.freed_memory = freed_memory
        self.bf16, self.compiles = has_bf16(device), should_compile("auto", device)
        torch.manual_seed(0)
        self.model = random_language_model(size).to(device)
        self.autoencoder_options = PerceiverOptions(
            num_encoder_latents=size.latents, dim_ae=size.dim, num_layers=size.ae_layers, l2_normalize_latents=True
        )
        self.space = CompressedSpace(self.model, self.new_autoencoder()).requires_grad_(False).eval()
        self.data, self.mean_tokens = random_corpus(size, self.model.pad_id)
        self.denoiser = DenoiserOptions(
            tx_dim=size.tx_dim, tx_depth=size.tx_depth, self_condition=True, scale_shift=True,
            num_dense_connections=size.skips, disable_dropout=not size.dropout,
        )  # fmt: skip

    def available(self, switches: Switches) -> Switches:
        """The switches without those that this machine does not support."""
        return replace(
            switches,
            bf16=switches.bf16 and self.bf16,
            bf16_copy=switches.bf16_copy and switches.bf16 and self.bf16,
            compile=switches.compile and self.compiles,
        )

    def set_kernels(self, switches: Switches) -> None:
        """Apply the switches that are global to the process or to the shared language model."""
        set_kernels(KernelOptions(attention=switches.attention, freed_memory=self.freed_memory), self.device)
        self.model.chunked_loss = switches.chunked
        self.model.token_generator = self.token_generator(switches.bf16_copy or not switches.bf16, switches.dynamic)

    @cache  # noqa: B019 - it holds a copy of the language model, which the cases share
    def token_generator(self, run_precision: bool, dynamic: bool) -> TokenGenerator:
        """run_precision: decode in the precision of the run, in bf16 by a copy; else in float32."""
        options = GenerationOptions(
            generation_dtype="run" if run_precision else "fp32", whole_batches=not dynamic
        )
        return make_token_generator(options, self.model.model, self.model.name)

    def new_autoencoder(self) -> PerceiverAutoencoder:
        return PerceiverAutoencoder(self.size.width, self.autoencoder_options, self.size.tokens).to(self.device)

    @cache  # noqa: B019 - the networks live as long as the cases
    def sampling_network(self, compiled: bool, classes: int) -> DiffusionModel:
        """A denoiser for sampling. The cases share it, so that it is compiled once."""
        torch.manual_seed(1)
        options = replace(self.denoiser, class_conditional=classes > 0)
        model = DiffusionModel(self.space, options, self.size.tokens, classes).to(self.device).eval()
        if compiled:
            compile_network(model.denoiser, "on", self.device)
        return model


def random_language_model(size: Size) -> LanguageModel:
    """A BART with random weights that never ends a text: all texts have full length, so that times compare."""
    stories = [story.text() for story in generate_splits({"train": 500})["train"]]
    tokenizer = train_tokenizer(stories, "word", size.vocabulary, size.tokens)
    # every id is a word, because empty texts would be sampled again
    tokenizer.add_tokens([f"w{number}" for number in range(len(tokenizer), size.vocabulary)])
    options = PretrainingOptions(d_model=size.width, layers=size.layers, heads=size.heads, max_seq_len=size.tokens)
    bart = small_bart(options, tokenizer)
    bart.resize_token_embeddings(size.vocabulary, mean_resizing=False)
    bart.final_logits_bias[0, tokenizer.eos_token_id] = -1e4
    return LanguageModel(bart, tokenizer, "random weights")


def random_corpus(size: Size, pad_id: int) -> tuple[TokenSplit, float]:
    """Random texts of three quarters of the longest length up to all of it, and their mean length in tokens."""
    random = np.random.default_rng(0)
    lengths = random.integers(3 * size.tokens // 4, size.tokens + 1, size.texts).astype(np.int32)
    ids = random.integers(5, size.vocabulary, (size.texts, size.tokens)).astype(np.int32)
    table = TokenTable(ids, lengths, 0.0, size.tokens)
    split = Split([str(row) for row in range(size.texts)], labels=(ids[:, 0] % 4).tolist())
    return TokenSplit(split, table, pad_id), float(lengths.mean())
