"""Every block of docs/python.md runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


def test_every_block_of_the_page_runs(runs, tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```python") >= 10
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(runs("latents")), "PAIRS": str(runs("pairs")), "CLASSES": str(runs("classes"))}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    assert (tmp_path / "my-model" / "model_index.json").is_file()
    assert len(names["three"]) == 3 and len(names["both"]) == 4 and len(names["each"]) == 3
    assert names["pipe"].sampler == "ddim" and len(names["output"]) == 2
