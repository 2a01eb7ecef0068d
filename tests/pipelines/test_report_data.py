"""What evaluations record for the report of a run: references, nearest texts, a trajectory, norms of latents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evaluation.nearest import RULE
from evaluation.report.run_files import read_run
from utils.trackers import read_metrics


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def evaluated(programs, chain, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    assert programs.again("diffusion", chain / "diff", f"--eval --num_samples 7 --output_dir {out}") == 0
    return out / "evaluation"


def test_every_sample_has_its_nearest_training_text(evaluated, tales_folder):
    samples, nearest = (read(evaluated / f"eval-valid-seed42-greedy-{name}.json") for name in ("samples", "nearest"))
    training = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    assert len(samples) == len(nearest) == 7
    for entry in filter(None, nearest):
        assert entry["text"] == training[entry["row"]] and 0 <= entry["similarity"] <= 1
        assert len(entry["longest_shared"]["text"].split()) == entry["longest_shared"]["words"] > 0
    assert any(nearest)
    protocol = read(evaluated / "eval-valid.json")["protocol"]["nearest"]
    assert protocol == {"similarity": RULE, "n": 7, "training_texts": 200}


def test_a_report_shows_the_samples_of_the_last_evaluation(programs, chain, evaluated, tmp_path):
    """Another evaluation leaves the texts of the one before in the folder; its scores are of its own."""
    assert read(evaluated / "eval-valid-sets.json") == ["seed42-greedy"]
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder / "evaluation")
    shutil.copy(chain / "diff/args.json", folder)
    flags = f"--eval --num_samples 4 --decoding nucleus,beam --output_dir {folder}"
    assert programs.again("diffusion", chain / "diff", flags) == 0
    assert (folder / "evaluation/eval-valid-seed42-greedy-samples.json").is_file()
    found = {one.label: len(one.texts) for one in read_run(folder, "run").samples}
    assert found == {"nucleus": 4, "beam": 4}
    (folder / "evaluation/eval-valid-sets.json").unlink()  # of an earlier release
    assert {one.label for one in read_run(folder, "run").samples} == {"nucleus", "beam", "greedy"}


def test_references_are_the_real_texts_of_the_comparison(evaluated, tales_folder):
    valid = {json.loads(line)["text"] for line in (tales_folder / "valid.jsonl").open()}
    references = read(evaluated / "eval-valid-seed42-references.json")
    assert len(references) == 7 and set(references) <= valid


def test_the_trajectory_ends_with_the_samples_of_the_evaluation(evaluated):
    trajectory = read(evaluated / "trajectory.json")
    assert (
        trajectory["seed"] == 42
        and [view["step"] for view in trajectory["views"]] == [1, 2]
        and trajectory["steps"] == 2
    )
    assert trajectory["views"][-1]["t"] == 0 and len(trajectory["views"][0]["texts"]) == 6
    samples = read(evaluated / "eval-valid-seed42-greedy-samples.json")
    assert [text for text in trajectory["views"][-1]["texts"] if text] == samples[:6]  # empty ones are drawn again


def test_norms_of_latents_of_texts_and_of_samples(chain, evaluated):
    found = read(evaluated / "latent_norms.json")
    assert found["unit"] == "norm of a latent vector" and set(found["histograms"]) == {"validation texts", "samples"}
    assert sum(found["histograms"]["samples"]["counts"]) == 8 * 4  # a batch of 8, of which 7 are samples; 4 latents
    assert sum(read(chain / "diff/latent_norms.json")["histograms"]["validation texts"]["counts"]) == 40 * 4
    assert set(read(chain / "ae/latent_norms.json")["histograms"]) == {"validation texts"}
    for run in ("ae", "diff"):
        (logged,) = (line["latent_norm/texts"] for line in read_metrics(chain / run) if "latent_norm/texts" in line)
        assert len(logged["edges"]) == len(logged["counts"]) + 1


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        ("lm", {"language model"}),
        ("ae", {"language model", "autoencoder"}),
        ("diff", {"latent space", "denoiser"}),
    ],
)
def test_parameters_of_every_part(chain, run, parts):
    found = read(chain / run / "parameters.json")["parts"]
    assert set(found) == parts
    trained = sum(part["trained"] for part in found.values())
    assert trained == read(chain / run / "args.json")["trainable_params"]
    assert all(0 <= part["trained"] <= part["total"] for part in found.values())
