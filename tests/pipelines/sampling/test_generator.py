"""Texts are sampled in seeded batches: their number changes no text; empty texts are counted and replaced."""

from __future__ import annotations

import pytest
import torch

from pipelines.sampling.generator import TextGenerator
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.records import Latents


@pytest.fixture(scope="module")
def generator(chain) -> TextGenerator:
    """The generator of the trained run, in batches of 8."""
    return TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu").generator


@pytest.mark.parametrize("strategy", ["greedy", "beam", "nucleus"])
def test_fewer_texts_are_a_prefix_of_more(generator, strategy):
    many = generator.sample(19, 42, [strategy], quiet=True).texts[strategy]
    assert len(many) == 19
    for n in (1, 8, 11):
        assert generator.sample(n, 42, [strategy], quiet=True).texts[strategy] == many[:n]


def test_a_strategy_gives_the_same_texts_alone_and_beside_others(generator):
    together = generator.sample(9, 42, ["nucleus", "greedy"], quiet=True).texts
    for strategy in together:
        assert generator.sample(9, 42, [strategy], quiet=True).texts[strategy] == together[strategy]


def test_seeds_and_batches_give_different_texts(generator):
    one, other = (generator.sample(16, seed, ["nucleus"], quiet=True).texts["nucleus"] for seed in (42, 43))
    assert one != other and one[:8] != one[8:]


class SometimesEmpty(TextGenerator):
    """A generator whose every third text, or every text, is empty; texts begin with their batch and row."""

    every = 3

    def decode(self, latents, strategy, seed):
        found = super().decode(latents, strategy, seed)
        self.seen = getattr(self, "seen", 0) + 1
        return ["" if i % self.every == 0 else f"{self.seen}.{i} {text}" for i, text in enumerate(found)]


def sometimes_empty(generator: TextGenerator, every: int) -> SometimesEmpty:
    copy = object.__new__(SometimesEmpty)
    copy.__dict__.update(generator.__dict__, every=every)
    return copy


def test_empty_texts_are_counted_and_replaced(generator):
    sampled = sometimes_empty(generator, 3).sample(10, 42, ["greedy"], quiet=True)
    texts = sampled.texts["greedy"]
    origins = [text.split()[0] for text in texts]
    assert origins == ["1.1", "1.2", "1.4", "1.5", "1.7", "2.1", "2.2", "2.4", "2.5", "2.7"]
    assert sampled.empty["greedy"] == 6


def test_sampling_ends_where_every_text_is_empty(generator):
    sampled = sometimes_empty(generator, 1).sample(10, 42, ["greedy"], quiet=True)
    assert sampled.texts["greedy"] == [""] * 10 and sampled.empty["greedy"] == 4 * 8


def test_an_evaluation_may_set_a_smaller_batch_size(chain):
    """The default is the batch size of training, but a flag given with a trained run takes precedence."""
    assert TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu").generator.batch_size == 8
    assert (
        TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", eval_batch_size=3).generator.batch_size == 3
    )


def test_weights_are_cast_once_for_all_steps(chain):
    """Under autocast each network call would cast them anew; the samples are the same."""
    pipeline = TextDiffusionPipeline.from_pretrained(
        chain / "diff", device="cpu", sampling_timesteps=6, mixed_precision="bf16", eval_batch_size=2
    )
    generator, found = pipeline.generator, []
    generator.denoiser.eval()
    call = generator.prepare(1, 0)

    def anew():
        return Latents(call.sampler(call.denoise, call.schedule, call.timesteps, call.z, call.noise), call.mask)

    for run in (call.run, anew):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, torch.no_grad():
            x0 = run().x0
        copies = sum(event.count for event in profiler.key_averages() if event.key == "aten::_to_copy")
        found.append((x0, copies))
    (once, few), (again, many) = found
    weights = sum(1 for name, _ in generator.denoiser.named_parameters() if name.endswith("weight"))
    assert torch.equal(once, again) and many - few > 2 * weights
