"""Chunked cross-entropy has the values and gradients of plain cross-entropy, and needs less memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from latent_models import cross_entropy
from latent_models.cross_entropy import chunked_nll

ROOT = Path(__file__).resolve().parents[2]
N, D, V = 23, 8, 50


def inputs(weight_trains: bool, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((N, D), (V, D), (V,)))
    return (
        states.requires_grad_(),
        weight.requires_grad_(weight_trains),
        bias.requires_grad_(weight_trains),
        torch.randint(V, (N,), generator=generator),
        torch.rand(N, generator=generator),
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("weight_trains", [True, False])
def test_values_and_gradients_equal_unchunked_cross_entropy(monkeypatch, weight_trains, with_bias):
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 4 * V)  # chunks of four tokens, the last of three
    found = []
    for plain in (True, False):
        states, weight, bias, labels, share = inputs(weight_trains, torch.float64)
        bias = bias if with_bias else None
        nll = (
            F.cross_entropy(F.linear(states, weight, bias), labels, reduction="none")
            if plain
            else chunked_nll(states, weight, bias, labels)
        )
        (nll * share).sum().backward()
        found.append((nll.detach().double(), states.grad, weight.grad, None if bias is None else bias.grad))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)


def test_no_gradient_is_computed_without_grad_mode(monkeypatch):
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 4 * V)
    monkeypatch.setattr(cross_entropy, "_error", None)
    monkeypatch.setattr(cross_entropy, "_nll_and_error", None)
    states, weight, bias, labels, _ = inputs(False)
    with torch.no_grad():
        nll = chunked_nll(states, weight, bias, labels)
    torch.testing.assert_close(nll, F.cross_entropy(F.linear(states, weight, bias), labels, reduction="none"))


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
def test_one_softmax_gives_the_loss_and_its_gradient(scale):
    """Also where the probability of a label underflows, and where all words are equally likely."""
    logits = scale * torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(5000, (64,), generator=torch.Generator().manual_seed(1))
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="none")
    expected.sum().backward()
    nll, error = cross_entropy._nll_and_error(logits.clone(), labels)
    torch.testing.assert_close(nll.double(), expected.detach(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(error.double(), exact.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", ["bart", "mbart", "t5", "mt5"])
def test_every_family_has_the_same_loss_in_chunks(language_model, texts, monkeypatch, family, frozen, autocast):
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 3 * 300)
    model = language_model(family, frozen=frozen).eval()
    tokens = model.tokenize(texts, 40)
    ids, mask = tokens.input_ids, tokens.attention_mask.bool()
    found = []
    for chunked in (False, True):
        model.chunked_loss = chunked
        model.zero_grad()
        states = torch.randn(len(ids), 7, model.dim, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model.reconstruction_loss(states, None, ids, mask)
        losses.sum().backward()
        table = model.model.get_output_embeddings().weight.grad
        found.append((losses.detach(), states.grad, table))
    assert (found[0][2] is None) == frozen
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if autocast else {"atol": 1e-6, "rtol": 1e-5}
    for one, other in zip(*found, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, **tolerance)


MEMORY = """
import pathlib, sys, torch
from latent_models import cross_entropy
torch.set_num_threads(1)
cross_entropy.MAX_LOGITS = int(sys.argv[1])
states = torch.randn(1024, 32, requires_grad=True)
weight = torch.randn(50_000, 32)
def peak():  # of this program only; getrusage includes the process that started it
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
cross_entropy.chunked_nll(states, weight, None, torch.randint(50_000, (1024,))).sum().backward()
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_stays_below_that_of_all_logits():
    """1,024 tokens over 50,000 words: 205 MB of logits, and as much for their gradient."""
    used = {}
    for at_once in (2**22, 2**30):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(at_once)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        used[at_once] = int(done.stdout)
    print(f"peak memory beyond the start, in bytes: {used}")
    whole = 1024 * 50_000 * 4  # of the logits; without chunks their gradient exists beside them
    assert used[2**22] < whole and used[2**30] > 2 * whole
