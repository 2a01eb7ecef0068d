"""Sizes and switches of the cases of benchmarks/throughput.py, each those of a recipe.

    small   the networks of pipelines/quickstart.py: BART of 2 + 2 layers 128 wide, texts of 32 tokens; an autoencoder
            of 8 x 64 latents with 2 layers, their norm fixed; a denoiser of 4 blocks 192 wide with self-conditioning
            and EMA, no dropout, on cached latents; batches of 64 texts, samples in batches of 250 by --preset fast and
            by 50 DDPM steps
    paper   scripts/autoencoder/bart_base_roc.sh and scripts/diffusion/bart_latent_v-pred.sh: BART-base, texts of 64
            tokens; 32 x 64 latents, 3 layers, their norm fixed, batches of 256 texts; a denoiser of 12 blocks 768 wide
            with 3 long skips, self-conditioning, EMA and dropout .1, on cached latents, batches of 128 texts; samples
            in batches of 250 by --preset fast and by 250 DDPM steps

The autoencoder of no recipe reads cached states of the language model, since they need much disk. So its "all on" is
more than the programs do by default: it adds --cache_encoder_states float16. Its case "without cache" is the recipe as
it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from utils.options import KernelOptions

PARTS = ("denoiser", "autoencoder", "sampling", "guidance")
PROJECTED = {"denoiser": 250_000, "autoencoder": 50_000}  # steps of the published runs
NUM_LOSSES = 20  # number of first steps whose losses are compared


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
    ae_layers: int
    tx_dim: int
    tx_depth: int
    skips: int
    dropout: bool  # of the denoiser while it trains
    batch: int  # of the denoiser
    ae_batch: int
    texts: int  # of the corpus
    sampled: int  # texts in a sampling batch
    steps: tuple[int, int]  # of the sampler: --preset fast, DDPM
    guided: int = 128  # texts of the larger batch that guidance is measured at

    def with_batch(self, batch: int) -> Size:
        """The same networks with this batch size in every case."""
        return replace(
            self, batch=batch, ae_batch=batch, sampled=batch, guided=batch, texts=min(self.texts, 64 * batch)
        )


SIZES = {
    "small": Size(114, 128, 2, 4, 32, 8, 64, 2, 192, 4, 0, False, 64, 64, 2048, 250, (25, 50)),
    "paper": Size(50265, 768, 6, 12, 64, 32, 64, 3, 768, 12, 3, True, 128, 256, 8192, 250, (25, 250)),
}

_ATTENTION = next(f for f in fields(KernelOptions) if f.name == "attention")
ATTENTION: str = KernelOptions.attention  # the default
OTHER_ATTENTION = tuple(x for x in _ATTENTION.metadata["choices"] if x not in (ATTENTION, "plain"))


@dataclass(frozen=True)
class Switches:
    """The optimizations of speed that a case turns on; the defaults are those of "all on"."""

    cache: bool = True  # latents or encoder states are computed once
    bf16: bool = True
    attention: str = ATTENTION
    fused: bool = True  # optimizer and EMA
    chunked: bool = True  # cross-entropy
    compile: bool = True
    bf16_copy: bool = True  # of the language model while it decodes; without it, it decodes in float32
    dynamic: bool = True  # batches while decoding: finished texts leave them
    frozen_copy: bool = True  # of the frozen language model in half precision, while another network trains
    own_cache: bool = True  # of keys and values while decoding; without it, that of transformers
    dropout: str = KernelOptions.dropout  # how masks are drawn
    freed_memory: str = KernelOptions.freed_memory  # on a CPU; a process chooses once
    optimizer: str = "adamw"


OFF = Switches(
    cache=False, bf16=False, attention="plain", fused=False, chunked=False, compile=False, bf16_copy=False,
    dynamic=False, frozen_copy=False, own_cache=False, dropout="uniform", freed_memory="return",
)  # fmt: skip

# The cases beside "all on": what a case is called, and its values. Those of all parts, in the order of the table.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "without cache": {"cache": False},
    "without bf16": {"bf16": False, "bf16_copy": False},
    "without bf16 copy": {"bf16_copy": False},
    "without fused attention": {"attention": "plain"},
    **{f"with {choice} attention": {"attention": choice} for choice in OTHER_ATTENTION},
    "without fused optimizer": {"fused": False},
    "without chunked loss": {"chunked": False},
    "without compile": {"compile": False},
    "without dynamic batching": {"dynamic": False},
    "without own cache": {"own_cache": False},
    "without frozen copy": {"frozen_copy": False},
    "without fast dropout": {"dropout": "uniform"},
    "without freed memory": {"freed_memory": "return"},
    "muon": {"optimizer": "muon"},
    "everything off": vars(OFF),
}
_ATTENTION_VARIANTS = ("without fused attention", *(f"with {choice} attention" for choice in OTHER_ATTENTION))
# What each kind of case can switch.
_TRAINING = ("without cache", "without bf16", *_ATTENTION_VARIANTS, "without fused optimizer")
KINDS: Mapping[str, tuple[str, ...]] = {
    "denoiser": (
        *_TRAINING, "without fast dropout", "without freed memory", "without compile", "muon", "everything off",
    ),
    "autoencoder": (
        *_TRAINING, "without chunked loss", "without frozen copy", "without freed memory", "without compile",
        "everything off",
    ),
    "denoise": ("without bf16", *_ATTENTION_VARIANTS, "without freed memory", "without compile", "everything off"),
    "decode": (
        "without bf16", "without bf16 copy", *_ATTENTION_VARIANTS, "without dynamic batching", "without own cache",
        "without freed memory", "everything off",
    ),
    "end to end": ("everything off",),
}  # fmt: skip
# the switches that make a difference in a kind of case
_MATTERS: Mapping[str, tuple[str, ...]] = {
    "denoiser": ("cache", "bf16", "attention", "fused", "compile", "optimizer", "dropout", "freed_memory"),
    "autoencoder": ("cache", "bf16", "attention", "fused", "chunked", "compile", "frozen_copy", "freed_memory"),
    "denoise": ("bf16", "attention", "compile", "freed_memory"),
    "decode": ("bf16", "attention", "bf16_copy", "dynamic", "own_cache", "freed_memory"),
    "end to end": ("bf16", "attention", "compile", "bf16_copy", "dynamic", "own_cache", "freed_memory"),
}


def variants(kind: str, available: Callable[[Switches], Switches]) -> dict[str, Switches]:
    """name -> switches of the cases of a kind. available: removes what this machine does not support.

    A case that equals an earlier one on this machine is left out.
    """
    found: dict[str, Switches] = {}
    seen: set[tuple[Any, ...]] = set()
    for name in ("all on", *KINDS[kind]):
        switches = available(replace(Switches(), **VARIANTS.get(name, {})))
        key = tuple(getattr(switches, switch) for switch in _MATTERS[kind])
        if key not in seen:
            seen.add(key)
            found[name] = switches
    return found


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
    pid: int | None = None  # of the process that computes it; None: this one
    count_flops: Callable[[], float] | None = None  # None: throughput_machine.count_flops


@dataclass(frozen=True)
class Maker:
    """A case that is made when it is needed: its networks are allocated then."""

    part: str
    name: str
    make: Callable[[], Case]
    freed_memory: str | None = None  # what the case needs of its process; None: as the process has it

    def matches(self, texts: str) -> bool:
        """Whether --cases names it: texts separated by commas, of which one is part of the name of the case; the parts
        of a text with plus signs must all be in it."""
        full = f"{self.part}: {self.name}"
        return any(all(part.strip() in full for part in text.split("+")) for text in texts.split(","))
