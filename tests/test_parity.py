"""scripts/check_parity.py: our modules reproduce recordings of the published implementation; its exit statuses."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SCRIPT = ROOT / "scripts" / "check_parity.py"

parity = SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="check_parity"))


@pytest.mark.parametrize("name", parity.recordings(GOLDEN))
def test_agrees_with_the_reference(name):
    results = parity.check_file(GOLDEN, name, parity.read_meta(GOLDEN))
    assert [r for r in results if not r.ok] == []


def test_every_recording_is_described_and_every_result_compared():
    meta = parity.read_meta(GOLDEN)
    assert set(parity.recordings(GOLDEN)) == set(meta)
    compared = sum(len(parity.check_file(GOLDEN, name, meta)) for name in meta)
    keys = [key for name in meta for key in load_file(GOLDEN / f"{name}.safetensors")]
    assert compared == sum(key != "t" and not key.startswith(("in.", "param.")) for key in keys)


def folder_of(tmp_path, *names):
    for name in names:
        shutil.copy(GOLDEN / f"{name}.safetensors", tmp_path)
    shutil.copy(GOLDEN / "meta.json", tmp_path)
    return tmp_path


def change(folder, name, **tensors):
    path = folder / f"{name}.safetensors"
    save_file(load_file(path) | tensors, path)


def run(folder, capsys):
    """Exit status and what was printed."""
    try:
        status = parity.main([str(folder)])
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr()


def test_a_subset_of_the_files_is_valid(tmp_path, capsys):
    status, printed = run(folder_of(tmp_path, "schedules", "denoiser_plain"), capsys)
    assert status == 0
    assert printed.out.count(" ok ") == 2 and printed.err == ""


def test_runs_as_a_program_from_another_directory(tmp_path):
    folder_of(tmp_path, "schedules")
    done = subprocess.run([sys.executable, SCRIPT, "."], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "schedules" in done.stdout


@pytest.mark.parametrize("spoil", [lambda x: x + 1e-3, lambda x: x * float("nan"), lambda x: x[:1]])
def test_a_difference_beyond_tolerance_exits_with_1(tmp_path, capsys, spoil):
    folder_of(tmp_path, "denoiser_plain", "schedules")
    recorded = load_file(GOLDEN / "denoiser_plain.safetensors")["out.no_self_cond"]
    change(tmp_path, "denoiser_plain", **{"out.no_self_cond": spoil(recorded).contiguous()})
    status, printed = run(tmp_path, capsys)
    assert status == 1
    assert printed.out.count("BEYOND TOLERANCE no_self_cond") == 1 and " ok " in printed.out


def test_other_sizes_are_read_from_the_recording(tmp_path, capsys):
    sizes = {64: 128, 256: 512, 512: 1024, 16: 24, 8: 10}
    golden = load_file(GOLDEN / "denoiser_plain.safetensors")
    shapes = {k: [sizes.get(n, n) for n in v.shape] for k, v in golden.items() if k.startswith("param.")}
    scaled = {k: 0.05 * torch.randn(shape).half() for k, shape in shapes.items()}
    inputs = {"in.z_t": torch.randn(2, 9, 24), "in.alpha": torch.rand(2), "in.mask": torch.ones(2, 9, dtype=torch.bool)}
    arguments = parity.read_meta(GOLDEN)["denoiser_plain"] | {"tx_dim": 128, "latent_dim": 24, "max_seq_len": 10}
    meta = {"denoiser_plain": arguments}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    save_file(scaled | inputs | {"out.no_self_cond": torch.zeros(2, 9, 24)}, tmp_path / "denoiser_plain.safetensors")
    file = parity.File(tmp_path, "denoiser_plain", meta)
    with torch.no_grad():
        ours = parity.denoiser(file)(inputs["in.z_t"], inputs["in.alpha"])
    assert run(tmp_path, capsys)[0] == 1
    change(tmp_path, "denoiser_plain", **{"out.no_self_cond": ours})
    assert run(tmp_path, capsys)[0] == 0


def spoiled_meta(folder):
    (folder / "meta.json").write_text("{")


def missing_meta(folder):
    (folder / "meta.json").unlink()


def undescribed(folder):
    (folder / "meta.json").write_text("{}")


def damaged(folder):
    (folder / "denoiser_plain.safetensors").write_bytes(b"\x10\x00\x00")


def unknown_kind(folder):
    (folder / "denoiser_plain.safetensors").rename(folder / "classifier.safetensors")


def unknown_result(folder):
    change(folder, "denoiser_plain", **{"out.upside_down": torch.zeros(1)})


def missing_input(folder):
    path = folder / "denoiser_plain.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "in.z_t"}, path)


def other_network(folder):
    change(folder, "denoiser_plain", **{"param.norm.bias": torch.zeros(3)})


def empty(folder):
    (folder / "denoiser_plain.safetensors").unlink()


def without_denoiser(folder):
    shutil.copy(GOLDEN / "guidance_class.safetensors", folder)


@pytest.mark.parametrize(
    "spoil, line",
    [
        (spoiled_meta, "meta.json"),
        (missing_meta, "meta.json"),
        (undescribed, "tx_dim"),
        (damaged, "cannot be read"),
        (unknown_kind, "of no kind"),
        (unknown_result, "upside_down"),
        (missing_input, "in.z_t"),
        (other_network, "another denoiser"),
        (empty, "no .safetensors"),
        (without_denoiser, "denoiser_class_conditional"),
    ],
)
def test_invalid_input_is_one_line_and_exits_with_2(tmp_path, capsys, spoil, line):
    spoil(folder_of(tmp_path, "denoiser_plain"))
    status, printed = run(tmp_path, capsys)
    assert status == 2
    assert printed.err.startswith("error: ") and line in printed.err and printed.err.count("\n") == 1
