"""Classifier-free guidance in trained runs: every sampler and objective, one forward pass for both branches."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

from pipelines.sampling.classes import class_conditions
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError
from utils.records import Condition

OBJECTIVES, SAMPLERS = ("pred_noise", "pred_x0", "pred_v"), ("ddpm", "ddim", "dpmpp")


@pytest.fixture(scope="module")
def class_runs(programs, chain, tmp_path_factory):
    """Class-conditional runs on normalized latents, one for each objective, whose output depends on the class."""
    root = tmp_path_factory.mktemp("class_runs")
    for objective in OBJECTIVES:
        flags = f"--class_conditional --self_condition --objective {objective} --learning_rate 5e-3 --ema_decay 0"
        assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", root / objective, flags) == 0
    return root


def generator(run, **flags):
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", sampling_timesteps=3, **flags)
    pipeline.generator.denoiser.eval()
    return pipeline.generator


@pytest.mark.parametrize(("objective", "sampler"), list(product(OBJECTIVES, SAMPLERS)))
def test_guidance_changes_samples_and_keeps_their_norm(class_runs, objective, sampler):
    classes = class_conditions(lambda n, _: torch.arange(n) % 4)
    plain, off, weak, strong = (
        generator(class_runs / objective, sampler=sampler, **flags).sample_latents(1, 0, classes).x0
        for flags in ({}, {"cls_free_guidance": 1}, {"cls_free_guidance": 2}, {"cls_free_guidance": 8})
    )
    assert torch.equal(plain, off)
    assert (weak - plain).abs().max() > 1e-6 and (strong - plain).norm() > (weak - plain).norm()
    torch.testing.assert_close(strong.norm(dim=-1), torch.full(strong.shape[:2], strong.shape[-1] ** 0.5))


def test_one_forward_pass_computes_both_branches(class_runs):
    guided = generator(class_runs / "pred_v", cls_free_guidance=3)
    seen, forward = [], guided.denoiser.forward

    def recorded(z, time, mask=None, condition=None, x0_self_cond=None, self_cond_mask=None):
        seen.append((len(z), condition.keep_class.tolist()))
        return forward(z, time, mask, condition, x0_self_cond, self_cond_mask)

    guided.denoiser.forward = recorded
    guided.sample_latents(1, 0, class_conditions(lambda n, _: torch.zeros(n, dtype=torch.long)), batch_size=2)
    assert seen == [(4, [True, True, False, False])] * 3


def test_guidance_is_the_same_for_every_objective(class_runs):
    """Mixing eps, x0 or v by hand, then solving for x0 and projecting, gives the estimate that the sampler gets."""
    from diffusion.denoisers import get_time_input
    from diffusion.objectives import to_x0
    from diffusion.schedules import broadcast_level

    condition = Condition.of(class_id=torch.tensor([0, 3]))
    for objective in OBJECTIVES:
        guided = generator(class_runs / objective, cls_free_guidance=4)
        process, z, t = guided.process, torch.randn(2, guided.space.length, guided.space.dim), torch.tensor([0.7, 0.3])
        with torch.no_grad():
            found = guided.make_denoise_fn(condition, None)(z, t, None)
            time = get_time_input(process.sampling_schedule, t, process.time_input)
            with_class, without = (guided.denoiser(z, time, None, c) for c in (condition, condition.null()))
        mixed = 4 * with_class - 3 * without
        expected = to_x0(process.options.objective, mixed, z, broadcast_level(process.sampling_schedule, t, z))
        torch.testing.assert_close(found, guided.space.project(expected), atol=1e-4, rtol=1e-4)


def test_an_evaluation_may_set_the_guidance_weight_and_records_it(programs, class_runs, tmp_path):
    flags = f"--eval --cls_free_guidance 2.5 --num_samples 2 --output_dir {tmp_path}"
    assert programs.again("diffusion", class_runs / "pred_x0", flags) == 0
    assert json.loads((tmp_path / "evaluation/eval-valid.json").read_text())["protocol"]["cls_free_guidance"] == 2.5


def test_guidance_needs_a_condition_and_a_null_condition(programs, chain, tmp_path):
    with pytest.raises(UserError, match="--cls_free_guidance 2 needs a condition"):
        programs.again("diffusion", chain / "diff", "--eval --cls_free_guidance 2")
    flags = "--class_conditional --class_unconditional_prob 0 --cls_free_guidance 2"
    with pytest.raises(UserError, match="also trains without the condition"):
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
    assert not (tmp_path / "run" / "checkpoints").exists()
