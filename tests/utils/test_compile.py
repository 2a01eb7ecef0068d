"""Kernels chosen by flag give the same numbers; if compilation fails, one line is printed and eager mode is used."""

from __future__ import annotations

import copy
import shutil
import sys

import pytest
import torch

from model import make_denoiser
from model.options import DenoiserOptions
from utils.compile import CPU_STEPS, compile_network, should_compile
from utils.kernels import set_kernels
from utils.options import KernelOptions

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def defaults_after():
    torch._dynamo.reset()  # a failure is remembered for all modules
    yield
    set_kernels(KernelOptions(), CPU)


def network():
    torch.manual_seed(0)
    net = make_denoiser(8, 6, DenoiserOptions(tx_dim=64, tx_depth=1, self_condition=True, disable_dropout=True))
    torch.nn.init.normal_(net.output_proj.weight)
    return net


def loss(net, rows: int = 4) -> torch.Tensor:
    z = torch.randn(rows, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x0_prev = net(z, torch.full((rows,), 0.3))
    return (net(z, torch.full((rows,), 0.3), None, None, x0_prev, torch.arange(rows) % 2 == 0) - z).square().mean()


def test_auto_compiles_on_cuda_and_on_a_cpu_long_trainings():
    assert [should_compile(flag, CPU) for flag in ("auto", "on", "off")] == [False, True, False]
    assert should_compile("auto", torch.device("cuda")) and not should_compile("off", torch.device("cuda"))
    with compiler_of(sys.executable):  # a program that exists
        assert [should_compile("auto", CPU, steps) for steps in (CPU_STEPS - 1, CPU_STEPS)] == [False, True]
        assert not should_compile("off", CPU, CPU_STEPS)
    with compiler_of("no-such-compiler"):
        assert not should_compile("auto", CPU, CPU_STEPS) and should_compile("on", CPU)


def test_plain_attention_gives_the_same_loss_and_gradients():
    found = []
    for attention in ("fused", "plain"):
        set_kernels(KernelOptions(attention=attention), CPU)
        assert torch.backends.cuda.flash_sdp_enabled() == (attention == "fused")
        net = network()
        value = loss(net)
        value.backward()
        found.append((value.detach(), [p.grad for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def compiler_of(path: str):
    """A context in which inductor compiles by this program, without its caches."""
    import torch._inductor.config

    return torch._inductor.config.patch({"cpp.cxx": (path,), "compile_threads": 1, "force_disable_caches": True})


def test_failed_compilation_warns_in_one_line_and_runs_uncompiled():
    """The name is not that of a C++ compiler."""
    net, lines = network(), []
    expected = loss(copy.deepcopy(net))
    compile_network(net, "on", CPU, lines.append)
    with compiler_of("no-such-compiler"):
        assert torch.equal(loss(net), expected) and torch.equal(loss(net), expected)
    assert len(lines) == 1 and "\n" not in lines[0] and "--compile off" in lines[0] and len(lines[0]) < 300
    assert torch._functorch.config.force_non_lazy_backward_lowering  # else the backward would be compiled later


# Compiles one kernel, that of the forward, and refuses the second, that of the backward.
REFUSES_BACKWARD = """#!/bin/sh
for file in "$@"; do
  case $file in *.main.cpp) mkdir "$0.seen" || exit 1;; esac
done
exec g++ "$@"
"""


class Gelu(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8))

    def forward(self, x):
        return torch.nn.functional.gelu(x * self.weight)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiler_error_in_the_backward_warns_in_one_line_and_runs_uncompiled(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(REFUSES_BACKWARD)
    compiler.chmod(0o755)
    net = Gelu()
    x, found, lines = torch.randn(3, 8), [], []
    with compiler_of(str(compiler)):
        for network in (net, compile_network(copy.deepcopy(net), "on", CPU, lines.append)):
            for _ in range(2):
                network.zero_grad()
                network(x).square().sum().backward()
            found.append([p.grad for p in network.parameters()])
    assert all(map(torch.equal, *found))
    (line,) = lines
    assert (tmp_path / "c++.seen").is_dir(), "the forward was compiled"
    assert "\n" not in line and "--compile off" in line and len(line) < 300 and "CppCompileError" in line


def test_cudnn_attention_is_never_chosen():
    torch.backends.cuda.enable_cudnn_sdp(True)
    for attention in ("fused", "plain"):
        set_kernels(KernelOptions(attention=attention), CPU)
        assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_program_chose_its_kernels_before_it_loads_a_run():
    set_kernels(KernelOptions(attention="plain"), CPU)
    set_kernels(KernelOptions(), CPU, unless_set=True)
    assert not torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_loss_and_gradients():
    net = network()
    other = compile_network(copy.deepcopy(net), "on", CPU)
    assert other.state_dict().keys() == net.state_dict().keys()
    for rows in (4, 2):  # two shapes, as training and its estimates of x0 have
        one, two = loss(net, rows), loss(other, rows)
        assert two.item() == pytest.approx(one.item(), rel=1e-5)
    one.backward()
    two.backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        if p.grad is not None:
            assert (q.grad - p.grad).abs().max() <= 1e-4 * p.grad.abs().max()
