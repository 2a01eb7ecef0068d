"""Joint training of autoencoder and denoiser (--joint_run), and adaptation of a decoder in one command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.normalization import LatentStatistics
from pipelines.adapt_decoder import adapt_decoder, adaptation, main
from pipelines.builders.adapted import use_adapted_decoder
from pipelines.builders.joint import left_out
from pipelines.builders.models import ADAPTED_COPY
from pipelines.cli.programs import AUTOENCODER, DIFFUSION
from pipelines.load_run import load_run
from pipelines.steps.joint import JointStep, RunningStatistics, scale_gradient
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.distributed import DistContext
from utils.errors import UserError
from utils.records import Latents
from utils.run_folder import write_json
from utils.state import chosen_ema
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]
WARMUP = 4
FLAGS = (
    f"--joint_warmup_steps {WARMUP} --config joint_noise=0.4 --num_train_steps 16 --train_batch_size 8 "
    "--gradient_accumulation_steps 2 --learning_rate 2e-3 --save_and_sample_every 8"
)


@pytest.fixture(scope="module")
def start(programs, chain, tmp_path_factory):
    """A diffusion run on normalized latents of the chain's autoencoder."""
    folder = tmp_path_factory.mktemp("joint") / "diff"
    flags = "--normalize_latent --self_condition --num_train_steps 8"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", folder, flags) == 0
    return folder


@pytest.fixture(scope="module")
def train(programs):
    from pipelines import train_diffusion

    def run(folder: Path, joint_run: Path, flags: str = FLAGS) -> int:
        defaults = (
            f"--device cpu --lr_warmup_steps 2 --no_wandb --mixed_precision no --eval_batch_size 8 --num_samples 4 "
            f"--log_every 1 --decoding greedy --scorer {programs.scorer} --config val_loss_examples=16"
        )
        argv = f"{defaults} --joint_run {joint_run} --output_dir {folder} {flags}"
        return train_diffusion.train(parse(DIFFUSION, argv.split()))

    return run


@pytest.fixture(scope="module")
def joint(train, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint") / "joint"
    assert train(folder, start) == 0
    return folder


def autoencoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.load_best(folder / "autoencoder").tensors["model"]
    return {name: x for name, x in found.items() if name.startswith("autoencoder.")}


def test_all_three_learn_and_their_losses_fall(start, joint):
    lines = [line for line in read_metrics(joint) if "reconstruction" in line]
    assert len(lines) == 16
    assert all(key in lines[0] for key in ("diffusion", "reconstruction", "loss_q0", "learning_rate"))
    first, last = lines[:4], lines[-4:]
    for name in ("loss", "reconstruction"):
        assert sum(line[name] for line in last) < sum(line[name] for line in first), name
    before, after = autoencoder_weights(start), autoencoder_weights(joint)
    moved = {name.split(".")[1] for name, x in before.items() if not torch.equal(x, after[name])}
    assert moved == {"encoder", "decoder"}
    saved = checkpoints.load(joint).tensors["model"]
    assert not any("language_model" in name and "bias" not in name for name in saved), "the language model stays frozen"


def test_whether_its_latents_decide_is_measured_of_its_autoencoder(programs, joint, tmp_path):
    flags = f"--eval --eval_texts 8 --decoding greedy --device cpu --output_dir {tmp_path}"
    assert programs.again("autoencoder", joint / "autoencoder", flags) == 0
    found = json.loads((tmp_path / "evaluation/eval-valid.json").read_text())
    for key in ("greedy/similarity", "swapped/similarity", "loss_clean", "loss_without_latents"):
        assert f"decoder/{key}" in found


def test_a_new_run_starts_from_the_averages_of_the_run_and_its_flags(train, start, joint, tmp_path):
    found = read_args(joint)
    before = read_args(start)
    for name in ("tx_dim", "self_condition", "normalize_latent", "train_file", "sampling_timesteps", "max_seq_len"):
        assert found[name] == before[name], name
    assert (
        train(tmp_path / "none", start, "--num_train_steps 1 --learning_rate 1e-12 --config joint_statistics=fixed")
        == 0
    )
    old, new = checkpoints.load(start), checkpoints.load(tmp_path / "none").tensors["model"]
    for name, x in old.tensors["ema"].items():
        torch.testing.assert_close(new[name], x, atol=1e-6, rtol=1e-6)


def test_the_denoisers_loss_reaches_the_encoder_only_after_the_warm_up(train, start, tmp_path, monkeypatch):
    """With no weight on reconstruction, the encoder has a gradient from the diffusion loss alone."""
    norms: list[float] = []
    call = JointStep.__call__

    def observed(self: JointStep, step: int, micro: int):
        losses, logged = call(self, step, micro)
        if self.timestep_sampler is not None:  # the training step
            encoder = [p for p in self.joint.compressed.autoencoder.encoder.parameters() if p.requires_grad]
            own = logged["diffusion"].new_zeros(())
            found = torch.autograd.grad(losses.sum(), encoder, retain_graph=True, allow_unused=True)
            norms.append(float(sum((g.norm() for g in found if g is not None), own)))
        return losses, logged

    monkeypatch.setattr(JointStep, "__call__", observed)
    flags = FLAGS.replace("--num_train_steps 16", "--num_train_steps 6")
    assert train(tmp_path / "out", start, f"{flags} --config joint_reconstruction_weight=0") == 0
    warm, after = norms[: 2 * WARMUP], norms[2 * WARMUP :]
    assert len(after) == 4 and not any(warm) and all(after)


def test_the_gradient_is_scaled_and_the_value_is_not():
    x = torch.randn(5, requires_grad=True)
    for share in (0.0, 0.25, 1.0):
        scaled = scale_gradient(x, share)
        torch.testing.assert_close(scaled, x)
        if share:
            (gradient,) = torch.autograd.grad((3 * scaled).sum(), x)
            torch.testing.assert_close(gradient, torch.full_like(x, 3 * share))
        else:
            assert not scaled.requires_grad


def test_it_resumes_exactly(programs, train, start, joint, stopped_run, fingerprints, tmp_path):
    stopped_run("diffusion", JointStep, lambda: train(tmp_path / "parts", start), tmp_path / "parts")
    assert fingerprints(tmp_path / "parts") == fingerprints(joint)
    one, other = autoencoder_weights(joint), autoencoder_weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_train_as_one(train, start, programs, tmp_path):
    """The autoencoder runs outside the network that DDP calls, and its gradients are averaged all the same."""
    flags = "--joint_warmup_steps 1 --disable_dropout --num_train_steps 3 --learning_rate 1e-3"
    assert train(tmp_path / "one", start, f"{flags} --train_batch_size 8") == 0
    argv = (
        f"--device cpu --lr_warmup_steps 2 --no_wandb --mixed_precision no --eval_batch_size 8 --num_samples 4 "
        f"--log_every 1 --decoding greedy --scorer {programs.scorer} --config val_loss_examples=16 --joint_run {start} "
        f"--output_dir {tmp_path / 'two'} {flags} --train_batch_size 4"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, "train_text_diffusion.py", *argv.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (checkpoints.load(tmp_path / name).tensors["model"] for name in ("one", "two"))
    for name, x in one.items():
        torch.testing.assert_close(x, two[name], atol=1e-5, rtol=1e-4)


def test_running_statistics_take_a_hundredth_of_each_batch_of_valid_latents():
    class Source:
        recorded = None

    statistics, generator = LatentStatistics(3, 4), torch.Generator().manual_seed(0)
    hook = RunningStatistics(statistics, Source(), DistContext())
    parts = [2 + 3 * torch.randn(5, 4, 3, generator=generator) for _ in range(2)]
    mask = torch.arange(4) < torch.tensor([4, 2, 1, 3, 4])[:, None]
    hook.recorded += [Latents(part, mask) for part in parts]
    valid = torch.cat([part[mask] for part in parts])
    hook(None, None)
    mean, scale = valid.mean(0), (valid - valid.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(statistics.mean, 0.01 * mean)
    torch.testing.assert_close(statistics.scale, 0.99 + 0.01 * scale)
    assert hook.recorded == []


def test_statistics_follow_the_latents_or_stay(train, start, joint, tmp_path):
    before = checkpoints.load(start).tensors["model"]
    after = checkpoints.load(joint).tensors["model"]
    assert not torch.equal(before["statistics.mean"], after["statistics.mean"])
    assert train(tmp_path / "fixed", start, "--num_train_steps 2 --config joint_statistics=fixed") == 0
    fixed = checkpoints.load(tmp_path / "fixed").tensors["model"]
    torch.testing.assert_close(fixed["statistics.mean"], before["statistics.mean"])


def test_the_run_is_an_ordinary_one(programs, joint, tmp_path):
    """Its copy of the autoencoder holds the averages of its checkpoint; sampling, evaluation and saving read it."""
    checkpoint = checkpoints.load(joint)
    averages, copy = checkpoint.tensors[chosen_ema(checkpoint)], autoencoder_weights(joint)
    assert all(torch.equal(averages[f"space.{name}"], x) for name, x in copy.items())
    run = load_run(joint, device="cpu")
    own = CompressedSpace.from_pretrained(joint / "autoencoder")
    space = run.components.space.space
    assert isinstance(space, CompressedSpace) and space.encoding_fingerprint() == own.encoding_fingerprint()
    assert programs.again("diffusion", joint, "--eval") == 0
    pipeline = TextDiffusionPipeline.from_pretrained(joint, device="cpu")
    texts = pipeline(num_samples=3, seed=1)
    pipeline.save_pretrained(tmp_path / "saved")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert list(again(num_samples=3, seed=1)) == list(texts)


def test_its_decoder_is_adapted_in_one_command(programs, joint, tmp_path):
    flags = "--num_train_steps 2 --device cpu --no_wandb --decoding greedy --eval_texts 4 --config denoiser_steps=2"
    assert main([str(joint), "--output_dir", str(tmp_path / "adapted"), *flags.split()]) == 0
    before = CompressedSpace.from_pretrained(joint / "autoencoder")
    after = CompressedSpace.from_pretrained(tmp_path / "adapted")
    assert before.encoding_fingerprint() == after.encoding_fingerprint() and before.fingerprint() != after.fingerprint()
    assert programs.again("diffusion", joint, f"--eval --latent_model_path {tmp_path / 'adapted'}") == 0
    run = load_run(joint, device="cpu", latent_model_path=str(tmp_path / "adapted"))
    space = run.components.space.space
    assert isinstance(space, CompressedSpace) and space.fingerprint() == after.fingerprint(), "and not that of the run"


def test_an_adapted_decoder_decodes_its_samples_until_it_trains_on(programs, joint, tmp_path):
    """Its checkpoint holds a decoder, too, which gives way to the adapted one; further training changes the latents."""
    run = shutil.copytree(joint, tmp_path / "joint")
    flags = "--num_train_steps 4 --device cpu --no_wandb --decoding greedy --eval_texts 4 --config denoiser_steps=2"
    assert adapt_decoder(run, tmp_path / "adapted", flags.split()) == 0
    use_adapted_decoder(run, tmp_path / "adapted")
    space = load_run(run, device="cpu").components.space.space
    assert isinstance(space, CompressedSpace)
    assert space.fingerprint() == CompressedSpace.from_pretrained(tmp_path / "adapted").fingerprint()
    assert programs.resume("diffusion", run) == 0  # its last step is made
    assert (run / ADAPTED_COPY).is_dir()
    assert programs.resume("diffusion", run, "--num_train_steps 18") == 0
    assert not (run / ADAPTED_COPY).exists()
    texts = TextDiffusionPipeline.from_pretrained(run, device="cpu")(num_samples=2, seed=1)
    assert len(list(texts)) == 2


def test_what_joint_training_leaves_out_is_named(chain, tmp_path):
    assert left_out(chain / "ae") is None
    (tmp_path / "args.json").write_text(
        json.dumps(read_args(chain / "ae") | {"state_mask_prob": 0.3, "alignment_weight": 0.5, "kl_weight": 1})
    )
    flags = "--alignment_weight 0.5, --state_mask_prob 0.3"
    assert left_out(tmp_path) == f"note: joint training goes on without {flags} of the autoencoder"


def test_an_adaptation_has_the_network_and_the_corpus_of_the_run(programs, chain, tmp_path):
    program, argv = adaptation(chain / "diff", tmp_path / "out", ["--num_train_steps", "5"])
    settings = parse(program, argv)
    assert program is AUTOENCODER and settings.config.perceiver.l2_normalize_latents
    assert (settings.config.perceiver.num_encoder_latents, settings.config.perceiver.dim_ae) == (4, 64)
    assert settings.config.autoencoder.lm_mode == "decoder" and settings.config.loop.num_train_steps == 5
    assert settings.config.data.train_file == read_args(chain / "diff")["train_file"]
    begun = tmp_path / "out"
    for typed in (["--resume_training"], ["--resume_training", "--resume_dir", str(begun)]):
        again = adaptation(chain / "diff", begun, typed)
        assert again[0] is AUTOENCODER and " ".join(again[1]).replace("=", " ").split().count("--resume_dir") == 1
        assert not any("num_train_steps" in word or "denoiser_run" in word for word in again[1]), "as it was begun"
        assert str(begun) in " ".join(again[1])
    with pytest.raises(UserError, match="diffuses latents without a decoder that can be adapted"):
        adapt_decoder(chain / "states")
    with pytest.raises(UserError, match="is not a run of train_text_diffusion.py"):
        adapt_decoder(chain / "ae")


def test_what_does_not_fit_is_refused(train, programs, chain, start, tmp_path):
    for joint_run, flags, message in (
        (chain / "states", "", "does not diffuse latents of an autoencoder"),
        (chain / "ae", "", "is not a run of train_text_diffusion.py"),
        (start, "--tx_dim 128", "--tx_dim 128 differs from 64.*leave it out"),
        (start, f"--init_path {start}", "--joint_run and --init_path both choose the weights"),
        (start, f"--distill_run {start}", "--joint_run and --distill_run both choose|joint"),
    ):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "out", joint_run, flags)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_latents_a_language_model_decodes_is_refused_by_that_reason(tmp_path):
    for name, args in ((".", {"program": DIFFUSION.name}), ("text_decoder", {"decoder_model": "lm"})):
        write_json(tmp_path / name / "args.json", {"schema_version": 2, **args})
    with pytest.raises(UserError, match="a --decoder_model decodes its latents"):
        parse(DIFFUSION, ["--joint_run", str(tmp_path)])
