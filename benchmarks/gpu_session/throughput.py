"""benchmarks/throughput.py, with each optimization off in turn, as far as the time allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import throughput
from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting

ON_GPU = "--size paper --rounds 1 --seconds 4 --parts denoiser,autoencoder,sampling"
ON_CPU = "--size small --rounds 1 --steps 1 --batch 2 --parts denoiser --cases all~on,everything~off"


def run(setting: Setting, report: Report) -> None:
    flags = [word.replace("~", " ") for word in (ON_GPU if setting.on_gpu else ON_CPU).split()]
    folder = setting.folder / "throughput"
    code = throughput.main([*flags, "--output_dir", str(folder)])
    report.check("it ends with exit code 0", code == 0, str(code))
    found: dict[str, Any] = json.loads(Path(folder / "throughput.json").read_text(encoding="utf-8"))
    report.measure("cases, in throughput/table.txt", len(found["rows"]))
    report.measure("slower than without", ", ".join(found["slower"]) or "none")
