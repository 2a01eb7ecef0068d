"""Checkpoints: atomic writes, detection of damage, tied weights, exact floats."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from utils import checkpoint_folder, checkpoints
from utils.checkpoint_folder import DamagedError
from utils.checkpoints import fingerprint, load, load_best, pack_optimizer, save, save_best, unpack_optimizer
from utils.errors import UserError
from utils.locks import try_lock
from utils.optim import LrSchedule, make_optimizer
from utils.options import OptimizerOptions
from utils.state import State


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


# ------------------------------------------------------------------------------------------------------------- damage


def rewrite(path: Path, change) -> None:
    """Change the content of a state.json, with a right checksum: what somebody means, and not what a disk does."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    state.pop("checksum", None)
    state["checksum"] = checkpoint_folder._checksum(state)
    (path / "state.json").write_text(checkpoint_folder._serialized(state))


def metadata(step: int) -> dict:
    return {"step": step, "loss": 1e-05, "best": {"metric": "bleu", "value": 0.25}, "pending": ["sample"]}


def test_every_bit_of_state_json_counts(tmp_path):
    path = save(tmp_path, content(1), metadata(1))
    file = path / "state.json"
    held = file.read_bytes()
    for place in range(8 * len(held)):
        changed = bytearray(held)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(DamagedError):
            checkpoint_folder.read_state(path)
    file.write_bytes(held)
    assert checkpoint_folder.read(path).step == 1
    file.write_text(held.decode().replace("1e-05", "1E-05"))
    with pytest.raises(DamagedError):
        checkpoint_folder.read(path)


def test_any_bit_of_a_tensor_file_counts_and_the_checkpoint_before_it_is_taken(tmp_path, capsys):
    save(tmp_path, content(1), {"step": 1})
    newest = save(tmp_path, content(2), {"step": 2})
    draw = random.Random(0)
    for file in sorted(newest.glob("*.safetensors")):
        held = file.read_bytes()
        for _ in range(40):
            place = draw.randrange(8 * len(held))
            changed = bytearray(held)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            assert load(tmp_path).step == 1
            line = capsys.readouterr().err
            assert line.count("\n") == 1 and f"the checksum of {file.name} has changed" in line
        file.write_bytes(held)
    assert load(tmp_path).step == 2 and not capsys.readouterr().err


def rename_file(state: dict, name: str) -> None:
    state["sha256"][name] = state["sha256"].pop("model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(sha256={}),
        lambda state: state["sha256"].pop("model.safetensors"),
        lambda state: state["sha256"].pop("ema.safetensors"),
        lambda state: state.update(sha256=[["model.safetensors", "0" * 64]]),
        lambda state: state["sha256"].update({"model.safetensors": 5}),
        lambda state: rename_file(state, "../step_00000001/model.safetensors"),
        lambda state: rename_file(state, str(Path("/etc/model.safetensors"))),
        lambda state: rename_file(state, "model.pt"),
        lambda state: state.update(facts=[]),
        lambda state: state["facts"].pop("step"),
        lambda state: state["facts"].update(step=True),
        lambda state: state["facts"].update(step="2"),
        lambda state: state["facts"].update(optimizer={}),
        lambda state: state.update(tied={"model": {"a": 1}}),
        lambda state: state.update(tied={"model": {"a": "absent"}}),
        lambda state: state.update(tied={"other": {}}),
        lambda state: state.update(format=True),
        lambda state: state.update(format="1"),
    ],
)
def test_a_state_of_another_shape_is_no_checkpoint_even_with_a_right_checksum(tmp_path, capsys, change):
    save(tmp_path, content(1), {"step": 1})
    rewrite(save(tmp_path, content(2), {"step": 2}), change)
    assert load(tmp_path).step == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_only_a_newer_release_is_told_to_update(tmp_path):
    path = save(tmp_path, content(1), {"step": 1})
    rewrite(path, lambda state: state.update(format=2, more={}))
    with pytest.raises(UserError, match="newer release"):
        load(tmp_path)


def test_a_checkpoint_of_an_earlier_release_has_no_checksum_of_its_state(tmp_path):
    path = save(tmp_path, content(1), {"step": 1})
    state = json.loads((path / "state.json").read_text())
    del state["checksum"]
    (path / "state.json").write_text(json.dumps(state))
    assert load(tmp_path).step == 1


def test_an_earlier_state_that_no_training_saved_is_refused_in_one_line(tmp_path):
    network = nn.Linear(2, 2)
    optimizer = make_optimizer(network, OptimizerOptions())
    state = State(network, optimizer, LrSchedule(optimizer, OptimizerOptions(), 10))
    state.save(tmp_path)
    path = tmp_path / "checkpoints/step_00000000"
    held = json.loads((path / "state.json").read_text())
    del held["checksum"]
    for key, value in (("schedule", None), ("optimizer", []), ("best", 5), ("scaler", 1.0), ("seed", None)):
        facts = {k: v for k, v in held["facts"].items() if k != key} | ({} if value is None else {key: value})
        (path / "state.json").write_text(json.dumps({**held, "facts": facts}))
        with pytest.raises(UserError, match="does not hold what a training saves"):
            state.restore(load(tmp_path))


@pytest.mark.parametrize("kind", ["file", "state", "pipe"])
def test_files_outside_of_the_folder_are_not_read(tmp_path, kind, capsys):
    save(tmp_path, content(1), {"step": 1})
    path = save(tmp_path, content(2), {"step": 2})
    file = path / ("state.json" if kind == "state" else "model.safetensors")
    file.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path).step == 1
    assert "outside its folder" in (line := capsys.readouterr().err) or "is missing" in line


def test_a_folder_of_checkpoints_may_be_a_link(tmp_path):
    """Users move a checkpoint to a larger disk."""
    path = save(tmp_path, content(1), {"step": 1})
    path.rename(tmp_path / "large_disk")
    path.symlink_to(tmp_path / "large_disk")
    assert load(tmp_path).step == 1


# ------------------------------------------------------------------------------------------------------------ pruning


def flip(path: Path) -> None:
    held = bytearray((path / "model.safetensors").read_bytes())
    held[-1] ^= 1
    (path / "model.safetensors").write_bytes(held)


def test_damaged_newer_checkpoints_do_not_cost_good_ones(tmp_path, capsys):
    """Two damaged ones of later steps: the run goes back, and saves an earlier step."""
    for step in (5, 10, 15, 20):
        save(tmp_path, content(step), {"step": step}, keep=4)
    flip(tmp_path / "checkpoints/step_00000015")
    flip(tmp_path / "checkpoints/step_00000020")
    assert load(tmp_path).step == 10
    capsys.readouterr()
    save(tmp_path, content(12), {"step": 12}, keep=2)
    assert steps(tmp_path) == [
        "step_00000010",
        "step_00000012",
        "step_00000015.damaged",
        "step_00000020.damaged",
    ]
    noted = capsys.readouterr().err.splitlines()
    assert len(noted) == 2 and "step_00000020 is damaged" in noted[0] and "is now step_00000020.damaged" in noted[0]
    save(tmp_path, content(15), {"step": 15}, keep=2)
    save(tmp_path, content(20), {"step": 20}, keep=2)
    assert not capsys.readouterr().err, "named once"
    assert load(tmp_path).step == 20
    assert [name for name in steps(tmp_path) if "damaged" not in name] == ["step_00000015", "step_00000020"]


def test_a_damaged_older_checkpoint_is_not_counted(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, content(step), {"step": step}, keep=3)
    flip(tmp_path / "checkpoints/step_00000015")
    save(tmp_path, content(20), {"step": 20}, keep=2)
    assert steps(tmp_path) == ["step_00000010", "step_00000015.damaged", "step_00000020"]


def test_intact_newer_checkpoints_stay(tmp_path):
    for step in (10, 15, 5):
        save(tmp_path, content(step), {"step": step}, keep=1)
    assert steps(tmp_path) == ["step_00000005", "step_00000015"], "15 replaced 10, and 5 removes nothing newer"


@pytest.mark.parametrize("kind", ["link", "busy"])
def test_what_cannot_be_removed_is_one_warning_and_training_goes_on(tmp_path, kind, monkeypatch, capsys):
    first = save(tmp_path, content(1), {"step": 1})
    if kind == "link":
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
    else:
        real = os.unlink

        def busy(path, *args, **kwargs):
            if str(path).endswith("model.safetensors"):
                raise OSError(errno.EBUSY, "Device or resource busy", str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "unlink", busy)
    for step in (2, 3, 4, 5):
        save(tmp_path, content(step), {"step": step}, keep=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "cannot be removed" in lines[0] and "training goes on" in lines[0]
    assert load(tmp_path).step == 5
    if kind == "link":
        assert (tmp_path / "elsewhere/model.safetensors").is_file()


# --------------------------------------------------------------------------------------------------- while others read


def _replace_all_the_time(folder: Path, stop) -> None:
    step = 0
    while not stop.is_set():
        step += 1
        save(folder, content(step), {"step": max(step // 3, 1)}, keep=1)
        save_best(folder, content(step), {"step": step})


def test_a_reader_beside_a_training_meets_neither_errors_nor_damage(tmp_path, capfd):
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    save(tmp_path, content(1), {"step": 1})
    save_best(tmp_path, content(1), {"step": 1})
    writer = context.Process(target=_replace_all_the_time, args=(tmp_path, stop))
    writer.start()
    last = best = 0
    try:
        reads, deadline = 0, time.monotonic() + 60  # a busy machine starves the writer
        while reads < 400 or (min(last, best) <= 1 and time.monotonic() < deadline):
            reads += 1
            newest = load(tmp_path).step
            assert newest >= last
            last = newest
            found = load_best(tmp_path)
            assert found.tensors["model"]["w"][0, 0] == found.step >= best
            best = found.step
    finally:
        stop.set()
        writer.join(30)
    assert writer.exitcode == 0 and last > 1 and best > 1
    assert not capfd.readouterr().err, "no warning of damage"


# -------------------------------------------------------------------------------------------------- full disks, poison


class Killed(BaseException):
    pass


def dying(call, left: list[int], *args, **kwargs):
    """As if the process were dead after some calls: what it would do afterwards does not happen."""
    left[0] -= 1
    if left[0] < 0:
        raise Killed
    return call(*args, **kwargs)


@pytest.mark.parametrize("kind", ["step", "best"])
def test_a_kill_at_each_rename_or_removal_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, kind):
    """Also for best/, which has no other step to fall back to; then sweep() removes all that is left."""
    put = {"step": save, "best": save_best}[kind]
    get = {"step": load, "best": load_best}[kind]
    for dies_at in range(40):
        folder = tmp_path / f"{dies_at}"
        put(folder, content(1), {"step": 1})
        left = [dies_at]
        with monkeypatch.context() as patch, suppress(Killed):
            for name in ("replace", "unlink", "rmdir", "mkdir", "fsync", "open"):
                patch.setattr(os, name, partial(dying, getattr(os, name), left))
            put(folder, content(2), {"step": 1})
        assert get(folder).tensors["model"]["w"][0, 0] in (1, 2)
        checkpoints.sweep(folder)
        assert get(folder).tensors["model"]["w"][0, 0] in (1, 2)
        assert sorted(p.name for p in (folder / "checkpoints" if kind == "step" else folder).iterdir()) == [
            {"step": "step_00000001", "best": "best"}[kind]
        ]
    assert left[0] > 0, "the last one was not killed"


def test_a_sweep_removes_what_kills_left_and_nothing_else(tmp_path):
    save(tmp_path, content(1), {"step": 1})
    save_best(tmp_path, content(1), {"step": 1})
    for name in ("checkpoints/step_00000002.partial", "best.partial", "checkpoints/step_00000001.removed", "best.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    shutil.copytree(tmp_path / "best", tmp_path / "best.replaced")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"args.json.{ended.pid}.partial", f"args.json.{os.getpid()}.partial", "mine.partial", "best.txt"):
        (tmp_path / name).touch()
    checkpoints.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["best", "best.old", "best.txt", "checkpoints", "mine.partial", f"args.json.{os.getpid()}.partial"]
    )
    assert steps(tmp_path) == ["step_00000001"]
    checkpoints.sweep(tmp_path / "absent")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_full_disk_is_named_and_the_last_good_checkpoint_stays(small_disk, size):
    """With 60,000 numbers the file of the model does not fit, with 20,000 that of the averages."""
    save(small_disk, content(1), {"step": 1})
    large = {"model": {"w": torch.zeros(size)}, "ema": {"w": torch.ones(size + 9000)}}
    for put in (save, save_best):
        with pytest.raises(UserError) as refused:
            put(small_disk, large, {"step": 2})
        line = str(refused.value)
        assert "the disk is full" in line and "step_00000001" in line and "damaged" not in line and "\n" not in line
        assert load(small_disk).step == 1
        assert steps(small_disk) == ["step_00000001"] and not list(small_disk.glob("best*")), "space is free again"


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_poisoned_weights_are_never_written_over_good_ones(tmp_path, part, value):
    save(tmp_path, content(1), {"step": 1})
    save_best(tmp_path, content(1), {"step": 1})
    bad = {**content(2), part: {"w": torch.tensor([0.0, value])}}
    for put in (save, save_best):
        with pytest.raises(UserError) as refused:
            put(tmp_path, bad, {"step": 2})
        line = str(refused.value)
        assert f"({part}: w)" in line and "resume" in line and "step_00000001" in line and "\n" not in line
    assert load(tmp_path).step == load_best(tmp_path).step == 1 and steps(tmp_path) == ["step_00000001"]
    with pytest.raises(UserError, match="not saved: train again with a lower --learning_rate"):
        save(tmp_path / "new", bad, {"step": 2})


def test_poisoned_checkpoints_of_earlier_releases_are_refused(tmp_path, monkeypatch):
    save(tmp_path, content(1), {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "not_finite", lambda *_: None)
        save(tmp_path, content(math.nan), {"step": 2})
        save_best(tmp_path, content(math.nan), {"step": 2})
    for get in (load, load_best):
        with pytest.raises(UserError, match=r"nan or infinite \(model: w\).*step_00000001 is used"):
            get(tmp_path)


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    network = nn.Linear(2, 2)
    optimizer = make_optimizer(network, OptimizerOptions())
    state = State(network, optimizer, LrSchedule(optimizer, OptimizerOptions(), 10))
    assert try_lock(run)
    state.save(run)
    shutil.rmtree(run)
    for put in (state.save, state.save_best):
        with pytest.raises(UserError, match="was removed or renamed while it was trained into"):
            put(run)
    assert not run.exists()


# --------------------------------------------------------------------------------------------------------------- best


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
