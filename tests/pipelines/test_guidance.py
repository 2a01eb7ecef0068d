"""Classifier-free guidance through the real programs: every sampler and objective, one pass for both branches."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

from pipelines.sampling.generate import of_labels
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError
from utils.records import Condition

OBJECTIVES, SAMPLERS = ("pred_noise", "pred_x0", "pred_v"), ("ddpm", "ddim", "dpmpp")


@pytest.fixture(scope="module")
def classy(programs, chain, tmp_path_factory):
    """A class-conditional run of each objective, on normalised latents, whose network says something."""
    root = tmp_path_factory.mktemp("classy")
    for objective in OBJECTIVES:
        flags = f"--class_conditional --self_condition --objective {objective} --learning_rate 5e-3 --ema_decay 0"
        assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", root / objective, flags) == 0
    return root


def generator(run, **flags):
    pipeline = TextDiffusionPipeline.from_run(run, device="cpu", sampling_timesteps=3, **flags)
    pipeline.generator.denoiser.eval()
    return pipeline.generator


@pytest.mark.parametrize(("objective", "sampler"), list(product(OBJECTIVES, SAMPLERS)))
def test_guidance_moves_samples_and_stays_on_the_sphere(classy, objective, sampler):
    classes = of_labels(lambda n, _: torch.arange(n) % 4)
    plain, off, weak, strong = (
        generator(classy / objective, sampler=sampler, **flags).latents(1, 0, classes).x0
        for flags in ({}, {"cls_free_guidance": 1}, {"cls_free_guidance": 2}, {"cls_free_guidance": 8})
    )
    assert torch.equal(plain, off)
    assert (weak - plain).abs().max() > 1e-6 and (strong - plain).norm() > (weak - plain).norm()
    torch.testing.assert_close(strong.norm(dim=-1), torch.full(strong.shape[:2], strong.shape[-1] ** 0.5))


def test_one_pass_holds_both_branches(classy):
    guided = generator(classy / "pred_v", cls_free_guidance=3)
    seen, forward = [], guided.denoiser.forward

    def watched(z, time, mask=None, condition=None, x0_prev=None, has_prev=None):
        seen.append((len(z), condition.keep_class.tolist()))
        return forward(z, time, mask, condition, x0_prev, has_prev)

    guided.denoiser.forward = watched
    guided.latents(1, 0, of_labels(lambda n, _: torch.zeros(n, dtype=torch.long)), rows=2)
    assert seen == [(4, [True, True, False, False])] * 3


def test_every_objective_means_the_same_guidance(classy):
    """eps, x0 and v mixed by hand, then solved for x0 and projected, give the estimate that the sampler is shown."""
    from diffusion.denoisers import time_value
    from diffusion.objectives import to_x0
    from diffusion.schedules import level_at

    condition = Condition.of(class_id=torch.tensor([0, 3]))
    for objective in OBJECTIVES:
        guided = generator(classy / objective, cls_free_guidance=4)
        process, z, t = guided.process, torch.randn(2, guided.space.length, guided.space.dim), torch.tensor([0.7, 0.3])
        with torch.no_grad():
            found = guided.denoise(condition, None)(z, t, None)
            time = time_value(process.sampling_schedule, t, process.time_input)
            with_class, without = (guided.denoiser(z, time, None, c) for c in (condition, condition.null()))
        mixed = 4 * with_class - 3 * without
        expected = to_x0(process.options.objective, mixed, z, level_at(process.sampling_schedule, t, z))
        torch.testing.assert_close(found, guided.space.project(expected), atol=1e-4, rtol=1e-4)


def test_the_weight_is_an_evaluations_own_and_stands_in_its_protocol(programs, classy, tmp_path):
    flags = f"--eval --cls_free_guidance 2.5 --num_samples 2 --output_dir {tmp_path}"
    assert programs.again("diffusion", classy / "pred_x0", flags) == 0
    assert json.loads((tmp_path / "evaluation/eval-valid.json").read_text())["protocol"]["cls_free_guidance"] == 2.5


def test_guidance_of_nothing_is_refused(programs, chain, tmp_path):
    with pytest.raises(UserError, match="--cls_free_guidance 2 needs a condition"):
        programs.again("diffusion", chain / "diff", "--eval --cls_free_guidance 2")
    flags = "--class_conditional --class_unconditional_prob 0 --cls_free_guidance 2"
    with pytest.raises(UserError, match="knows the null condition"):
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
    assert not (tmp_path / "run" / "checkpoints").exists()
