"""What a space holds between texts: neighbours, middles in the order of the texts, and the numbers they get."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest
import torch

from dataset_utils.splits import Split
from pipelines.building.models import load_autoencoder
from pipelines.data.tokens import batch_of, tokenize_split
from pipelines.evaluators.interpolation import evaluate_midpoints, middles, nearest
from pipelines.flags.programs import AUTOENCODER
from utils.config import parse
from utils.errors import UserError

TEXTS = [
    "Ben ran to the garden one warm night.",
    "Anna walked to the forest one cold morning. There she found a tiny feather.",
    "Later she gave it to her mother.",
    "Ben ran to the garden one cold night.",
]


def test_the_nearest_is_another_text_that_points_the_same_way():
    x0 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 1.0], [0.1, 1.0]])[:, None]
    assert nearest(x0).tolist() == [2, 3, 0, 1]
    with pytest.raises(UserError, match="has no neighbour"):
        nearest(x0[:1])


def test_middles_stand_in_the_order_of_the_texts_and_are_projected(chain):
    space, _ = load_autoencoder(chain / "ae_l2", torch.device("cpu"))
    data, rows = tokenize_split(Split(TEXTS), space.language_model, 24), torch.tensor([3, 1, 0])
    with torch.no_grad():
        latents, neighbours = middles(space, data, rows, 2, torch.device("cpu"), nullcontext)
        alone = torch.cat([space.encode(batch_of(space, [TEXTS[i]], 24)).x0 for i in rows.tolist()])
    torch.testing.assert_close(latents.x0, space.project((alone + alone[neighbours]) / 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents.x0, space.project(latents.x0))
    assert neighbours.tolist() == nearest(alone).tolist()


def test_evaluation_writes_them_beside_reconstruction(chain, programs, tmp_path):
    folder = tmp_path / "ae"
    shutil.copytree(chain / "ae_l2", folder)
    flags = f"--eval --midpoints --eval_texts 6 --eval_batch_size 4 --decoding greedy --scorer {programs.scorer}"
    assert programs.again("autoencoder", folder, flags) == 0
    found = json.loads((folder / "evaluation/eval-valid.json").read_text())
    assert found["midpoints/greedy/perplexity"] > 1 and found["reference/midpoints_perplexity"] > 1
    assert 0 <= found["midpoints/greedy/copies"] <= 1
    samples = json.loads((folder / "evaluation/eval-valid-samples.json").read_text())
    assert len(samples) == 6 and all("midpoints/greedy" in row for row in samples)


def test_copies_of_either_end_are_counted(programs):
    from evaluation import scorers

    written = [TEXTS[0], TEXTS[0], "Neither of them."]
    found = evaluate_midpoints(written, TEXTS[:3], [1, 0, 1], scorers.load(programs.scorer), prefix="m/")
    assert found["m/copies"] == pytest.approx(2 / 3)


def test_training_refuses_what_only_evaluation_does():
    with pytest.raises(UserError, match="give it with --eval"):
        parse(AUTOENCODER, ["--midpoints"])
