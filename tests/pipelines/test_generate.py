"""Texts come in seeded blocks: how many are asked for changes none of them; empty ones are counted and replaced."""

from __future__ import annotations

import pytest

from pipelines.sampling.generate import TextGenerator
from pipelines.text_diffusion import TextDiffusionPipeline


@pytest.fixture(scope="module")
def generator(chain) -> TextGenerator:
    """Of the trained run, in blocks of 8."""
    return TextDiffusionPipeline.from_run(chain / "diff", device="cpu").generator


@pytest.mark.parametrize("strategy", ["greedy", "beam", "nucleus"])
def test_fewer_texts_are_a_prefix(generator, strategy):
    many = generator.sample(19, 42, [strategy], quiet=True).texts[strategy]
    assert len(many) == 19
    for n in (1, 8, 11):
        assert generator.sample(n, 42, [strategy], quiet=True).texts[strategy] == many[:n]


def test_strategies_do_not_disturb_each_other(generator):
    together = generator.sample(9, 42, ["nucleus", "greedy"], quiet=True).texts
    for strategy in together:
        assert generator.sample(9, 42, [strategy], quiet=True).texts[strategy] == together[strategy]


def test_seeds_and_blocks_differ(generator):
    one, other = (generator.sample(16, seed, ["nucleus"], quiet=True).texts["nucleus"] for seed in (42, 43))
    assert one != other and one[:8] != one[8:]


class Silent(TextGenerator):
    """A generator of which every third text, or every text, comes out empty; texts name their block and place."""

    every = 3

    def decode(self, latents, strategy, seed):
        found = super().decode(latents, strategy, seed)
        self.seen = getattr(self, "seen", 0) + 1
        return ["" if i % self.every == 0 else f"{self.seen}.{i} {text}" for i, text in enumerate(found)]


def silent(generator: TextGenerator, every: int) -> Silent:
    copy = object.__new__(Silent)
    copy.__dict__.update(generator.__dict__, every=every)
    return copy


def test_empty_texts_are_counted_and_replaced(generator):
    sampled = silent(generator, 3).sample(10, 42, ["greedy"], quiet=True)
    texts = sampled.texts["greedy"]
    places = [text.split()[0] for text in texts]
    assert places == ["1.1", "1.2", "1.4", "1.5", "1.7", "2.1", "2.2", "2.4", "2.5", "2.7"]
    assert sampled.empty["greedy"] == 6


def test_a_run_that_writes_only_empty_texts_ends(generator):
    sampled = silent(generator, 1).sample(10, 42, ["greedy"], quiet=True)
    assert sampled.texts["greedy"] == [""] * 10 and sampled.empty["greedy"] == 4 * 8


def test_an_evaluation_may_ask_for_small_blocks(chain):
    """Blocks of training are as large as its batches; what is typed beside a trained run is not to be ignored."""
    assert TextDiffusionPipeline.from_run(chain / "diff", device="cpu").generator.block == 8
    assert TextDiffusionPipeline.from_run(chain / "diff", device="cpu", eval_batch_size=3).generator.block == 3
