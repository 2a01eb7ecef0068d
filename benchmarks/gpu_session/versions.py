"""Versions of the device, its driver and all packages; the packages that are missing; what the device supports."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.throughput_machine import processor
from utils.distributed import has_bf16
from utils.kernels import set_kernels
from utils.options import KernelOptions
from utils.run_folder import package_versions

NEEDED = ("einops", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "filelock", "pyyaml", "tqdm")
OPTIONAL = (
    "datasets", "evaluate", "mauve-text", "spacy", "wandb", "sacrebleu", "rouge-score", "bert-score", "lion-pytorch",
    "scikit-learn", "matplotlib", "pytest",
)  # fmt: skip


def run(setting: Setting, report: Report) -> None:
    report.measure("device", torch.cuda.get_device_name() if setting.on_gpu else processor())
    for name, found in package_versions().items():
        report.measure(name, found)
    report.measure("system", platform.platform())
    report.measure("cores", os.cpu_count())
    missing = [name for name in NEEDED if not _installed(name)]
    report.check("the packages that training needs are here", not missing, f"missing: {', '.join(missing) or 'none'}")
    absent = [name for name in OPTIONAL if not _installed(name)]
    if absent:
        report.note(f"not installed, so what needs them is left out: {', '.join(absent)}")
    report.measure("bf16", "fast" if has_bf16(setting.device) else "not used: slow here")
    listed = _nvidia_smi()
    if listed:
        report.check("torch uses the GPU that nvidia-smi lists", setting.on_gpu, listed)
    if not setting.on_gpu:
        return
    properties = torch.cuda.get_device_properties(setting.device)
    report.measure("nvidia-smi", listed or "not found")
    report.measure("CUDA of torch", torch.version.cuda)
    report.measure("cuDNN", torch.backends.cudnn.version())
    report.measure("compute capability", f"{properties.major}.{properties.minor}")
    report.measure("memory", properties.total_memory / 2**30, "GiB")
    set_kernels(KernelOptions(), setting.device)
    report.check("cuDNN's attention is off", not torch.backends.cuda.cudnn_sdp_enabled(), "its backward can be nan")


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _nvidia_smi() -> str:
    """Name, driver and memory of each GPU; empty without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer"
    return "; ".join(found.stdout.strip().splitlines()) if found.returncode == 0 else ""
