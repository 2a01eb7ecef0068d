"""What a compiler meets over whole runs: no break in a network's graph, and few shapes.

A GPU compiles for a quarter of a minute or more wherever a network meets batches of another size, and then has a CUDA
graph for it. Here networks are traced as for that, into one graph or an error, and go on without being compiled.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.normalisation import LatentStatistics, Normalised
from latent_models.spaces import LatentSpace
from pipelines.building.process import make_process
from pipelines.inputs.batch_plan import BatchPlan, HeldOutPlan
from pipelines.training.diffusion_step import DiffusionStep
from utils.records import Latents


class Numbers(LatentSpace):
    """Latents that need no text."""

    masked, length, dim = False, 4, 8

    def encode(self, batch, generator=None):
        raise AssertionError("latents are there already")

    decode = fingerprint = encode


class Source:
    """rows -> latents, as pipelines/inputs/latents.LatentSource."""

    device = torch.device("cpu")
    space = Normalised(Numbers(), LatentStatistics(8, 4))

    def __len__(self):
        return 1000

    def __call__(self, rows):
        return Latents(torch.zeros(len(rows), 4, 8), torch.ones(len(rows), 4, dtype=torch.bool)), None


class Shapes(nn.Module):
    """A network that counts the batches it meets: by size, by whether gradients are wanted, by what comes with them."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, z, time, mask, condition, x0_prev, has_prev=None):
        self.seen.add((z.shape, torch.is_grad_enabled(), x0_prev is None, has_prev is None))
        return z


@pytest.mark.parametrize("prob", [0.5, 0.9, 0.3, 1.0])
@pytest.mark.parametrize("plan", [
    BatchPlan(0, 128), BatchPlan(0, 128, accumulate=2), BatchPlan(0, 64, rank=1, world=2), BatchPlan(0, 100, 1, 2, 3),
])  # fmt: skip
def test_two_hundred_steps_meet_two_shapes(plan, prob):
    """The batch, and the share of it that is shown an estimate; of each micro-batch."""
    network = Shapes()
    process = make_process(ProcessOptions(train_prob_self_cond=prob), SamplingOptions(), "latent")
    step = DiffusionStep(network, Source(), process, plan, 200, True)
    for number in range(200):
        for micro in plan.pieces:
            step(number, micro)
    assert len(network.seen) <= 1 + plan.accumulate


def test_validation_meets_the_shapes_of_a_batch_and_of_what_is_left():
    network = Shapes()
    plan = HeldOutPlan.of(BatchPlan(0, 48), 128, 1000)
    step = DiffusionStep(
        network, Source(), make_process(ProcessOptions(), SamplingOptions(), "latent"), plan, 200, True
    )
    for _ in range(3):
        for micro in plan.pieces:
            step(200, micro)
    assert sorted(shape[0] for shape, *_ in network.seen) == [16, 24, 32, 48]


@pytest.fixture
def traced(monkeypatch):
    """The batches of each graph that a compiler would have made, in order."""
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


WORDS = "--latent_space embeddings --embedding_dim 16 --vocab_size 200 --timesteps 20"
SPACES = {
    "latents": "--latent_model_path {chain}/ae",
    "encoder states": "--enc_dec_model {chain}/lm",
    "first release": "--enc_dec_model {chain}/lm --denoiser_variant states",
    "embeddings": WORDS,
    "Hugging Face encoder": WORDS + " --padding masked --denoiser_variant encoder --encoder_config {bert}",
}


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_a_run_compiles_six_graphs_without_a_break(programs, chain, tmp_path, traced, capsys, space):
    """Of training and of validation: the estimates of half a batch, and the batch; of guided sampling, the first step
    and the others."""
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
