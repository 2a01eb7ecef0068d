"""The cases of benchmarks/throughput.py: the real training loops and samplers, in two sizes, with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dataset_utils.batching import TokenTable
from dataset_utils.splits import Split
from dataset_utils.synthetic_stories import generate_splits
from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.language_models import LanguageModel
from latent_models.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.tokenizers.training import train_tokenizer
from model.options import DenoiserOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.builders.models import DiffusionModel
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.cached_latents import ConditionalLatents, EncodedSplit, encode_or_load
from pipelines.data.tokens import TokenSplit
from pipelines.sampling.generator import TextGenerator
from pipelines.steps.autoencoder import AutoencoderStep
from pipelines.steps.diffusion import DiffusionStep
from utils.compile import compile_network, set_kernels, should_compile
from utils.distributed import DistContext, autocast, has_bf16
from utils.ema import EMA
from utils.hooks import StepResult
from utils.loop import train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import KernelOptions, LoopOptions, OptimizerOptions
from utils.records import Condition
from utils.state import State


@dataclass(frozen=True)
class Size:
    """Sizes of the three networks and of their batches."""

    vocabulary: int
    width: int  # of the language model
    layers: int
    heads: int
    tokens: int  # longest text
    latents: int
    dim: int
    tx_dim: int
    tx_depth: int
    skips: int
    batch: int  # of the denoiser
    ae_batch: int
    texts: int  # of the corpus
    sampled: int  # texts in a sampling batch
    steps: tuple[int, int]  # of the sampler: few, many
    guided: int = 128  # texts of the larger batch that guidance is measured at

    def with_batch(self, batch: int) -> Size:
        """The same networks with this batch size in every case."""
        return replace(
            self, batch=batch, ae_batch=batch, sampled=batch, guided=batch, texts=min(self.texts, 64 * batch)
        )


SIZES = {
    "small": Size(1000, 128, 2, 4, 40, 8, 64, 128, 4, 1, 32, 32, 1024, 32, (10, 50)),
    # BART-base with random weights, 32 latents of 64 channels, a denoiser of 12 blocks 768 wide
    "paper": Size(50265, 768, 6, 12, 64, 32, 64, 768, 12, 3, 128, 256, 8192, 250, (25, 250)),
}


@dataclass(frozen=True)
class Switches:
    """The optimizations of speed that a case turns on."""

    cache: bool = True  # latents or encoder states are computed once
    bf16: bool = True
    attention: bool = True
    fused: bool = True  # optimizer and EMA
    chunked: bool = True  # cross-entropy
    compile: bool = True
    optimizer: str = "adamw"


OFF = Switches(cache=False, bf16=False, attention=False, fused=False, chunked=False, compile=False)


@dataclass
class Case:
    """A computation to time: run(k) runs k steps."""

    part: str  # denoiser, autoencoder, sampling, guidance
    name: str
    run: Callable[[int], float | None]  # number of steps -> None
    texts: int  # of one step
    tokens: float = 0.0  # of one step
    switches: Switches = field(default_factory=Switches)
    losses: list[float] = field(default_factory=list)  # of the first steps
    parameters: int = 0  # trainable
    bytes_read: float = 0.0  # weights read in one step of sampling: once for each network call or token
    flops: float | None = None  # of the matrix products in one step; None for a compiled network
    bytes_held: int = 0  # GPU memory of the tensors of this case


Maker = Callable[[], Case]


class Bench:
    """Networks and a corpus of one size on one device; makes the cases."""

    def __init__(self, size: Size, device: torch.device, cache: Path, freed_memory: str = "keep") -> None:
        self.size, self.device, self.dist, self.folder = size, device, DistContext(device=device), cache
        self.freed_memory = freed_memory  # set once for the process, so not one of the Switches
        self.bf16, self.compiles = has_bf16(device), should_compile("auto", device)
        torch.manual_seed(0)
        stories = [story.text() for story in generate_splits({"train": 500})["train"]]
        tokenizer = train_tokenizer(stories, "word", size.vocabulary, size.tokens)
        # every id is a word, because empty texts would be sampled again
        tokenizer.add_tokens([f"w{number}" for number in range(len(tokenizer), size.vocabulary)])
        options = PretrainingOptions(d_model=size.width, layers=size.layers, heads=size.heads, max_seq_len=size.tokens)
        bart = small_bart(options, tokenizer)
        bart.resize_token_embeddings(size.vocabulary, mean_resizing=False)
        bart.final_logits_bias[
            0, tokenizer.eos_token_id
        ] = -1e4  # no end token: all texts have full length, so times compare
        self.model = LanguageModel(bart, tokenizer, "random weights").to(device)
        ae = PerceiverOptions(num_encoder_latents=size.latents, dim_ae=size.dim, num_layers=2)
        self.new_autoencoder = lambda: PerceiverAutoencoder(size.width, ae, size.tokens).to(device)
        self.space = CompressedSpace(self.model, self.new_autoencoder()).requires_grad_(False).eval()
        random = np.random.default_rng(0)
        lengths = random.integers(3 * size.tokens // 4, size.tokens + 1, size.texts).astype(np.int32)
        ids = random.integers(5, size.vocabulary, (size.texts, size.tokens)).astype(np.int32)
        table = TokenTable(ids, lengths, 0.0, size.tokens)
        split = Split([str(row) for row in range(size.texts)], labels=(ids[:, 0] % 4).tolist())
        self.data = TokenSplit(split, table, self.model.pad_id)
        self.mean_tokens = float(lengths.mean())
        # the network of the paper; dropout 0, so that losses compare
        self.denoiser = DenoiserOptions(
            tx_dim=size.tx_dim, tx_depth=size.tx_depth, self_condition=True, scale_shift=True,
            num_dense_connections=size.skips, disable_dropout=True,
        )  # fmt: skip

    def available(self, switches: Switches) -> Switches:
        """The switches without those that this machine does not support."""
        return replace(switches, bf16=switches.bf16 and self.bf16, compile=switches.compile and self.compiles)

    def cases(self, parts: list[str]) -> list[Maker]:
        """Functions that make the cases; networks are allocated when they are called."""
        on = Switches()
        dropped = {f"without {name}": Switches(**{**vars(on), key: False}) for key, name in SWITCH_LABELS.items()}
        denoiser = {"all on": on, **dropped, "muon": replace(on, optimizer="muon"), "everything off": OFF}
        denoiser.pop("without chunked loss")
        makers: list[Maker] = []
        for part, make, table in (
            ("denoiser", self.denoiser_training, denoiser),
            ("autoencoder", self.autoencoder_training, {"all on": on, **dropped, "everything off": OFF}),
        ):
            seen: set[Switches] = set()
            for name, switches in table.items() if part in parts else ():
                switches = self.available(switches)
                if switches not in seen:  # equal to another case where this machine lacks the optimization
                    seen.add(switches)
                    makers.append(partial(make, name, switches))
        if "sampling" in parts:
            makers += self.sampling()
        if "guidance" in parts:
            makers += self.guidance()
        return makers

    # ---- training ------------------------------------------------------------------------------------------------

    def _training(self, case: Case, modules: nn.Module, step: Any, batch: int, ema: bool) -> Case:
        options = OptimizerOptions(
            optimizer=case.switches.optimizer, no_fused_optimizer=not case.switches.fused, lr_warmup_steps=10
        )
        optimizer = make_optimizer(modules, options)
        schedule = make_lr_schedule(optimizer, options, 10**6)
        averages = EMA(modules, foreach=case.switches.fused) if ema else None
        state = State(modules, optimizer, schedule, averages, dist=self.dist)
        case.parameters = sum(p.numel() for p in state.parameters())
        precision = autocast(self.device, "bf16" if case.switches.bf16 else "no")

        def record_loss(state: State, report: StepResult) -> None:
            if len(case.losses) < NUM_LOSSES:
                case.losses.append(float(report.loss))

        def run(k: int) -> None:
            self.set_kernels(case.switches)
            loop = LoopOptions(num_train_steps=state.step + k, log_every=10**9, train_batch_size=batch)
            train(state, step, [record_loss], loop, clip_grad_norm=1.0, autocast=precision, global_batch=batch)

        case.run = run
        return case

    def set_kernels(self, switches: Switches) -> None:
        """Apply the switches that are global to the process."""
        attention = "fused" if switches.attention else "plain"
        set_kernels(KernelOptions(attention=attention, freed_memory=self.freed_memory), self.device)
        self.model.chunked_loss = switches.chunked

    def denoiser_training(self, name: str, switches: Switches) -> Case:
        size = self.size
        torch.manual_seed(1)
        model = DiffusionModel(self.space, self.denoiser, size.tokens, 0).to(self.device)
        if switches.compile:
            compile_network(model.denoiser, "on", self.device)
        where = self.folder if switches.cache else None
        texts = encode_or_load(self.space, self.data, where, "train", "latents", replace(self.dist, rank=1), "auto")
        source = ConditionalLatents(model.normalize(self.space), texts)
        process = make_process(ProcessOptions(objective="pred_v"), SamplingOptions(), "latent")
        step = DiffusionStep(model.denoiser, source, process, TrainingSampler(0, size.batch), 10**6, True)
        case = Case("denoiser", name, lambda k: None, size.batch, size.batch * self.mean_tokens, switches)
        return self._training(case, model, step, size.batch, True)

    def autoencoder_training(self, name: str, switches: Switches) -> Case:
        size = self.size
        torch.manual_seed(1)
        space = CompressedSpace(self.model, self.new_autoencoder())
        if switches.compile:
            for network in (space.autoencoder.encoder, space.autoencoder.decoder):
                compile_network(network, "on", self.device, part=True)
        states: EncodedSplit | None = None
        if switches.cache:
            inner, dist = EncoderStatesSpace(self.model, size.tokens), replace(self.dist, rank=1)
            states = encode_or_load(inner, self.data, self.folder, "train", "states", dist, "auto", "float16")
        pad_to = size.tokens if switches.compile else None
        batch_sampler = TrainingSampler(0, size.ae_batch)
        step = AutoencoderStep(space, self.data, batch_sampler, self.device, pad_to=pad_to, states=states)
        case = Case("autoencoder", name, lambda k: None, size.ae_batch, size.ae_batch * self.mean_tokens, switches)
        return self._training(case, space, step, size.ae_batch, False)

    # ---- sampling ------------------------------------------------------------------------------------------------

    @cache  # noqa: B019 - the Bench lives as long as its cases
    def network(self, compiled: bool, classes: int) -> DiffusionModel:
        """A denoiser for sampling. The cases share it, so that it is compiled once."""
        torch.manual_seed(1)
        options = replace(self.denoiser, class_conditional=classes > 0)
        model = DiffusionModel(self.space, options, self.size.tokens, classes).to(self.device).eval()
        if compiled:
            compile_network(model.denoiser, "on", self.device)
        return model

    def generator(self, switches: Switches, steps: int, classes: int = 0, guidance: float = 1.0) -> TextGenerator:
        model = self.network(switches.compile, classes)
        process = make_process(
            ProcessOptions(objective="pred_v"), SamplingOptions(sampler="dpmpp", sampling_timesteps=steps), "latent"
        )
        precision = autocast(self.device, "bf16" if switches.bf16 else "no")
        return TextGenerator(
            model.normalize(self.space), model.denoiser, process, steps=steps, batch_size=self.size.sampled,
            device=self.device, autocast=precision, max_length=self.size.tokens, guidance=guidance,
        )  # fmt: skip

    def sampling(self) -> list[Maker]:
        few, many = self.size.steps
        table = {
            f"{few} steps": (Switches(), few),
            f"{many} steps": (Switches(), many),
            f"{few} steps without bf16": (replace(Switches(), bf16=False), few),
            f"{few} steps without compile": (replace(Switches(), compile=False), few),
            f"{few} steps, everything off": (OFF, few),
        }
        found: list[Maker] = []
        seen: set[tuple[bool | int, ...]] = set()
        for name, (switches, steps) in table.items():
            switches = self.available(switches)
            if (switches.bf16, switches.compile, switches.attention, steps) not in seen:
                seen.add((switches.bf16, switches.compile, switches.attention, steps))
                found.append(partial(self.denoising, f"denoise, {name}", switches, steps))
        for strategy in ("greedy", "beam", "nucleus"):
            for off, switches in ((False, self.available(Switches())), (True, OFF)):
                name = f"decode, {strategy}" + (", everything off" if off else "")
                found.append(partial(self.decoding, name, switches, strategy))
        for off, switches in ((False, self.available(Switches())), (True, OFF)):
            name = f"end to end, {few} steps, greedy" + (", everything off" if off else "")
            found.append(partial(self.end_to_end, name, switches))
        return found

    def denoising(self, name: str, switches: Switches, steps: int) -> Case:
        generator = self.generator(switches, steps)

        def run(k: int) -> None:
            self.set_kernels(switches)
            for b in range(k):
                generator.sample_latents(0, b)

        read = self._weights(generator.denoiser, switches) * steps
        return Case("sampling", name, run, self.size.sampled, switches=switches, bytes_read=read)

    def decoding(self, name: str, switches: Switches, strategy: str) -> Case:
        generator = self.generator(replace(switches, compile=False), 1)
        clean = generator.sample_latents(0, 0)

        def run(k: int) -> None:
            self.set_kernels(switches)
            for b in range(k):
                generator.decode(clean, strategy, b)

        read = self._weights(self.model.model.get_decoder(), switches) * self.size.tokens
        switches = replace(switches, compile=False)  # the decoder of the language model is not compiled
        return Case("sampling", name, run, self.size.sampled, switches=switches, bytes_read=read)

    def end_to_end(self, name: str, switches: Switches) -> Case:
        few = self.size.steps[0]
        generator = self.generator(switches, few)

        def run(k: int) -> None:
            self.set_kernels(switches)
            generator.sample(k * self.size.sampled, 0, ("greedy",), quiet=True)

        read = self._weights(generator.denoiser, switches) * few
        read += self._weights(self.model.model.get_decoder(), switches) * self.size.tokens
        return Case("sampling", name, run, self.size.sampled, switches=switches, bytes_read=read)

    @staticmethod
    def _weights(network: nn.Module, switches: Switches) -> float:
        """Bytes of the weights of a network."""
        return (2.0 if switches.bf16 else 4.0) * sum(p.numel() for p in network.parameters())

    def guidance(self) -> list[Maker]:
        return [
            partial(self.guided, name, batch)
            for batch in dict.fromkeys((1, self.size.guided))
            for name in ("guided", "two calls", "unguided")
        ]

    def guided(self, name: str, batch: int) -> Case:
        """Network calls of one sampling step: guided, unguided, or two separate calls (conditional, unconditional)."""
        switches = self.available(Switches())
        condition = Condition.of(class_id=torch.arange(batch) % 4).to(self.device)
        z = torch.randn(batch, self.size.latents, self.size.dim, device=self.device)
        t = torch.full((1,), 0.5, device=self.device)  # as samplers pass it
        unguided, guided = self.generator(switches, 1, 4), self.generator(switches, 1, 4, guidance=2.0)
        denoisers = {
            "guided": [guided.make_denoise_fn(condition, None)],
            "two calls": [unguided.make_denoise_fn(condition, None), unguided.make_denoise_fn(condition.null(), None)],
            "unguided": [unguided.make_denoise_fn(condition, None)],
        }[name]

        def run(k: int) -> None:
            self.set_kernels(switches)
            with torch.no_grad():
                for _ in range(k):
                    for denoise in denoisers:
                        denoise(z, t, z)

        return Case("guidance", f"{name}, batch {batch}", run, batch, switches=switches)


NUM_LOSSES = 20  # number of first steps whose losses are compared
SWITCH_LABELS = {
    "cache": "cache",
    "bf16": "bf16",
    "attention": "fused attention",
    "fused": "fused optimizer",
    "chunked": "chunked loss",
    "compile": "compile",
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def products_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations per second of a large matrix product: the peak of this device."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 * _rate(lambda: a @ a, device, seconds)


def bytes_per_second(device: torch.device, seconds: float = 0.5) -> float:
    """Memory bandwidth: bytes that a copy of a large tensor reads and writes per second."""
    a = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    b = torch.zeros_like(a)
    return 8 * a.numel() * _rate(lambda: a.copy_(b), device, seconds)


def _rate(fn: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Calls of fn per second."""
    for _ in range(3):
        fn()
    synchronize(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        fn()
        synchronize(device)
        count += 1
    return count / (time.perf_counter() - began)


def count_flops(case: Case) -> float:
    """Floating-point operations of the matrix products of one step, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        case.run(1)
    return float(counter.get_total_flops())
