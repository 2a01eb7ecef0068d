"""Checkpoints: atomic writes, detection of damage, tied weights, exact floats."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import torch
from torch import nn

from utils import checkpoints
from utils.checkpoints import fingerprint, load, load_best, pack_optimizer, save, save_best, unpack_optimizer
from utils.errors import UserError
from utils.optim import make_optimizer
from utils.options import OptimizerOptions


def content(value: float) -> dict:
    return {"model": {"w": torch.full((3, 2), value), "n": torch.tensor(7)}, "ema": {"w": torch.zeros(1)}}


def steps(folder) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_tensors_and_metadata_round_trip_bit_for_bit(tmp_path):
    tensors = {
        "model": {
            "half": torch.randn(3).half(),
            "bf16": torch.randn(3).bfloat16(),
            "double": torch.randn(2, 2).double(),
            "scalar": torch.tensor(1),
            "empty": torch.zeros(0, 3),
            "view": torch.randn(4, 6).T[1:3],
            "row": torch.randn(1000, 2)[5],
            "flags": torch.tensor([True, False]),
        }
    }
    metadata = {"step": 3, "loss": 0.1 + 0.2, "nested": {"lr": [math.pi, None]}}
    path = save(tmp_path, tensors, metadata)
    found = load(tmp_path)
    assert found.path == path and found.metadata == metadata and found.step == 3
    for name, x in tensors["model"].items():
        assert torch.equal(found.tensors["model"][name], x) and found.tensors["model"][name].dtype == x.dtype
    assert path.joinpath("model.safetensors").stat().st_size < 2000, "a view is saved without the rest of its storage"
    assert not any(p.suffix in (".pt", ".pkl", ".bin") for p in path.iterdir())


def test_rotation_keeps_the_newest(tmp_path):
    for step in (5, 10, 15, 100):
        save(tmp_path, content(step), {"step": step}, keep=2)
    assert steps(tmp_path) == ["step_00000015", "step_00000100"]
    assert load(tmp_path).tensors["model"]["w"][0, 0] == 100


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no state", "bad state", "empty state", "other state"])
def test_a_damaged_newest_checkpoint_falls_back_with_one_line(tmp_path, damage, capsys):
    save(tmp_path, content(1), {"step": 1})
    newest = save(tmp_path, content(2), {"step": 2})
    file, state = newest / "model.safetensors", newest / "state.json"
    data = file.read_bytes()
    damages = {
        "flip": lambda: file.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
        "cut": lambda: file.write_bytes(data[: len(data) // 2]),
        "missing": file.unlink,
        "no state": state.unlink,
        "bad state": lambda: state.write_text(state.read_text()[:20]),
        "empty state": lambda: state.write_text(""),
        "other state": lambda: state.write_text("[]"),
    }
    damages[damage]()
    assert load(tmp_path).step == 1
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1 and "step_00000002" in err


def test_no_checkpoint_raises_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load(tmp_path)
    save(tmp_path, content(1), {"step": 1}).joinpath("state.json").unlink()
    with pytest.raises(UserError, match="can be read"):
        load(tmp_path)
    with pytest.raises(UserError, match="no best"):
        load_best(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_killed_at_any_point_leaves_a_valid_checkpoint(tmp_path, monkeypatch, call):
    """Killed at the 1st, 2nd, 3rd ... call of fsync or rename, over an older step and over the same step."""
    real, survived = getattr(os, call), 0
    for dies_at in range(12):
        for step in (1, 2):
            folder = tmp_path / f"{call}{dies_at}{step}"
            save(folder, content(1), {"step": 1})
            left = [dies_at]

            def dying(*args, _left=left, **kwargs):
                _left[0] -= 1
                if _left[0] < 0:
                    raise OSError(28, "No space left on device")
                return real(*args, **kwargs)

            monkeypatch.setattr(os, call, dying)
            try:
                save(folder, content(2), {"step": step})
                expected = 2.0
                survived += 1
            except (OSError, UserError):
                expected = None
            monkeypatch.setattr(os, call, real)
            found = load(folder).tensors["model"]["w"][0, 0].item()
            assert found in ((expected,) if expected else (1.0, 2.0))
            save(folder, content(3), {"step": 3}, keep=2)
            assert load(folder).tensors["model"]["w"][0, 0] == 3
            assert not list((folder / "checkpoints").glob("*.partial"))
    assert survived


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    path = save(tmp_path, content(1), {"step": 1})
    path.rename(path.with_name(path.name + ".replaced"))
    shutil.copytree(path.with_name(path.name + ".replaced"), path.with_name("step_00000002.partial"))
    assert load(tmp_path).step == 1
    best = save_best(tmp_path, content(4), {"step": 4})
    best.rename(best.with_name("best.replaced"))
    assert load_best(tmp_path).step == 4


def test_the_best_checkpoint_is_replaced_and_kept_apart_from_the_newest(tmp_path):
    save_best(tmp_path, content(1), {"step": 1})
    save_best(tmp_path, content(2), {"step": 2})
    assert load_best(tmp_path).tensors["model"]["w"][0, 0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    embedding, head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
    head.weight = embedding.weight
    module = nn.ModuleDict({"embedding": embedding, "head": head})
    path = save(tmp_path, {"model": module.state_dict()}, {"step": 0})
    assert path.joinpath("model.safetensors").stat().st_size < 1.5 * 50 * 8 * 4
    found = load(tmp_path).tensors["model"]
    assert found.keys() == module.state_dict().keys()
    assert found["embedding.weight"] is found["head.weight"] and torch.equal(found["head.weight"], head.weight)


def test_infinite_metadata_is_refused_before_anything_is_replaced(tmp_path):
    save(tmp_path, content(1), {"step": 1})
    with pytest.raises(ValueError):
        save(tmp_path, content(2), {"step": 1, "best": math.inf})
    assert load(tmp_path).tensors["model"]["w"][0, 0] == 1 and steps(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_optimizer_state_round_trips_through_json(name):
    options = OptimizerOptions(optimizer=name, learning_rate=1e-2)

    def trained(seed: int, count: int):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        optimizer = make_optimizer(net, options)
        for _ in range(count):
            net(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return net, optimizer

    net, old = trained(0, 3)
    other, new = trained(1, 0)
    other.load_state_dict(net.state_dict())
    tensors, metadata = pack_optimizer(old)
    unpack_optimizer(new, tensors, json.loads(json.dumps(metadata)))
    x = torch.randn(5, 3)
    for n, o in ((net, old), (other, new)):
        n(x).square().sum().backward()
        o.step()
    assert fingerprint(net) == fingerprint(other)
    with pytest.raises(UserError, match="other parameters"):
        unpack_optimizer(make_optimizer(nn.Linear(2, 2), options), tensors, metadata)


def test_fingerprint_depends_on_names_dtypes_shapes_and_bytes_only():
    a = {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    same = {"b": torch.zeros(2), "w": torch.arange(6.0).view(3, 2).T.contiguous().view(-1)[[0, 2, 4, 1, 3, 5]]}
    assert fingerprint(a) == fingerprint(dict(reversed(a.items())))
    assert fingerprint(a) == fingerprint({"b": a["b"], "w": a["w"].T.contiguous().T}), "memory layout does not matter"
    assert fingerprint(nn.Linear(2, 2)) != fingerprint(nn.Linear(2, 2))
    variants = [
        {"w": a["w"].view(3, 2), "b": a["b"]},
        {"w": a["w"].double(), "b": a["b"]},
        {"v": a["w"], "b": a["b"]},
        {"w": a["w"] + 1e-6, "b": a["b"]},
        {"w": a["w"]},
        same,
    ]
    assert len({fingerprint(v) for v in [a, *variants]}) == 7
    assert len(fingerprint({"h": torch.zeros(2, dtype=torch.bfloat16)})) == 64
    assert checkpoints.has_checkpoint("absent") is False
