"""Variations of texts and interpolation between two: strength, conditions, DDIM inversion, and mistakes."""

from __future__ import annotations

import pytest
import torch

from pipelines.sampling.sdedit import SDEditStart, ddim_inversion_path, move, sdedit, slerp
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError
from utils.records import Latents

TEXTS = ["Ben ran to the garden one warm night.", "Later she gave it to her mother."]
SPACE = "--latent_space embeddings --embedding_dim 16 --max_seq_len 24 --num_train_steps 2 --class_conditional"


@pytest.fixture(scope="module")
def pipeline(chain) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", sampling_timesteps=10)


@pytest.fixture(scope="module")
def embedding_pipeline(programs, tmp_path_factory) -> TextDiffusionPipeline:
    """A run of token embeddings whose texts differ in length, with classes."""
    folder = tmp_path_factory.mktemp("words") / "run"
    assert programs.diffusion(SPACE + " --padding masked", folder) == 0
    return TextDiffusionPipeline.from_pretrained(folder, device="cpu", sampling_timesteps=10)


def test_strength_1_equals_sampling_from_noise(pipeline):
    clean, generator = pipeline.encode(TEXTS), pipeline.generator
    noise_alone = generator.sample_latents(3, 0).x0[:2]
    # cosine at t = 1 leaves alpha at a few thousandths, or none
    torch.testing.assert_close(sdedit(generator, clean, 1.0, 3).x0, noise_alone, atol=2e-2, rtol=0)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_sampling_starts_at_the_time_that_strength_names(pipeline, tenths):
    call = pipeline.generator.prepare(3, 0)
    SDEditStart(pipeline.encode(TEXTS[:1]).x0.expand_as(call.z), tenths / 10)(call)
    assert float(call.timesteps[0]) == pytest.approx(tenths / 10) and len(call.timesteps) == tenths + 1


@pytest.mark.parametrize("shift", [None, 2.0])
def test_it_starts_at_the_noised_latents(pipeline, shift):
    """Under an absorbing state in the coordinates of the sampler, which takes x - m."""
    call = pipeline.generator.prepare(3, 0)
    x0, noise = pipeline.encode(TEXTS[:1]).x0.expand_as(call.z), call.z.clone()
    call.shift = None if shift is None else torch.full_like(call.z[:1, :1], shift)
    SDEditStart(x0, 0.3)(call)
    level = call.schedule(call.timesteps[0])
    torch.testing.assert_close(call.z, (level.alpha * (x0 - (shift or 0)) + level.sigma * noise).to(call.z))


def test_a_larger_strength_changes_latents_more(pipeline):
    clean = pipeline.encode(TEXTS)
    away = [(sdedit(pipeline.generator, clean, s, 3).x0 - clean.x0).norm() for s in (0.1, 0.4, 1.0)]
    assert away[0] < away[1] < away[2]


def test_variations_have_the_number_asked_for_and_depend_on_the_seed(pipeline):
    found = pipeline.variations(TEXTS, 3, strength=0.8, seed=1)
    assert [len(row) for row in found] == [3, 3]
    assert found == pipeline.variations(TEXTS, 3, strength=0.8, seed=1)
    clean = pipeline.encode(TEXTS).repeat(2)
    latents = sdedit(pipeline.generator, clean, 0.8, 1).x0
    assert not torch.equal(latents[0], latents[1]), "each variation of a text gets its own noise"


def test_more_texts_than_a_batch_are_split(pipeline):
    clean = pipeline.encode(TEXTS[:1]).repeat(pipeline.generator.batch_size + 1)
    assert sdedit(pipeline.generator, clean, 0.5, 1).x0.shape == clean.x0.shape


def test_slerp_keeps_norms_and_ends_and_turns_evenly():
    a, b = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    b = b * a.norm() / b.norm()
    mask = torch.ones(1, 4, dtype=torch.bool)
    arc = slerp(Latents(a, mask), Latents(b, mask), 7).x0
    torch.testing.assert_close(arc[:1], a)
    torch.testing.assert_close(arc[-1:], b)
    torch.testing.assert_close(arc.flatten(1).norm(dim=1), a.norm().expand(7))
    turn = torch.nn.functional.cosine_similarity(arc[1:].flatten(1), arc[:-1].flatten(1)).acos()
    torch.testing.assert_close(turn, turn[:1].expand(6), atol=1e-4, rtol=1e-4)
    same = slerp(Latents(a, mask), Latents(a, mask), 3).x0
    torch.testing.assert_close(same, a.expand(3, -1, -1))


def test_move_adds_a_direction_and_keeps_norms():
    a, b = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.ones(3, 4, dtype=torch.bool)
    still = move(Latents(a, mask), torch.zeros(4, 8)).x0
    torch.testing.assert_close(still, a)
    moved = move(Latents(a, mask), 2 * b[0]).x0
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(1), (a + 2 * b[0]).flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3))
    assert torch.isfinite(move(Latents(a, mask), -a[0]).x0).all(), "a text may be subtracted from itself"


def test_an_edit_goes_from_a_text_towards_what_is_added(pipeline):
    found = pipeline.edit(TEXTS, 2, add=TEXTS[1], remove=[TEXTS[0]], seed=1)
    assert [len(row) for row in found] == [2, 2]
    assert found == pipeline.edit(TEXTS, 2, add=[TEXTS[1]] * 2, remove=TEXTS[0], seed=1), "several texts by their mean"
    none = pipeline.edit(TEXTS, 2, add=TEXTS[1], remove=TEXTS[0], weight=0, seed=1)
    assert none == pipeline.variations(TEXTS, 2, strength=0.3, seed=1)
    far = pipeline.edit(TEXTS[:1], add=TEXTS[1], remove=TEXTS[0], strength=0.2, decoding="greedy")[0]
    assert far == pipeline.variations(TEXTS[1:], strength=0.2, decoding="greedy")[0]


def test_interpolation_is_repeatable_and_its_ends_stay_near_the_texts(pipeline):
    found = pipeline.interpolate(*TEXTS, 4, strength=0.2)
    assert len(found) == 4
    assert found == pipeline.interpolate(*TEXTS, 4, strength=0.2)
    # little noise was added, so the ends are nearer to their own text than to the other; the network is barely trained
    clean = pipeline.encode(TEXTS)
    near = sdedit(pipeline.generator, clean, 0.2, 42, shared_noise=True).x0
    assert (near - clean.x0).norm() < (near - clean.x0.flip(0)).norm()


@pytest.fixture(scope="module")
def invertible(programs, chain, tmp_path_factory) -> TextDiffusionPipeline:
    """A run that predicts v, on normalized latents, trained until DDIM inversion works."""
    folder = tmp_path_factory.mktemp("invertible") / "run"
    flags = f"--latent_model_path {chain / 'ae_l2'} --objective pred_v --time_grid log_snr"
    assert programs.diffusion(flags, folder, "--num_train_steps 60 --learning_rate 3e-3 --log_every 60") == 0
    return TextDiffusionPipeline.from_pretrained(folder, device="cpu", sampling_timesteps=20)


def test_ddim_inversion_reconstructs_the_ends(invertible):
    ends, generator = invertible.encode(TEXTS), invertible.generator
    made = ddim_inversion_path(generator, ends[:1], ends[1:], 5)
    assert made.x0.shape == (5, generator.space.length, generator.space.dim)
    error = (made.x0[[0, -1]] - ends.x0).square().mean() / ends.x0.square().mean()
    unlike = (made.x0[[0, -1]] - ends.x0.flip(0)).square().mean() / ends.x0.square().mean()
    near = sdedit(generator, ends, 0.5, 42, shared_noise=True).x0
    assert error < 0.1 and error < 0.2 * unlike and error < (near - ends.x0).square().mean() / ends.x0.square().mean()
    norms = made.x0.norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, generator.space.dim**0.5))
    found = invertible.interpolate(*TEXTS, 3, invert=True)
    assert len(found) == 3 and found == invertible.interpolate(*TEXTS, 3, invert=True, seed=7), "nothing is drawn"


def test_variations_take_a_class_and_keep_lengths(embedding_pipeline):
    clean = embedding_pipeline.encode(TEXTS)
    of_class = [embedding_pipeline.variations(TEXTS, 1, strength=0.9, class_id=c) for c in (0, 1)]
    assert all(len(rows) == 2 for rows in of_class)
    made = sdedit(embedding_pipeline.generator, clean, 0.9, 1)
    assert torch.equal(made.mask, clean.mask) and not bool(clean.mask.all())


def test_texts_of_equal_lengths_are_interpolated_and_edited_where_lengths_vary(embedding_pipeline):
    first, second = "Ben ran to the garden.", "Ben ran to the harbor."
    lengths = embedding_pipeline.encode([first, second]).mask.sum(1).tolist()
    assert lengths[0] == lengths[1] < embedding_pipeline.generator.space.length
    assert len(embedding_pipeline.interpolate(first, second, 3)) == 3
    assert [len(row) for row in embedding_pipeline.edit([first], 2, add=second, remove=first)] == [2]


def test_mistakes_raise_one_line_errors(pipeline, embedding_pipeline):
    for strength in (0, -0.5, 1.5):
        with pytest.raises(UserError, match="strength is"):
            pipeline.variations(TEXTS, strength=strength)
    with pytest.raises(UserError, match="smaller than the last sampling step"):
        pipeline.variations(TEXTS, strength=0.01)
    with pytest.raises(UserError, match=r"texts of \d+ to \d+ latents differ in length and cannot be interpolated"):
        embedding_pipeline.interpolate(*TEXTS)
    with pytest.raises(UserError, match="cannot be subtracted"):
        embedding_pipeline.edit(TEXTS[:1], add=TEXTS[0], remove=TEXTS[1])
    with pytest.raises(UserError, match="weight is 'x'"):
        pipeline.edit(TEXTS, add=TEXTS[0], remove=TEXTS[1], weight="x")
    with pytest.raises(UserError, match="blank"):
        pipeline.edit(TEXTS, add="", remove=TEXTS[1])
    with pytest.raises(UserError, match="without classes"):
        pipeline.variations(TEXTS, class_id="sports")
    with pytest.raises(UserError, match="2 or more"):
        pipeline.interpolate(*TEXTS, 1)
    with pytest.raises(UserError, match="DDIM inversion adds none"):
        pipeline.interpolate(*TEXTS, 3, strength=0.5, invert=True)
    with pytest.raises(UserError, match="does not reconstruct these texts"):
        pipeline.interpolate(*TEXTS, 3, invert=True)  # it predicts noise, after two steps of training
