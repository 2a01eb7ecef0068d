"""Compilation over whole runs: no network has a graph break, and batches have few shapes.

On a GPU each new batch size costs a compilation of 15 s or more, and a CUDA graph. Here the networks are traced into
one graph, or an error is raised, and run without being compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from model import make_denoiser
from model.options import DenoiserOptions, EncoderDenoiserOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.data.batch_sampler import TrainingSampler, ValidationSampler
from pipelines.sampling.sampler_call import SampleInputs
from pipelines.steps.diffusion import DiffusionStep
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.records import Condition, Latents
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]


class Numbers(LatentSpace):
    """A space whose latents are given."""

    variable_length, length, dim = False, 4, 8

    def encode(self, batch, generator=None):
        raise AssertionError("latents are given")

    decode = fingerprint = encode


class Source:
    """rows -> latents, like ConditionalLatents of pipelines/data/cached_latents."""

    device = torch.device("cpu")
    space = NormalizedSpace(Numbers(), LatentStatistics(8, 4))

    def __len__(self):
        return 1000

    def __call__(self, rows):
        return Latents(torch.zeros(len(rows), 4, 8), torch.ones(len(rows), 4, dtype=torch.bool)), None


class Shapes(nn.Module):
    """A network that records its kinds of calls: shape, gradients, self-conditioning."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, z, time, mask, condition, x0_self_cond, self_cond_mask=None):
        self.seen.add((z.shape, torch.is_grad_enabled(), x0_self_cond is None, self_cond_mask is None))
        return z


@pytest.mark.parametrize("prob", [0.5, 0.9, 0.3, 1.0])
@pytest.mark.parametrize("batch_sampler", [
    TrainingSampler(0, 128), TrainingSampler(0, 128, accumulate=2), TrainingSampler(0, 64, rank=1, world_size=2),
    TrainingSampler(0, 100, 1, 2, 3),
])  # fmt: skip
def test_training_steps_have_at_most_two_shapes_per_micro_batch(batch_sampler, prob):
    """The micro-batch, and its rows with self-conditioning."""
    network = Shapes()
    process = make_process(ProcessOptions(train_prob_self_cond=prob), SamplingOptions(), "latent")
    step = DiffusionStep(network, Source(), process, batch_sampler, 200, True)
    for number in range(200):
        for micro in batch_sampler.micro_batches:
            step(number, micro)
    assert len(network.seen) <= 1 + batch_sampler.accumulate


def test_validation_has_the_shapes_of_a_batch_and_of_the_last_one():
    network = Shapes()
    batch_sampler = ValidationSampler(48, 128)
    step = DiffusionStep(
        network, Source(), make_process(ProcessOptions(), SamplingOptions(), "latent"), batch_sampler, 200, True
    )
    for _ in range(3):
        for micro in batch_sampler.micro_batches:
            step(200, micro)
    assert sorted(shape[0] for shape, *_ in network.seen) == [16, 24, 32, 48]


@pytest.fixture
def traced(monkeypatch):
    """Batch sizes of the graphs that torch.compile would compile, in order."""
    torch._dynamo.reset()
    found: list[int] = []
    compile = torch.compile

    def backend(graph, inputs):
        found.append(next(len(x) for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 3))  # z comes first
        return graph.forward

    def trace(network, *, mode, dynamic):
        return compile(network, backend=backend, dynamic=dynamic, fullgraph=True)

    monkeypatch.setattr(torch, "compile", trace)
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize("variant", ["latent", "states", "encoder", "mlp"])
def test_no_tensor_of_a_graph_is_on_the_cpu(variant, tmp_path):
    """torch makes no CUDA graph of a function with a tensor on the CPU. The device is meta, which has no values."""
    from transformers import BertConfig

    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    BertConfig(**small, max_position_embeddings=48).save_pretrained(tmp_path)
    sources = 0 if variant == "encoder" else 16
    options = DenoiserOptions(
        tx_dim=64, tx_depth=1, self_condition=True, class_conditional=True, denoiser_variant=variant,
        scale_shift=variant != "encoder",
    )  # fmt: skip
    encoder = EncoderDenoiserOptions(encoder_config=str(tmp_path)) if variant == "encoder" else None
    network = make_denoiser(8, 6, options, 3, sources, encoder).to("meta")
    devices, graphs = set(), []

    def backend(graph, inputs):
        graphs.append(graph)
        for node in graph.graph.nodes:
            values = torch.utils._pytree.tree_leaves(node.meta.get("example_value"))
            devices.update(x.device.type for x in values if isinstance(x, torch.Tensor))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, dynamic=False, fullgraph=True)
    z, time, mask = torch.randn(4, 6, 8, device="meta"), torch.rand(4, device="meta"), torch.ones(4, 6) > 0
    source = torch.randn(4, 5, 16) if sources else None
    condition = Condition.of(torch.tensor([0, 1, 2, 0]), source, None if source is None else torch.ones(4, 5) > 0)
    for given, x0_self_cond, self_cond_mask in ((None, None, None), (condition.to("meta"), z, time > 0.5)):
        compiled(z, time, mask.to("meta"), given, x0_self_cond, self_cond_mask).sum().backward()
    torch._dynamo.reset()
    assert len(graphs) == 2 and devices == {"meta"}


WORDS = "--latent_space embeddings --embedding_dim 16 --vocab_size 200 --timesteps 20"
SPACES = {
    "latents": "--latent_model_path {chain}/ae",
    "latents, MLP": "--latent_model_path {chain}/ae --denoiser_variant mlp",
    "encoder states": "--enc_dec_model {chain}/lm",
    "first release": "--enc_dec_model {chain}/lm --denoiser_variant states",
    "embeddings": WORDS,
    "Hugging Face encoder": WORDS + " --padding masked --denoiser_variant encoder --encoder_config {bert}",
}


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_a_run_compiles_six_graphs_without_graph_breaks(programs, chain, tmp_path, traced, capsys, space):
    """Training and validation: the estimates for half a batch, and the batch. Guided sampling: the first step, and the
    others."""
    from transformers import BertConfig

    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    BertConfig(**small, max_position_embeddings=48).save_pretrained(tmp_path / "bert")
    flags = (
        "--compile on --self_condition --class_conditional --tx_depth 1 --train_batch_size 128 --num_train_steps 8 "
        "--save_and_sample_every 4 --num_samples 2 --log_every 4 --cls_free_guidance 2 --class_id prior"
    )
    where = SPACES[space].format(chain=chain, bert=tmp_path / "bert")
    assert programs.diffusion(where, tmp_path / "run", flags) == 0
    assert traced == [64, 128, 20, 40, 256, 256]
    assert "torch.compile failed" not in capsys.readouterr().err


def test_a_short_batch_is_not_compiled(chain, traced):
    """Short batches are the last of several, or a few texts to vary or to infill."""
    generator = TextDiffusionPipeline.from_pretrained(
        chain / "diff", device="cpu", compile="on", sampling_timesteps=3
    ).generator
    together = generator.batch_size
    texts = generator.candidates(
        together + 3, 1, 0, ["greedy"], lambda first, last: SampleInputs(mask=MASK[first:last])
    )
    assert traced == [together] * 2 and len(texts["greedy"]) == together + 3, "the first step and the others"
    assert generator.candidates(3, 1, 0, ["greedy"], lambda first, last: SampleInputs(mask=MASK[first:last]))
    assert traced == [together] * 2
    assert generator.sample(5, 1, ["greedy"]) and traced == [together] * 2, "five texts are no full batch"


MASK = torch.ones(100, 4, dtype=torch.bool)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_two_processes_compile_and_train_as_without_compilation(programs, chain, tmp_path):
    """DistributedDataParallel splits the graph where it sends gradients: 4 MB in several buckets here."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for compiles in ("on", "off"):
        flags = (
            f"{programs.data} --device cpu --mixed_precision no --no_wandb --lr_warmup_steps 2 --max_seq_len 40 "
            f"--tx_dim 128 --tx_depth 3 --self_condition --disable_dropout --num_train_steps 3 --train_batch_size 4 "
            f"--log_every 1 "
            f"--gradient_accumulation_steps 2 --latent_model_path {chain / 'ae'} --compile {compiles} --num_samples 2 "
            f"--sampling_timesteps 2 --decoding greedy --scorer {programs.scorer} --output_dir {tmp_path / compiles}"
        )
        argv = [*launch, str(ROOT / "train_text_diffusion.py"), *flags.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "torch.compile failed" not in done.stderr
    lines = [read_metrics(tmp_path / compiles) for compiles in ("on", "off")]
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        for key in ("loss", "grad_norm", "val_loss", "val_ema_loss"):
            assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-5), key
