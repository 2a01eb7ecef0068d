"""Every choice of process, loss, sampler, network and optimizer trains and samples with the real program."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch

from diffusion.options import CONTINUOUS_SCHEDULES, DISCRETE_SCHEDULES, SAMPLERS, TIMESTEP_GRIDS
from pipelines import train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints, distributed
from utils.cli.parse import parse
from utils.errors import UserError
from utils.options import LR_SCHEDULES
from utils.trackers import read_metrics

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
LOSSES = ("l1", "l2", "smooth_l1")
SCHEDULES = [f"--train_schedule {name}" for name in CONTINUOUS_SCHEDULES] + [
    f"--beta_schedule {name} --timesteps 50" for name in DISCRETE_SCHEDULES
]
# Each schedule with one objective; those of the latent recipes with all three.
PAIRINGS = [(o, s) for s in range(len(SCHEDULES)) for o in range(3) if o == s % 3 or s < 4]


@pytest.fixture(scope="module")
def train(programs, chain, tmp_path_factory):
    """A function: train two steps and sample four texts with some flags -> the run folder, after checks of its log."""

    def run(flags: str, space: str = f"--latent_model_path {chain / 'ae'}") -> Path:
        folder = tmp_path_factory.mktemp("variant") / "run"
        assert programs.diffusion(space, folder, flags) == 0
        lines = read_metrics(folder)
        finite = [
            line[key] for line in lines for key in ("loss", "grad_norm", "val_loss", "val_ema_loss") if key in line
        ]
        assert len(finite) == 8 and all(math.isfinite(x) for x in finite), lines
        assert all(bool(x.isfinite().all()) for x in checkpoints.load(folder).tensors["ema"].values())
        assert len((folder / "greedy-sample-1.txt").read_text().splitlines()) == 4
        return folder

    return run


def test_each_sampling_writes_its_own_file(programs, chain, tmp_path):
    """Also where --sample_every is shorter than the interval of checkpoints, and after the last step."""
    flags = "--num_train_steps 5 --sample_every 2 --num_samples 2"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path, flags) == 0
    assert sorted(file.name for file in tmp_path.glob("*-sample-*.txt")) == [
        f"greedy-sample-{k}.txt" for k in (1, 2, 3)
    ]


# Loss, sampler and grid take turns, so that each is combined with many of the others.
@pytest.mark.parametrize("i", range(len(PAIRINGS)))
def test_objectives_on_schedules(train, i):
    o, s = PAIRINGS[i]
    train(
        f"--objective {OBJECTIVES[o]} {SCHEDULES[s]} --loss_type {LOSSES[(o + s) % 3]} "
        f"--sampler {SAMPLERS[i % 5]} --time_grid {TIMESTEP_GRIDS[(i // 5 + i) % 5]} --self_condition"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "loss", "schedule", "sampler"), list(product(OBJECTIVES, LOSSES, SCHEDULES, SAMPLERS))
)
def test_every_combination(train, objective, loss, schedule, sampler):
    train(f"--objective {objective} --loss_type {loss} {schedule} --sampler {sampler}")


@pytest.mark.parametrize(
    "flags",
    [
        "--scale_shift --num_dense_connections 2 --tx_depth 4 --self_condition",
        "--num_dense_connections 2 --skip_pairing ld4lg --tx_depth 4",
        "--denoiser_variant states --self_condition --scale_shift",
        "--denoiser_variant mlp --tx_dim 50 --class_conditional --self_condition",
        "--train_schedule tan --objective pred_v --loss_weighting x0 --schedule_sampler adaptive "
        "--config importance_bins=4 --sampler heun --renoise_gamma 1",
        "--beta_schedule linear --timesteps 50 --learned_variance --self_condition --class_conditional "
        "--cls_free_guidance 2",
        "--beta_schedule cosine --timesteps 50 --learned_variance --denoiser_variant mlp --sampler ddim "
        "--renoise_gamma 1",
        "--class_conditional --self_condition --scale_shift",
        "--linear_denoiser --self_condition --objective pred_v",
        "--linear_denoiser --denoiser_variant mlp --train_schedule rectified_flow --objective pred_x0",
        "--linear_denoiser --beta_schedule cosine --timesteps 50 --learned_variance",
        "--class_conditional --class_unconditional_prob 0",
        "--normalize_latent --config normalize_batches=3",
        "--optimizer Lion --learning_rate 1e-5 --disable_dropout",
        "--optimizer muon --learning_rate 1e-3 --self_condition",
        "--reference_kernels",
        "--no_latent_cache --self_condition",
        "--beta_schedule linear --ddim_sampling_eta 0.5",
        "--loss_weighting min_snr --config min_snr_gamma=3 --objective pred_x0 --truncate_noise 0.9",
        "--sampler dpmpp_sde --time_grid shifted --grid_shift 2",
        "--train_schedule cosine --sampling_schedule simple_linear --scale 0.5 --posterior_variance small",
        "--p2_loss_weight_gamma 1 --train_prob_self_cond 1.0 --self_condition",
        "--mixed_precision bf16 --self_condition",
        "--mixed_precision bf16 --no_latent_cache",
        "--decoding beam,nucleus,greedy",
    ],
)
def test_each_flag_trains_and_samples(train, flags):
    train(flags)


def test_a_flow_on_the_scale_of_its_dimension(train):
    """The process of ELF on a residual MLP. args.json holds the scale, so that the run samples on its own schedule."""
    folder = train(
        "--denoiser_variant mlp --train_schedule rectified_flow --objective pred_x0 --loss_weighting flow "
        "--self_condition --train_prob_self_cond 0.95 --self_cond_noise 0.3 --schedule_sampler logit_normal "
        "--config time_logit_mean=0.8 --config time_logit_std=0.8 --sampler ddim --renoise_gamma 1.5 "
        "--scale_by_dimension"
    )
    args = json.loads((folder / "args.json").read_text())
    assert args["scale"] == pytest.approx(math.sqrt(4096 / (args["latent_length"] * args["latent_dim"])))
    process = _generator(folder, "").process
    assert process.train_schedule == process.sampling_schedule and process.train_schedule.scale == args["scale"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--scale_by_dimension --scale 2", "give one"),
        ("--posterior_variance learned", "--learned_variance"),
        ("--sampler ddim --ddim_sampling_eta 0.5 --renoise_gamma 1", "drop one of them"),
        ("--sampler dpmpp --renoise_gamma 1", "--renoise_gamma belongs to --sampler ddim or heun, not to dpmpp: drop"),
        ("--schedule_sampler adaptive", "pred_v, pred_x0 or pred_flow"),
    ],
)
def test_settings_that_exclude_each_other_are_one_line(programs, chain, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
    assert "\n" not in str(error.value)


def test_respacing_selects_any_steps_of_a_chain(train):
    folder = train("--beta_schedule sqrt --timesteps 40")
    generator = _generator(folder, "--timestep_respacing 2,1 --sampler dpmpp")
    assert generator.steps == 3
    assert torch.equal(40 * generator.process.grid(generator.steps), torch.tensor([21.0, 20.0, 1.0, 0.0]).double())
    assert generator.sample_latents(42, 0).x0.isfinite().all()


@pytest.mark.parametrize("process", ["", pytest.param("--beta_schedule linear", marks=pytest.mark.slow)])
@pytest.mark.parametrize("T_schedule", ["linear", "polynomial", "cosine", "unsmooth"])
def test_annealed_timesteps_end_with_the_whole_range(train, T_schedule, process):
    folder = train(f"--T_schedule {T_schedule} --polynomial_T_power 3 {process}")
    assert [line["t_max"] for line in read_metrics(folder) if "t_max" in line][-1] == 1


@pytest.mark.parametrize("flags", ["", "--denoiser_variant states --beta_schedule linear --normalize_latent"])
def test_encoder_states_with_a_length_prior(train, programs, chain, tales_folder, flags):
    folder = train(f"--self_condition --objective pred_x0 {flags}", space=f"--enc_dec_model {chain / 'lm'}")
    counts = checkpoints.load(folder).tensors["model"]["statistics.length_counts"]
    assert counts.sum() == 200 and not counts[:10].any() and len(counts) == 41
    generator = _generator(folder, "")
    lengths = generator.sample_latents(42, 0).mask.sum(1)
    assert bool(counts[lengths].all()), "no training text has one of these lengths"


FAST = ("linear", "polynomial", "reduce_lr_on_plateau")  # the others differ only in a function


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LR_SCHEDULES]
)
def test_learning_rate_schedules(train, name):
    """Both steps are in the warm-up of 2 steps, of which cosine_warmup_with_min_lr leaves out the step at 0."""
    rates = [line["learning_rate"] for line in read_metrics(train(f"--lr_schedule {name}")) if "loss" in line]
    without_warmup = ("constant", "reduce_lr_on_plateau", "greedy")
    assert rates == pytest.approx(
        [1e-4, 1e-4] if name in without_warmup else [5e-5, 1e-4] if name == "cosine_warmup_with_min_lr" else [0, 5e-5]
    )


@pytest.fixture(scope="module", params=["continuous", "discrete"])
def normalized(request, chain, train) -> Path:
    """A run on latents of norm sqrt(64)."""
    if request.param == "continuous":
        return chain / "diff"
    return train("--beta_schedule cosine", space=f"--latent_model_path {chain / 'ae_l2'}")


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_of_a_normalized_autoencoder_have_its_norm(normalized, sampler, steps):
    latents = _generator(normalized, f"--sampler {sampler} --sampling_timesteps {steps}").sample_latents(42, 0).x0
    assert latents.shape == (8, 4, 64)
    torch.testing.assert_close(latents.norm(dim=-1), torch.full((8, 4), 8.0))


def _generator(folder: Path, flags: str):
    """The generator of a trained run, as --eval makes it."""
    words = flags.split()
    typed = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    return TextDiffusionPipeline.from_pretrained(folder, device="cpu", **typed).generator


def test_an_unset_precision_is_that_which_the_device_computes_fast(programs, chain, tmp_path, monkeypatch, capsys):
    asked = f"{programs.data} --latent_model_path {chain / 'ae'} --device cpu --max_seq_len 40 --tx_dim 64 --tx_depth 1"
    few = f"--num_train_steps 1 --train_batch_size 8 --num_samples 2 --sampling_timesteps 2 --scorer {programs.scorer}"
    for fast, precision in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(distributed, "has_bf16", lambda device=None, fast=fast: fast)
        folder = tmp_path / precision
        settings = parse(DIFFUSION, f"{asked} {few} --decoding greedy --output_dir {folder}".split())
        assert train_diffusion.train(settings) == 0
        assert json.loads((folder / "args.json").read_text())["mixed_precision"] == precision
        assert ("mixed precision in bfloat16" in capsys.readouterr().err) == fast
