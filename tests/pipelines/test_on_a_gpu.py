"""The programs on a GPU: networks with CUDA graphs train and sample as without, and no step waits for the device.

The cases of a denoiser are those of scripts/gpu_session.sh, which checks in minutes that none of them waits.
On a machine with a GPU: pytest -m "slow or not slow" tests/pipelines/test_on_a_gpu.py. Without a GPU, one case of each
kind is compiled for the CPU (slow), which tests the tests themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_session.no_waiting import no_waiting
from benchmarks.gpu_session.waiting import CASES, FIRST_STRICT_STEP, WAITING
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import seeding
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
compiler = pytest.mark.skipif(not GPU and shutil.which("g++") is None, reason="needs a GPU or a C++ compiler")

ON_A_CPU = ("accumulated",)  # cases that run without a GPU
FLAGS = f"--device {DEVICE} --disable_dropout --num_train_steps 6 --log_every 1 --num_samples 2"


def curves(folder: Path) -> list[dict[str, float]]:
    keys = ("loss", "grad_norm", "val_loss", "val_ema_loss")
    return [{key: line[key] for key in keys if key in line} for line in read_metrics(folder)]


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("case", CASES if GPU else ON_A_CPU)
def test_compiled_networks_train_as_plain_ones(programs, chain, tmp_path, capsys, case):
    space = CASES[case].format(autoencoder=chain / "ae", lm=chain / "lm")
    for compiles in ("on", "off"):
        assert programs.diffusion(space, tmp_path / compiles, f"{FLAGS} --compile {compiles}") == 0
    assert "torch.compile failed" not in capsys.readouterr().err
    precise = not any(name in case for name in ("bf16", "fp16", "muon"))
    for one, other in zip(curves(tmp_path / "on"), curves(tmp_path / "off"), strict=True):
        assert one == pytest.approx(other, rel=1e-3 if precise else 5e-2)


@pytest.mark.slow
@needs_gpu
@pytest.mark.parametrize("compiles", ["on", "off"])
def test_a_student_trains_with_a_compiled_teacher(programs, chain, tmp_path, capsys, compiles):
    """Its layout has dropout, so its losses differ with and without compilation."""
    teacher = tmp_path / "teacher"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'} --self_condition --objective pred_v", teacher) == 0
    flags = f"--device {DEVICE} --distill_steps 2 --num_train_steps 6 --log_every 1 --compile {compiles}"
    assert programs.student(teacher, tmp_path / "student", flags) == 0
    assert "torch.compile failed" not in capsys.readouterr().err
    assert all(0 < line["loss"] < 10 for line in curves(tmp_path / "student") if "loss" in line)


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("sampler", ["dpmpp", "ddpm"] if GPU else ["dpmpp"])
def test_compiled_networks_sample_as_plain_ones(chain, sampler):
    found = []
    for compiles in ("on", "off"):
        how = {"compile": compiles, "sampler": sampler, "sampling_timesteps": 6, "eval_batch_size": 8}
        generator = TextDiffusionPipeline.from_pretrained(chain / "diff", device=DEVICE, **how).generator
        generator.denoiser.eval()
        # twice: a graph is recorded, then replayed
        found.append(torch.stack([generator.sample_latents(1, b).x0.cpu() for b in (0, 1, 0)]))
        assert torch.equal(found[-1][0], found[-1][2])
    torch.testing.assert_close(found[0], found[1], atol=2e-2, rtol=1e-2)


@needs_gpu
@pytest.mark.parametrize(("run", "device"), [("diff", "cpu"), ("states", "cuda")])
def test_noise_of_many_channels_is_drawn_on_the_gpu(chain, monkeypatch, run, device):
    """The latents of both runs have 64 channels, of which the second run's count as too many here."""
    if device == "cuda":
        monkeypatch.setattr(seeding, "WIDEST_ON_CPU", 32)
    generator = TextDiffusionPipeline.from_pretrained(chain / run, device="cuda", eval_batch_size=8).generator
    call = generator.prepare(1, 0)
    assert call.step_generator("langevin", of_latents=True)(0).device.type == device
    assert call.noise(0, call.z).device.type == call.z.device.type == "cuda"
    first, again = (generator.sample_latents(1, 0).x0 for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, generator.sample_latents(1, 1).x0)


@needs_gpu
@pytest.mark.parametrize("case", [name for name in CASES if name not in WAITING])
@pytest.mark.parametrize("where", ["on", "off"])
def test_no_step_of_the_denoiser_waits(programs, chain, tmp_path, case, where):
    flags = f"{FLAGS} --log_every 6 --compile off --config latents_on_device={where}"
    space = CASES[case].format(autoencoder=chain / "ae", lm=chain / "lm")
    with no_waiting(FIRST_STRICT_STEP):
        assert programs.diffusion(space, tmp_path, flags) == 0


@needs_gpu
@pytest.mark.parametrize("flags", [
    "", "--max_latent_noise 0.3", "--lm_mode ft", "--cache_encoder_states float16",
    "--cache_encoder_states float16 --config states_on_device=off",
])  # fmt: skip
def test_no_step_of_the_autoencoder_waits(programs, chain, tmp_path, flags):
    flags = f"--device cuda --compile off --num_train_steps 6 --log_every 6 {flags}"
    with no_waiting(FIRST_STRICT_STEP):
        assert programs.autoencoder(chain / "lm", tmp_path, flags) == 0


@needs_gpu
@pytest.mark.slow
def test_as_many_processes_as_gpus_train_with_compilation(programs, chain, tmp_path):
    """Each process has its own GPU. NCCL cannot share one, so with one GPU there is one process."""
    count = min(2, torch.cuda.device_count())
    flags = f"{programs.data} --no_wandb --max_seq_len 40 --tx_dim 64 --tx_depth 2 --num_train_steps 4 --log_every 1"
    flags += " --train_batch_size 8 --gradient_accumulation_steps 2 --num_samples 2 --sampling_timesteps 2 --compile on"
    flags += f" --latent_model_path {chain / 'ae'} --scorer {programs.scorer} --decoding greedy --output_dir {tmp_path}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    argv = [*launch, str(ROOT / "train_text_diffusion.py"), *flags.split()]
    done = subprocess.run(argv, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torch.compile failed" not in done.stderr
