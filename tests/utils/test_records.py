"""Tensors between devices: values copied to the CPU are complete, and no tensor is copied to its own device."""

from __future__ import annotations

import pytest
import torch

from utils.records import PINNED_FROM, Latents, to_device


def test_what_is_there_already_is_not_copied():
    x = torch.randn(3)
    assert to_device(x, "cpu") is x and to_device(x, torch.device("cpu")) is x


@pytest.mark.parametrize("size", [3, PINNED_FROM])
def test_values_and_dtypes_stay_and_devices_change(size):
    x = torch.arange(size, dtype=torch.int64)
    assert to_device(x, "meta").device.type == "meta" and to_device(x, "meta").dtype == x.dtype
    record = Latents(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)).to("meta")
    assert record.x0.device.type == record.mask.device.type == "meta" and record.mean is None


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("cuda", False), ("mps", True)])
def test_only_a_copy_to_a_gpu_of_cuda_is_not_waited_for(monkeypatch, device, waits):
    seen = []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **how: seen.append(how["non_blocking"]) or x)
    to_device(torch.zeros(2), device)
    assert seen == [not waits]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [3, 2**22])
def test_to_a_gpu_the_host_does_not_wait(size):
    x = torch.randn(size)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(x, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(to_device(there, "cpu"), x)
