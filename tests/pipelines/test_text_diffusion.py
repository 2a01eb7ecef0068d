"""A trained run as a Python object: the same texts for the same seed, without its corpus, and the way back."""

from __future__ import annotations

import pytest
import torch

from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError


@pytest.fixture(scope="module")
def pipeline(chain) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_run(chain / "diff", device="cpu", sampling_timesteps=3)


def test_the_seed_decides_the_texts(pipeline):
    first = pipeline(3, seed=1, decoding="greedy")
    assert len(first) == 3
    assert pipeline(3, seed=1, decoding="greedy") == first
    assert not torch.equal(pipeline.generator.latents(1, 0).x0, pipeline.generator.latents(2, 0).x0)


def test_texts_to_latents_and_back(pipeline):
    texts = ["Ben ran to the garden one warm night.", "Later she gave it to her mother."]
    latents = pipeline.encode(texts)
    assert latents.x0.shape == (2, pipeline.generator.space.length, pipeline.generator.space.dim)
    alone = pipeline.encode(texts[:1])
    torch.testing.assert_close(latents.x0[:1], alone.x0, atol=1e-5, rtol=1e-4)  # padding changes nothing
    assert len(pipeline.decode(latents)) == 2


def test_mistakes_are_said_in_one_line(pipeline, chain, tmp_path):
    with pytest.raises(UserError, match="--decoding beam,greedy names 2 strategies"):
        pipeline(1, decoding="beam,greedy")
    with pytest.raises(UserError, match="ae is a run of train_latent_model.py, not of train_text_diffusion.py"):
        TextDiffusionPipeline.from_run(chain / "ae")
    with pytest.raises(UserError, match="without classes"):
        pipeline(1, class_id="sports")
    with pytest.raises(UserError, match="not a run folder"):
        TextDiffusionPipeline.from_run(tmp_path)
    with pytest.raises(UserError, match="greedy"):
        pipeline(1, decoding="best")
