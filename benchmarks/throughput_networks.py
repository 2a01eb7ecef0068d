"""The networks and the corpus of one size that the cases of benchmarks/throughput.py share, with random weights."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.throughput_sizes import PROJECTED, Size, Switches
from dataset_utils.batching import TokenTable
from dataset_utils.splits import Split
from dataset_utils.synthetic_stories import generate_splits
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.generation.generator import TokenGenerator, make_token_generator
from latent_models.generation.options import GenerationOptions
from latent_models.half_precision import HalfPrecisionCopy
from latent_models.language_models import LanguageModel
from latent_models.pretraining.options import PretrainingOptions
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

OUTPUT_STD = 0.02  # of weights that are 0 in a new network


def fill_zero_weights(network: nn.Module) -> None:
    """Give random numbers to matrices that are 0: a new denoiser predicts 0, whatever its other weights are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1 and not p.any():
                p.copy_(OUTPUT_STD * torch.randn(p.shape, generator=generator))


class NoCopy(HalfPrecisionCopy):
    """Autocast casts the weights of the frozen model at every step."""

    def of(self, model: Any, dtype: torch.dtype) -> Any:
        return model


class Networks:
    """Networks and a corpus of one size on one device, and the switches that are global to the process."""

    def __init__(
        self,
        size: Size,
        device: torch.device,
        folder: Path,
        freed_memory: str = "keep",
        *,
        in_every_case: bool = False,
        compile_flag: str = "auto",
    ) -> None:
        """folder: of the caches. freed_memory: that of this process, which chooses once.

        in_every_case: cases with another freed_memory do not exist, instead of running in another process.
        compile_flag: --compile of the programs; auto is that of the published number of steps, and of an evaluation.
        """
        self.size, self.device, self.dist, self.folder = size, device, DistContext(device=device), folder
        self.freed_memory, self.in_every_case = freed_memory, in_every_case
        self.bf16 = has_bf16(device)
        self.compiles_training = should_compile(compile_flag, device, min(PROJECTED.values()))
        self.compiles_sampling = should_compile(compile_flag, device)
        torch.manual_seed(0)
        self.model = random_language_model(size).to(device)
        self.half = self.model._half
        self.autoencoder_options = PerceiverOptions(
            num_encoder_latents=size.latents, dim_ae=size.dim, num_layers=size.ae_layers, l2_normalize_latents=True
        )
        self.space = CompressedSpace(self.model, self.new_autoencoder()).requires_grad_(False).eval()
        # a second language model decodes, whose texts end, so that the losses of training stay those of random weights
        self.decoding_model = deepcopy(self.model)
        end_texts(self.decoding_model.model, self.example_states(), size.tokens)
        self.sampling_space = CompressedSpace(self.decoding_model, self.space.autoencoder).requires_grad_(False).eval()
        self.data, self.mean_tokens = random_corpus(size, self.model.pad_id)
        self.denoiser = DenoiserOptions(
            tx_dim=size.tx_dim, tx_depth=size.tx_depth, self_condition=True, scale_shift=True,
            num_dense_connections=size.skips, disable_dropout=not size.dropout,
        )  # fmt: skip

    def available(self, switches: Switches, *, sampling: bool = False) -> Switches:
        """The switches without those that this machine does not support, or that make no difference here.

        sampling: of an evaluation.
        """
        cpu = self.device.type == "cpu"
        return replace(
            switches,
            bf16=switches.bf16 and self.bf16,
            bf16_copy=switches.bf16_copy and switches.bf16 and self.bf16,
            frozen_copy=switches.frozen_copy and switches.bf16 and self.bf16,
            own_cache=switches.own_cache and switches.dynamic,
            compile=switches.compile and (self.compiles_sampling if sampling else self.compiles_training),
            attention="fused" if switches.attention == "auto" and not cpu else switches.attention,
            dropout=switches.dropout if cpu and self.size.dropout else Switches.dropout,
            freed_memory=self.freed_memory if self.in_every_case or not cpu else switches.freed_memory,
        )

    def set_kernels(self, switches: Switches) -> None:
        """Apply the switches that are global to the process or to the shared language model."""
        options = KernelOptions(attention=switches.attention, dropout=switches.dropout, freed_memory=self.freed_memory)
        set_kernels(options, self.device)
        self.model.chunked_loss = switches.chunked
        self.model._half = self.half if switches.frozen_copy else NoCopy()
        in_float32 = switches.bf16 and not switches.bf16_copy
        precision = "fp32" if in_float32 else "run"
        self.decoding_model.token_generator = self.token_generator(precision, switches.dynamic, switches.own_cache)

    @cache  # noqa: B019 - it holds a copy of the language model, which the cases share
    def token_generator(self, precision: str, dynamic: bool, own_cache: bool) -> TokenGenerator:
        """precision: fp32, or run, that of the run, which in bf16 is by a copy of the language model."""
        options = GenerationOptions(generation_dtype=precision, whole_batches=not dynamic)
        generator = make_token_generator(options, self.decoding_model.model, self.decoding_model.name)
        if not own_cache:
            generate = generator._generate
            generator._generate = lambda *args: generate(*(*args[:-1], False))  # type: ignore[method-assign]
        return generator

    @torch.no_grad()
    def example_states(self) -> Tensor:
        """States (256, S, d_lm) that the language model decodes, of random latents."""
        latents = torch.randn(256, self.size.latents, self.size.dim, device=self.device)
        return self.space.autoencoder.decode(self.space.project(latents))

    def new_autoencoder(self) -> PerceiverAutoencoder:
        return PerceiverAutoencoder(self.size.width, self.autoencoder_options, self.size.tokens).to(self.device)

    @cache  # noqa: B019 - the networks live as long as the cases
    def sampling_network(self, compiled: bool, classes: int) -> DiffusionModel:
        """A denoiser for sampling. The cases share it, so that it is compiled once."""
        torch.manual_seed(1)
        options = replace(self.denoiser, class_conditional=classes > 0)
        model = DiffusionModel(self.sampling_space, options, self.size.tokens, classes).to(self.device).eval()
        if compiled:
            compile_network(model.denoiser, "on", self.device)
        return model


def random_language_model(size: Size) -> LanguageModel:
    """A BART with random weights that never ends a text."""
    stories = [story.text() for story in generate_splits({"train": 500})["train"]]
    tokenizer = train_tokenizer(stories, "word", size.vocabulary, size.tokens)
    # every id is a word, because empty texts would be sampled again
    tokenizer.add_tokens([f"w{number}" for number in range(len(tokenizer), size.vocabulary)])
    options = PretrainingOptions(d_model=size.width, layers=size.layers, heads=size.heads, max_seq_len=size.tokens)
    bart = small_bart(options, tokenizer)
    bart.resize_token_embeddings(size.vocabulary, mean_resizing=False)
    bart.final_logits_bias[0, tokenizer.eos_token_id] = -1e4
    return LanguageModel(bart, tokenizer, "random weights")


END_WEIGHT = 200.0  # of the end token: far above the logits of random weights


@torch.no_grad()
def end_texts(bart: Any, states: Tensor, tokens: int) -> None:
    """Set weights so that a text ends between about half of the longest length and all of it, as its states say.

    Random weights end every text at once or never, and then no text could leave a batch before the others. One channel
    of the decoder is reserved: it rises with the position, falls with a number read from the states, and is all that
    the logit of the end token sees. So lengths are the same for every implementation and precision, but for rounding.
    states: (B, S, d_lm), examples from which the spread of that number is measured.
    """
    config, decoder = bart.config, bart.model.decoder
    bart.final_logits_bias.zero_()
    channel, last, scale = config.d_model - 1, decoder.layers[-1], math.sqrt(2) * config.init_std
    for layer in decoder.layers:
        for linear in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
            linear.weight[channel] = 0
            linear.bias[channel] = 0
    words, positions = bart.model.shared.weight, decoder.embed_positions
    words[:, channel] = 0
    words[config.eos_token_id] = 0
    words[config.eos_token_id, channel] = END_WEIGHT
    steps = torch.arange(len(positions.weight) - positions.offset, device=words.device)
    positions.weight[positions.offset :, channel] = scale * (4 * steps / tokens - 3)  # 0 at three quarters
    positions.weight[positions.offset, channel] = -2 * END_WEIGHT  # the start token is the end token
    read = states.mean(1)[:, 0]
    value = last.encoder_attn.v_proj
    value.weight[0] = 0
    value.weight[0, 0] = 1 / read.std()
    value.bias[0] = -read.mean() / read.std()
    last.encoder_attn.out_proj.weight[channel, 0] = -0.5


def random_corpus(size: Size, pad_id: int) -> tuple[TokenSplit, float]:
    """Random texts of three quarters of the longest length up to all of it, and their mean length in tokens."""
    random = np.random.default_rng(0)
    lengths = random.integers(3 * size.tokens // 4, size.tokens + 1, size.texts).astype(np.int32)
    ids = random.integers(5, size.vocabulary, (size.texts, size.tokens)).astype(np.int32)
    table = TokenTable(ids, lengths, 0.0, size.tokens)
    split = Split([str(row) for row in range(size.texts)], labels=(ids[:, 0] % 4).tolist())
    return TokenSplit(split, table, pad_id), float(lengths.mean())
