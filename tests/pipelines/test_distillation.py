"""Students of --distill_run start from their teacher's weights, learn to sample in few steps, and keep these steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import quality_speed
from diffusion.options import ProcessOptions, SamplingOptions
from diffusion.samplers import make_sampler
from model import make_denoiser
from model.options import DenoiserOptions
from pipelines import train_diffusion
from pipelines.builders.diffusion_process import make_process
from pipelines.cli.programs import DIFFUSION
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.steps import teacher as teachers
from pipelines.steps.denoiser_augmentation import load_denoiser_augmentation
from pipelines.steps.distillation import DistillationStep, DistillBatch
from pipelines.steps.teacher import Teacher
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoint_folder, checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def teacher(programs, chain, tmp_path_factory):
    """A self-conditioned run on latents of fixed norm."""
    folder = tmp_path_factory.mktemp("teachers") / "v"
    flags = "--objective pred_v --self_condition --num_train_steps 60 --learning_rate 3e-3 --log_every 60"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", folder, flags) == 0
    return folder


@pytest.fixture(scope="module")
def student(programs, teacher):
    """A student of two steps; each replaces three steps of the teacher."""
    folder = teacher.with_name("two")
    flags = "--distill_steps 2 --config distill_substeps=3 --num_train_steps 200 --learning_rate 3e-3 --ema_decay 0.9"
    assert programs.student(teacher, folder, f"{flags} --log_every 100 --disable_dropout") == 0
    return folder


def test_a_student_starts_from_the_averaged_weights_of_its_teacher(programs, teacher, tmp_path):
    assert programs.student(teacher, tmp_path / "new", "--num_train_steps 1 --learning_rate 0") == 0
    expected = TextDiffusionPipeline.from_pretrained(teacher).generator.denoiser.state_dict()
    found = TextDiffusionPipeline.from_pretrained(tmp_path / "new").generator.denoiser.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[name], x) for name, x in expected.items())


def test_a_teacher_is_read_from_disk_once(programs, teacher, monkeypatch, tmp_path):
    seen, read = [], checkpoint_folder.read
    monkeypatch.setattr(checkpoint_folder, "read", lambda path: seen.append(path) or read(path))
    assert programs.student(teacher, tmp_path / "new", "--num_train_steps 1") == 0
    assert [path.parents[1] for path in seen if path.parent.name == "checkpoints"] == [teacher]


def test_a_student_learns_and_samples_in_its_own_steps(student):
    losses = [line["val_ema_loss"] for line in read_metrics(student) if "val_ema_loss" in line]
    assert losses[-1] < losses[0]
    assert {line["student_step"] for line in read_metrics(student) if "student_step" in line} <= {1.0, 2.0}
    saved = json.loads((student / "args.json").read_text())
    assert (saved["sampler"], saved["sampling_timesteps"], saved["tx_dim"]) == ("ddim", 2, 64)
    pipeline = TextDiffusionPipeline.from_pretrained(student)
    generator, seen = pipeline.generator, []
    generator.denoiser.register_forward_hook(lambda module, args, out: seen.append(args[1][0].item()))
    assert pipeline.is_student and len(pipeline(3, decoding="greedy")) == 3
    assert len(seen) == 2


def test_only_the_last_estimate_of_a_student_has_the_norm_of_latents(student):
    """Latents have a fixed norm. Earlier estimates lead to the next z, not to x0, so their norm may differ."""
    generator = TextDiffusionPipeline.from_pretrained(student).generator
    z = torch.randn(3, generator.space.length, generator.space.dim, generator=torch.Generator().manual_seed(0))
    denoise, size = generator.make_denoise_fn(None, None), generator.space.dim**0.5

    def norms(t):
        with torch.no_grad():
            return generator.space.denormalize(denoise(z, torch.full((3,), t), None)).norm(dim=-1)

    torch.testing.assert_close(norms(0.5), torch.full((3, generator.space.length), size))
    assert (norms(1.0) - size).abs().max() > 0.01 * size


def test_a_student_is_nearer_to_its_teacher_in_many_steps_than_the_teacher_in_two_steps_is(teacher, student):
    """All three samples start from the same noise."""

    def end(run, **flags):
        generator = TextDiffusionPipeline.from_pretrained(run, **flags).generator
        return generator.sample_latents(7, 0, batch_size=64).x0

    target = end(teacher, sampler="dpmpp", sampling_timesteps=6, time_grid="uniform")
    few_steps = end(teacher, sampler="ddim", sampling_timesteps=2, time_grid="uniform")
    assert (end(student) - target).square().mean() < 0.7 * (few_steps - target).square().mean()


def test_every_step_is_trained_equally_often_in_random_order():
    step = DistillationStep.__new__(DistillationStep)
    step.student_steps, step.batch_sampler = 4, TrainingSampler(7, 8)
    selected = [step._select_step(i) for i in range(400)]
    assert all(sorted(selected[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 400, 4))
    assert len({tuple(selected[i : i + 4]) for i in range(0, 400, 4)}) > 10
    assert len(set(selected[99::100])) > 1 and len(set(selected[49::50])) > 1


@pytest.mark.parametrize("kind, flags", [
    ("classes", "--class_conditional --class_unconditional_prob 0.3"),
    ("states", ""),
    ("normalized", "--normalize_latent --config normalize_batches=1"),
    ("x0", "--objective pred_x0 --loss_weighting min_snr --beta_schedule cosine --timesteps 100"),
])  # fmt: skip
def test_distillation_of_classes_states_normalized_latents_and_x0(programs, chain, tmp_path, kind, flags):
    space = f"--enc_dec_model {chain / 'lm'}" if kind == "states" else f"--latent_model_path {chain / 'ae'}"
    objective = "" if "pred_" in flags else "--objective pred_v"
    assert programs.diffusion(space, tmp_path / "t", f"{flags} {objective}") == 0
    guided = "--distill_guidance 2" if kind == "classes" else ""
    assert programs.student(tmp_path / "t", tmp_path / "s", f"--num_train_steps 4 {guided}") == 0
    assert all(line.get("loss", 0) < 100 for line in read_metrics(tmp_path / "s"))
    named = {"class_id": 1} if kind == "classes" else {}
    assert len(TextDiffusionPipeline.from_pretrained(tmp_path / "s")(2, decoding="greedy", **named)) == 2
    if guided:
        with pytest.raises(UserError, match="already contain the teacher's guidance of --distill_guidance 2"):
            parse(DIFFUSION, f"--eval --resume_dir {tmp_path / 's'} --cls_free_guidance 2".split())
        with pytest.raises(UserError, match="distilled with a guidance of 2, which is in its weights"):
            TextDiffusionPipeline.from_pretrained(tmp_path / "s")(2, class_id=1, guidance=3)


@pytest.mark.parametrize("flags", ["", "--train_context_encoder"])
def test_distillation_of_a_run_on_pairs(programs, chain, tales_folder, tmp_path, flags):
    files = " ".join(f"--{split}_file {tales_folder}/pairs_{split}.jsonl" for split in ("train", "valid", "test"))
    space = f"--latent_model_path {chain / 'ae'} --objective pred_v --num_samples 2 --seq2seq_candidates 2 {files}"
    assert programs.diffusion(space, tmp_path / "t", flags) == 0
    assert programs.student(tmp_path / "t", tmp_path / "s", f"--num_train_steps 3 {files}") == 0
    assert (
        len(
            TextDiffusionPipeline.from_pretrained(tmp_path / "s").generate_from_sources(
                ["Anna ran home."], decoding="greedy"
            )
        )
        == 1
    )


def test_each_step_of_a_students_student_spans_whole_steps_of_its_teacher(programs, student, tmp_path):
    assert programs.student(student, tmp_path / "one", "--distill_steps 1 --num_train_steps 3") == 0
    saved = json.loads((tmp_path / "one/args.json").read_text())
    assert saved["distill_substeps"] == 2 and saved["sampling_timesteps"] == 1
    assert len(TextDiffusionPipeline.from_pretrained(tmp_path / "one")(2, decoding="greedy")) == 2


def test_distillation_resumes_exactly(programs, teacher, stop_after, tmp_path):
    flags = "--distill_steps 2 --config distill_substeps=3 --num_train_steps 8 --learning_rate 2e-3"
    assert programs.student(teacher, tmp_path / "whole", flags) == 0
    stop_after(DistillationStep, 5)
    assert programs.student(teacher, tmp_path / "parts", flags) == 143
    assert programs.resume("diffusion", tmp_path / "parts") == 0
    whole, parts = (checkpoints.load(tmp_path / name).tensors for name in ("whole", "parts"))
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][name], x) for name, x in parts[part].items())


def test_a_moved_student_finds_its_teacher_and_a_missing_teacher_is_an_error(programs, chain, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "a" / "teacher")
    assert programs.student(tmp_path / "a/teacher", tmp_path / "a/s", "--num_train_steps 2 --save_every 1") == 0
    (tmp_path / "a").rename(tmp_path / "b")
    more = f"--enc_dec_model {chain / 'lm'}"
    assert (
        len(TextDiffusionPipeline.from_pretrained(tmp_path / "b/s", enc_dec_model=chain / "lm")(1, decoding="greedy"))
        == 1
    )
    for checkpoint in (tmp_path / "b/s/checkpoints").glob("step_*2"):
        shutil.rmtree(checkpoint)
    assert programs.resume("diffusion", tmp_path / "b/s", more) == 0
    shutil.rmtree(tmp_path / "b/teacher")
    for checkpoint in (tmp_path / "b/s/checkpoints").glob("step_*2"):
        shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match=r"teacher of .*b/s, .* was not found: pass its folder as --distill_run"):
        programs.resume("diffusion", tmp_path / "b/s", more)


def test_accumulation_equals_the_large_batch(programs, teacher, tmp_path):
    found = []
    for name, flags in (
        ("whole", "--train_batch_size 8"),
        ("parts", "--train_batch_size 4 --gradient_accumulation_steps 2"),
    ):
        flags += " --num_train_steps 4 --learning_rate 1e-3 --distill_steps 2 --disable_dropout"
        assert programs.student(teacher, tmp_path / name, flags) == 0
        found.append([line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latents", "states"])
def test_two_processes_train_the_same_student_as_one(programs, chain, teacher, tmp_path, kind):
    """With and without self-conditioning on an earlier estimate."""
    if kind == "states":
        teacher = tmp_path / "states"
        flags = "--objective pred_v --self_condition --denoiser_variant states --beta_schedule cosine --timesteps 50"
        assert programs.diffusion(f"--enc_dec_model {chain / 'lm'}", teacher, flags) == 0
    flags = "--device cpu --lr_warmup_steps 2 --no_wandb --num_train_steps 8 --log_every 1 --disable_dropout"
    flags += f" --num_samples 2 --decoding greedy --scorer {programs.scorer} --save_and_sample_every 1000"
    flags += f" --config val_loss_examples=8 --distill_run {teacher} --distill_steps 2 --train_prob_self_cond 0.7"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv = f"train_text_diffusion.py {flags} --train_batch_size 4 --output_dir {tmp_path / 'two'}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*launch, *argv.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one = f"{flags} --train_batch_size 8 --output_dir {tmp_path / 'one'}"
    assert train_diffusion.train(parse(DIFFUSION, one.split())) == 0
    lines = [[line for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert len(lines[0]) == 8 and {line["student_step"] for line in lines[0]} == {1.0, 2.0}
    for a, b in zip(*lines, strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-5)


@pytest.mark.parametrize("variant", ["latent", "states"])
def test_every_step_of_a_student_gives_all_parameters_a_gradient(variant):
    """DistributedDataParallel waits for parameters without a gradient."""
    options = DenoiserOptions(tx_dim=64, tx_depth=1, self_condition=True, denoiser_variant=variant)
    student = make_denoiser(8, 4, options)
    torch.nn.init.normal_(student.output_proj.weight)
    process = make_process(ProcessOptions(objective="pred_v"), SamplingOptions(sampling_timesteps=2), variant)
    source = SimpleNamespace(space=SimpleNamespace(variable_length=False))
    step = DistillationStep(
        student,
        source,
        process,
        TrainingSampler(0, 3),
        9,
        lambda z, k, mask, condition, x0_prev: z,
        2,
        self_condition=True,
    )
    x0, eps = torch.randn(2, 3, 4, 8)
    for start in (0, 1):
        student.zero_grad()
        step.losses(DistillBatch(x0, None, None, eps), start, 1).sum().backward()
        assert [name for name, p in student.named_parameters() if p.grad is None] == []


def test_denoiser_augmentation_by_a_student_uses_its_own_steps(student):
    """denoiser_steps has no effect with a student."""
    space = TextDiffusionPipeline.from_pretrained(student).generator.space.space
    augmentation = load_denoiser_augmentation(str(student), space, 8, torch.device("cpu"))
    assert augmentation.times.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("flags, message", [
    ("--distill_run {root}/nowhere", "nowhere is not a run folder: there is no such folder"),
    ("--distill_run {chain}/ae", "is not a run of train_text_diffusion.py: name one that is"),
    ("--distill_run {teacher} --tx_dim 128", "--tx_dim 128 differs from 64, .*: a student has"),
    ("--distill_run {teacher} --sampling_timesteps 9", "--sampling_timesteps has no effect on a student"),
    ("--eval --resume_dir {student} --preset fast --sampling_timesteps 25", "--sampling_timesteps: .* 2 steps only"),
    ("--distill_run {teacher} --init_path {teacher}", "--init_path and --distill_run both choose"),
    ("--distill_run {teacher} --T_schedule linear", "--T_schedule chooses timesteps of training"),
    ("--distill_run {teacher} --distill_steps 0", "--distill_steps must be at least 1, not 0"),
    ("--distill_run {student} --distill_steps 3", "is a student of 2 steps, and each"),
    ("--distill_run {student} --distill_steps 1 --time_grid shifted", "its own student has the same time grid"),
    ("--distill_run {student} --distill_steps 1 --distill_guidance 2", "whose weights contain its guidance"),
    ("--eval --resume_dir {student} --sampling_timesteps 9", "--sampling_timesteps: .* for 2 steps only"),
    ("--eval --resume_dir {student} --scale 0.5", "--scale: .* for 2 steps only"),
    ("--distill_run {teacher} --distill_guidance 2 --cls_free_guidance 2", "already contain the teacher's"),
    ("--eval --resume_dir {student} --sampler ddpm", "--sampler: .* for 2 steps only"),
])  # fmt: skip
def test_flags_that_a_student_rejects_give_one_error_line(chain, teacher, student, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(DIFFUSION, flags.format(chain=chain, teacher=teacher, student=student, root=tmp_path).split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", ["--distill_run {teacher}", "--eval --resume_dir {student}"])
def test_a_preset_sets_only_the_decoding_of_a_student(teacher, student, flags, capsys):
    words = flags.format(teacher=teacher, student=student).split()
    plain, steps = parse(DIFFUSION, words), 4 if "--distill_run" in words else 2
    capsys.readouterr()
    for preset, decoding in (("fast", "greedy"), ("best", "beam")):
        asked = parse(DIFFUSION, [*words, "--preset", preset])
        differing = {name for name, value in plain.values.items() if asked.values[name] != value}
        assert differing <= {"preset", "decoding"} and asked.config.evaluation.decoding == decoding
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"in its own {steps} steps, so the preset only sets --decoding {decoding}")
    typed = parse(DIFFUSION, [*words, "--preset", "best", "--decoding", "nucleus"])
    assert typed.config.evaluation.decoding == "nucleus"


def test_a_student_is_evaluated_by_a_preset(programs, student, tmp_path):
    assert programs.again("diffusion", student, f"--eval --preset best --output_dir {tmp_path}") == 0
    found = json.loads((tmp_path / "evaluation/eval-valid.json").read_text())
    assert found["protocol"]["sampling_timesteps"] == 2 and "model/beam/perplexity" in found


def test_a_teacher_without_conditions_cannot_be_guided(programs, teacher, tmp_path):
    with pytest.raises(UserError, match="--distill_guidance 2 needs a condition"):
        programs.student(teacher, tmp_path / "s", "--distill_guidance 2")


def test_distillation_uses_the_training_schedule_of_the_teacher(programs, chain, tmp_path):
    """--sampling_schedule of the teacher changes no loss: student and teacher get the same noise level."""
    found = []
    for name, flags in (("same", ""), ("other", "--sampling_schedule sigmoid")):
        space = f"--latent_model_path {chain / 'ae_l2'} --objective pred_v"
        assert programs.diffusion(space, tmp_path / name, flags) == 0
        assert programs.student(tmp_path / name, tmp_path / f"{name}-s", "--disable_dropout") == 0
        found.append([line["loss"] for line in read_metrics(tmp_path / f"{name}-s") if "loss" in line])
    assert found[0] == found[1]


def test_a_dry_run_prints_the_components_of_a_student(programs, teacher, tmp_path, capsys):
    assert programs.student(teacher, tmp_path / "none", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "denoiser" in shown and not (tmp_path / "none").exists()


def test_the_benchmark_compares_students_with_their_teacher(programs, teacher, student, tmp_path, capsys):
    argv = [str(teacher), "--output_dir", str(tmp_path), "--num_samples", "8", "--seeds", "2", "--device", "cpu"]
    few = ["--settings", "sampler=ddim,sampling_timesteps=2", "--scorer", str(programs.scorer)]
    assert quality_speed.main([*argv, *few, "--students", str(student)]) == 0
    rows = {entry["setting"]: entry for entry in json.loads((tmp_path / "result.json").read_text())["settings"]}
    assert [rows[name]["calls"] for name in ("ddpm uniform 250", "ddim uniform 2", "student two 2")] == [250, 2, 2]
    assert rows["student two 2"]["seeds"] == 2 and (tmp_path / "quality_speed.png").is_file()
    with pytest.raises(SystemExit):
        quality_speed.main([*argv, *few, "--students", str(teacher)])
    assert "was not trained with --distill_run" in capsys.readouterr().err


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_a_teacher_casts_its_weights_once_for_all_its_steps(chain, monkeypatch, is_frozen):
    generator = TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", mixed_precision="bf16").generator
    generator.denoiser.requires_grad_(not is_frozen)
    made = Teacher(generator, [torch.linspace(1, 0, 4)], extra_estimate=True, sampler=make_sampler("dpmpp"))
    z = torch.randn(2, generator.space.length, generator.space.dim, generator=torch.Generator().manual_seed(0))
    found = []
    for is_once in (True, False):
        if not is_once:
            monkeypatch.setattr(teachers, "keep_casts", lambda *args: nullcontext())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            z_s = made(z, 0, None, None, None)
        found.append((z_s, sum(event.count for event in profiler.key_averages() if event.key == "aten::_to_copy")))
    (once, few), (again, many) = found
    weights = sum(1 for name, _ in generator.denoiser.named_parameters() if name.endswith("weight"))
    assert torch.equal(once, again) and many - few > weights
