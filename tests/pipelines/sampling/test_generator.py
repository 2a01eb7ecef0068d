"""A text depends on its seed and number alone: not on how many are drawn, nor on the batch. Empty ones are replaced."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy

import pytest
import torch

from latent_models.generation.generator import TokenGenerator
from latent_models.generation.options import GenerationOptions
from pipelines.components import make_generator
from pipelines.load_run import load_run
from pipelines.sampling.blocks import Segment, segments
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.sampler_call import SampleInputs, SamplerCall
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.records import Latents


@pytest.fixture(scope="module")
def generator(chain) -> TextGenerator:
    """The generator of the trained run, in batches of 8."""
    return TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu").generator


def in_batches(generator: TextGenerator, size: int, **changed) -> TextGenerator:
    other = copy(generator)
    other.batch_size = size
    other.__dict__.update(changed)
    return other


@pytest.fixture
def rows_computed(monkeypatch) -> list[int]:
    """Number of rows of each sampler call."""
    seen: list[int] = []
    run = SamplerCall.run

    def counted(self):
        seen.append(len(self.z))
        return run(self)

    monkeypatch.setattr(SamplerCall, "run", counted)
    return seen


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


def test_one_text_is_drawn_as_one_text(generator, rows_computed):
    assert len(generator.sample(1, 42, ["greedy"], quiet=True).texts["greedy"]) == 1
    assert rows_computed == [1], "no block of the training batch is behind it"


def test_an_evaluation_computes_whole_blocks(chain, rows_computed):
    run = load_run(chain / "diff", device="cpu")
    made = make_generator(run.settings, run.components, run.device, nullcontext)
    assert made.block_size == 8 and len(made.sample(11, 42, ["greedy"], quiet=True).texts["greedy"]) == 11
    assert rows_computed == [8, 8]


@pytest.mark.parametrize("size", [1, 3, 8, 13, 20])
def test_the_batch_size_changes_no_text(generator, size):
    """Rows of a block, and rows of several blocks in one batch; nucleus draws for each token, ddpm for each step."""
    strategies = ["greedy", "beam", "nucleus"]
    expected = generator.sample(20, 42, strategies, quiet=True).texts
    other = in_batches(generator, size)
    assert other.sample(20, 42, strategies, quiet=True).texts == expected
    assert [text for part in other.stream(20, 42, "greedy") for _, text in part] == expected["greedy"]


def test_latents_of_another_batch_differ_by_rounding_alone(generator):
    """Kernels for other numbers of rows may round differently in the last bits; 1e-4 of a standard deviation is ten
    times what float32 gives here."""
    generator.denoiser.eval()
    whole = generator.sample_latents(7, 2).x0
    for first, last in ((0, 1), (3, 4), (2, 7)):
        (part,) = segments(16 + first, 16 + last, 8)
        rows = generator.prepare_rows(7, (part,)).run().x0
        torch.testing.assert_close(rows, whole[first:last], rtol=0, atol=1e-4)
    over_two = generator.prepare_rows(7, segments(6, 18, 8)).run().x0
    torch.testing.assert_close(over_two[10:], whole[:2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kv_cache", ["dynamic", "static"])
def test_nucleus_texts_of_some_rows_are_those_of_the_block(generator, kv_cache):
    """Also where transformers' own loop decodes, which draws for the rows that it is given."""
    latents = generator.sample_latents(5, 0)
    model = generator.space.space.language_model
    before = model.token_generator
    model.token_generator = TokenGenerator(GenerationOptions(whole_batches=kv_cache == "static"))
    try:
        whole = generator.decode(latents, "nucleus", 9)
        for first, last in ((0, 1), (4, 5), (2, 8)):
            assert generator.decode(latents[first:last], "nucleus", 9, Segment(0, first, last, 8)) == whole[first:last]
    finally:
        model.token_generator = before


def test_candidates_do_not_depend_on_the_batch(generator):
    def inputs(first: int, last: int) -> SampleInputs:
        return SampleInputs(mask=torch.ones(last - first, generator.space.length, dtype=torch.bool))

    expected = generator.candidates(7, 2, 3, ["greedy", "nucleus"], inputs, quiet=True)
    for size in (2, 5, 100):
        other = in_batches(generator, size)
        assert other.candidates(7, 2, 3, ["greedy", "nucleus"], inputs, quiet=True) == expected
        streamed = list(other.stream_candidates(7, 2, 3, "greedy", inputs))
        assert [row for _, rows in streamed for row in rows] == expected["greedy"]
        assert [i for examples, _ in streamed for i in examples] == list(range(7))


class SometimesEmpty(TextGenerator):
    """A generator whose every third text, or every text, is empty; texts begin with their batch and row."""

    every = 3

    def decode(self, latents, strategy, seed):
        found = super().decode(latents, strategy, seed)
        self.seen = getattr(self, "seen", 0) + 1
        return ["" if i % self.every == 0 else f"{self.seen}.{i} {text}" for i, text in enumerate(found)]


def sometimes_empty(generator: TextGenerator, every: int) -> SometimesEmpty:
    made = object.__new__(SometimesEmpty)
    made.__dict__.update(generator.__dict__, every=every, whole_blocks=True)
    return made


def test_empty_texts_are_counted_and_replaced(generator):
    sampled = sometimes_empty(generator, 3).sample(10, 42, ["greedy"], quiet=True)
    texts = sampled.texts["greedy"]
    origins = [text.split()[0] for text in texts]
    assert origins == ["1.1", "1.2", "1.4", "1.5", "1.7", "2.1", "2.2", "2.4", "2.5", "2.7"]
    assert sampled.empty["greedy"] == 6


def test_sampling_ends_where_every_text_is_empty(generator):
    sampled = sometimes_empty(generator, 1).sample(10, 42, ["greedy"], quiet=True)
    assert sampled.texts["greedy"] == [""] * 10 and sampled.empty["greedy"] == 4 * 8


def test_an_evaluation_may_set_another_batch_size(chain):
    """The default is the batch size of training; a flag given with a trained run changes what is computed together."""
    for size in (None, 3, 50):
        flags = {} if size is None else {"eval_batch_size": size}
        made = TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", **flags).generator
        assert (made.batch_size, made.block_size) == (size or 8, 8)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_weights_are_cast_once_for_all_steps(chain, is_frozen):
    """Under autocast each network call would cast them anew; the samples are the same."""
    pipeline = TextDiffusionPipeline.from_pretrained(
        chain / "diff", device="cpu", sampling_timesteps=6, mixed_precision="bf16", eval_batch_size=2
    )
    generator, found = pipeline.generator, []
    generator.denoiser.eval().requires_grad_(not is_frozen)
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
    assert not any(p.requires_grad == is_frozen for p in generator.denoiser.parameters())


@pytest.mark.parametrize("kind", ["texts", "candidates"])
def test_a_stream_that_waits_leaves_training_alone(generator, kind):
    """Between two batches, and after a stream that nobody reads to its end, the caller may train."""

    def inputs(first: int, last: int) -> SampleInputs:
        return SampleInputs(mask=torch.ones(last - first, generator.space.length, dtype=torch.bool))

    generator.denoiser.train()
    if kind == "texts":
        stream = generator.stream(40, 42, "greedy")
    else:
        stream = generator.stream_candidates(40, 1, 42, "greedy", inputs)
    try:
        next(stream)
        assert torch.is_grad_enabled() and generator.denoiser.training
    finally:
        stream.close()
        generator.denoiser.eval()
