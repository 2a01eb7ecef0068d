"""TextDiffusionPipeline: texts from a seed, and texts to latents and back, without the corpus."""

from __future__ import annotations

import pytest
import torch

from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError


@pytest.fixture(scope="module")
def pipeline(chain) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", sampling_timesteps=3)


def test_a_seed_gives_the_same_texts_again(pipeline):
    first = pipeline.sample(3, seed=1, decoding="greedy")
    assert len(first) == 3
    assert pipeline(3, seed=1, decoding="greedy") == first
    assert not torch.equal(pipeline.generator.sample_latents(1, 0).x0, pipeline.generator.sample_latents(2, 0).x0)


def test_encode_and_decode_batches_of_texts(pipeline):
    texts = ["Ben ran to the garden one warm night.", "Later she gave it to her mother."]
    latents = pipeline.encode(texts)
    assert latents.x0.shape == (2, pipeline.generator.space.length, pipeline.generator.space.dim)
    alone = pipeline.encode(texts[:1])
    torch.testing.assert_close(latents.x0[:1], alone.x0, atol=1e-5, rtol=1e-4)  # padding does not change latents
    assert len(pipeline.decode(latents)) == 2


def test_from_pretrained_and_from_run_load_the_same(chain, pipeline):
    again = TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", argv=["--sampling_timesteps", "3"])
    assert again.sample(2, seed=1, decoding="greedy") == pipeline(2, seed=1, decoding="greedy")


def test_mistakes_raise_one_line_errors(pipeline, chain, tmp_path):
    with pytest.raises(UserError, match="--decoding beam,greedy names 2 strategies"):
        pipeline(1, decoding="beam,greedy")
    with pytest.raises(UserError, match="ae is a run of train_latent_model.py, not of train_text_diffusion.py"):
        TextDiffusionPipeline.from_pretrained(chain / "ae")
    with pytest.raises(UserError, match="without classes"):
        pipeline(1, class_id="sports")
    with pytest.raises(UserError, match="not a run folder"):
        TextDiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="greedy"):
        pipeline(1, decoding="best")
