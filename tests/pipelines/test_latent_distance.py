"""benchmarks/latent_distance.py: its distances in closed form, a tiny run, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import latent_distance


def test_the_frechet_distance_of_gaussians_has_its_closed_form():
    torch.manual_seed(0)
    rows = torch.randn(4000, 6) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    assert latent_distance.frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert latent_distance.frechet_distance(rows, rows + 2) == pytest.approx(6 * 4, rel=1e-5)
    of_scale = rows.var(0).sum().item() * (2 - 1) ** 2  # of equal axes: sum of squared differences of deviations
    assert latent_distance.frechet_distance(rows, 2 * (rows - rows.mean(0)) + rows.mean(0)) == pytest.approx(of_scale)


def test_a_network_tells_apart_what_differs_and_nothing_else():
    torch.manual_seed(0)
    rows, same = torch.randn(1000, 8), torch.randn(1000, 8)
    assert 0.4 < latent_distance.two_sample_auc(rows, same, 1) < 0.6
    assert latent_distance.two_sample_auc(rows, 0.3 * same, 1) > 0.9, "a variance that differs, no mean"


def test_samplers_of_a_run_are_compared(chain, programs, tmp_path, capsys):
    run, texts = str(chain / "diff"), ["--references", str(programs.corpus / "train.jsonl")]
    flags = ["--n", "12", "--sampling_timesteps", "2", "--output_dir", str(tmp_path / "out")]
    assert latent_distance.main([run, *texts, *flags, "--sampling", "ddpm", "dpmpp --time_grid karras"]) == 0
    rows = json.loads((tmp_path / "out" / "distance.json").read_text())["rows"]
    assert list(rows) == ["real", "ddpm", "dpmpp --time_grid karras"]
    assert rows["ddpm"]["frechet"] != rows["dpmpp --time_grid karras"]["frechet"]
    assert all(row["n"] == 12 and row["frechet_one"] < row["frechet"] for row in rows.values()), "one has fewer numbers"
    assert "| real |" in (tmp_path / "out" / "distance.md").read_text()
    capsys.readouterr()
    for wrong in (["--n", "3"], ["--n", "100000"], ["--sampling", "walk"]):
        with pytest.raises(SystemExit) as ended:
            latent_distance.main([run, *texts, *flags, *wrong])
        assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
