"""Interpolation in latent space: nearest neighbors, order of the midpoints, and their metrics."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest
import torch

from dataset_utils.splits import Split
from latent_models.spaces.compressed import CompressedSpace
from pipelines.cli.programs import AUTOENCODER
from pipelines.data.tokens import make_batch, tokenize_split
from pipelines.evaluators.interpolation import evaluate_interpolation, midpoints, nearest
from utils.cli.parse import parse
from utils.errors import UserError

TEXTS = [
    "Ben ran to the garden one warm night.",
    "Anna walked to the forest one cold morning. There she found a tiny feather.",
    "Later she gave it to her mother.",
    "Ben ran to the garden one cold night.",
]


def test_nearest_uses_cosine_similarity_and_excludes_the_text_itself():
    x0 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 1.0], [0.1, 1.0]])[:, None]
    assert nearest(x0).tolist() == [2, 3, 0, 1]
    with pytest.raises(UserError, match="has no neighbor"):
        nearest(x0[:1])


def test_midpoints_are_projected_means_in_the_order_of_the_rows(chain):
    space = CompressedSpace.from_pretrained(chain / "ae_l2")
    data, rows = tokenize_split(Split(TEXTS), space.language_model, 24), torch.tensor([3, 1, 0])
    with torch.no_grad():
        latents, neighbors = midpoints(space, data, rows, 2, torch.device("cpu"), nullcontext)
        alone = torch.cat([space.encode(make_batch(space, [TEXTS[i]], 24)).x0 for i in rows.tolist()])
    torch.testing.assert_close(latents.x0, space.project((alone + alone[neighbors]) / 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents.x0, space.project(latents.x0))
    assert neighbors.tolist() == nearest(alone).tolist()


def test_evaluation_writes_midpoints_and_counts_copies_of_endpoints(chain, programs, tmp_path):
    folder = tmp_path / "ae"
    shutil.copytree(chain / "ae_l2", folder)
    flags = (
        f"--eval --eval_interpolation --eval_texts 6 --eval_batch_size 4 --decoding greedy --scorer {programs.scorer}"
    )
    assert programs.again("autoencoder", folder, flags) == 0
    found = json.loads((folder / "evaluation/eval-valid.json").read_text())
    assert found["midpoints/greedy/perplexity"] > 1 and found["reference/midpoints_perplexity"] > 1
    samples = json.loads((folder / "evaluation/eval-valid-samples.json").read_text())
    assert len(samples) == 6 and all("midpoints/greedy" in row for row in samples)
    texts = [row["reference"] for row in samples]
    space = CompressedSpace.from_pretrained(folder)
    with torch.no_grad():
        other = nearest(torch.cat([space.encode(make_batch(space, [text], 24)).x0 for text in texts])).tolist()
    copies = [row["midpoints/greedy"] in (texts[i], texts[other[i]]) for i, row in enumerate(samples)]
    assert found["midpoints/greedy/endpoint_copies"] == sum(copies) / 6


def test_endpoint_copies_is_the_share_of_midpoints_equal_to_an_endpoint(programs):
    from evaluation import scorers

    decoded = [TEXTS[0], TEXTS[0], "Neither of them."]
    found = evaluate_interpolation(decoded, TEXTS[:3], [1, 0, 1], scorers.load(programs.scorer), prefix="m/")
    assert found["m/endpoint_copies"] == pytest.approx(2 / 3)


def test_training_rejects_flags_of_evaluation():
    with pytest.raises(UserError, match="evaluates a trained autoencoder: add --eval"):
        parse(AUTOENCODER, ["--eval_interpolation"])
