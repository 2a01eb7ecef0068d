"""Samples controlled by a classifier of noised latents, in embeddings and in compressed latents."""

from __future__ import annotations

import pytest
import torch

from pipelines import train_classifier
from pipelines.cli.programs import CLASSIFIER
from pipelines.load_run import load_run
from pipelines.options import ControlOptions
from pipelines.sampling.hooks import load_classifier_control
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.errors import UserError


@pytest.fixture(scope="module")
def label_file(tmp_path_factory):
    """Texts whose label is their first word."""
    file = tmp_path_factory.mktemp("labels") / "labelled.tsv"
    lines = [f"{word} saw a {thing} .\t{int(word == 'Anna')}" for word in ("Anna", "Tom") for thing in "abcdefghij"]
    file.write_text("\n".join(lines * 4) + "\n")
    return file


@pytest.fixture(scope="module")
def embedded(programs, label_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("control") / "run"
    flags = f"--train_file {label_file} --valid_file {label_file} --test_file {label_file} --num_train_steps 2"
    space = "--latent_space embeddings --embedding_dim 16 --timesteps 20"
    assert programs.diffusion(space, folder, flags) == 0
    return folder


def train(run, label_file, out, flags=""):
    words = f"--diffusion_run {run} --train_file {label_file} --valid_file {label_file} --output_dir {out} --device cpu"
    words += " --classifier_dim 64 --classifier_depth 1 --config classifier_dropout=0"
    words += " --num_train_steps 30 --train_batch_size 16"
    return train_classifier.train(parse(CLASSIFIER, f"{words} --log_every 10 --lr_warmup_steps 2 {flags}".split()))


@pytest.fixture(scope="module", params=["embeddings", "compressed"])
def controlled(request, embedded, chain, label_file, tmp_path_factory):
    run = embedded if request.param == "embeddings" else chain / "diff"
    classifier = tmp_path_factory.mktemp("classifier") / "run"
    assert train(run, label_file, classifier) == 0
    return run, classifier


@pytest.mark.parametrize("kind", ["langevin", "x0"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_control_raises_the_probability_of_the_label(controlled, kind, sampler):
    run, classifier = controlled
    flags = {"sampling_timesteps": 10, "sampler": sampler}
    control = {
        "latent_classifier": classifier,
        "classifier_guidance": kind,
        "guidance_strength": 10,
        "guidance_step_size": 0.1,
    }
    plain = TextDiffusionPipeline.from_pretrained(run, device="cpu", **flags)
    space, process = plain.generator.space, plain.generator.process
    for label in ("0", "1"):
        guided = TextDiffusionPipeline.from_pretrained(run, device="cpu", **flags, **control, target_label=label)
        hook = load_classifier_control(ControlOptions(str(classifier), label), space, process, torch.device("cpu"))
        found = []
        for pipeline in (plain, guided):
            call = pipeline.generator.prepare(1, 0)
            x0 = pipeline.generator.sample_latents(1, 0).x0
            with torch.no_grad():
                found.append(hook.log_prob(call)(x0, torch.full((len(x0),), 0.05)).exp().mean())
        assert found[1] > found[0]


def test_training_of_a_classifier_can_be_resumed(embedded, label_file, tmp_path):
    assert train(embedded, label_file, tmp_path / "run", "--num_train_steps 3 --max_seconds 0") == 0
    assert checkpoints.load(tmp_path / "run").step == 1
    words = f"--resume_training --resume_dir {tmp_path / 'run'}"
    assert train_classifier.train(parse(CLASSIFIER, words.split())) == 0
    assert checkpoints.load(tmp_path / "run").step == 3


def test_a_dry_run_lists_the_parameters_and_writes_no_file(
    programs, embedded, chain, contents, label_file, tmp_path, capsys
):
    for run in (embedded, chain / "diff"):
        before = contents(run)
        assert train(run, label_file, tmp_path / "out", "--dry_run --verbose --classifier_depth 3") == 0
        out = capsys.readouterr().out
        assert "classifier: trunk.blocks.2.attention.q.weight [64, 64]" in out and "classifier: head.bias [2]" in out
        space = next(line for line in out.splitlines() if line.startswith("latent space "))
        assert space.split()[2] == "0", "the latent space has no trainable parameters"
        assert "truncated" in out and contents(run) == before and not (tmp_path / "out").exists()
    absent = f"--diffusion_run {run} --dataset_name sst --dry_run"
    assert train_classifier.train(parse(CLASSIFIER, absent.split())) == 0
    assert "note: sst is not in datasets" in capsys.readouterr().err
    with pytest.raises(UserError, match="a classifier needs labels"):
        words = f"--diffusion_run {run} --dry_run --label_column none {programs.data}"
        train_classifier.train(parse(CLASSIFIER, words.split()))


def test_incomplete_flags_and_classifiers_of_other_latents_are_rejected(
    embedded, chain, controlled, label_file, tmp_path
):
    run, classifier = controlled
    other = embedded if run != embedded else chain / "diff"
    for folder, flags, message in (
        (run, {"latent_classifier": classifier}, "add --target_label"),
        (run, {"target_label": "1"}, "add --latent_classifier"),
        (run, {"latent_classifier": classifier, "target_label": "blue"}, "--target_label blue is not a class"),
        (run, {"latent_classifier": run, "target_label": "1"}, "is not a run of python -m pipelines.train_classifier"),
        (other, {"latent_classifier": classifier, "target_label": "1"}, "latents of another run"),
    ):
        with pytest.raises(UserError, match=message) as error:
            TextDiffusionPipeline.from_pretrained(folder, device="cpu", **flags)
        assert "\n" not in str(error.value)


def test_training_a_classifier_needs_labels(embedded, tmp_path):
    file = tmp_path / "plain.txt"
    file.write_text("".join(f"text number {i}\n" for i in range(40)))
    with pytest.raises(UserError, match="a classifier needs labels"):
        train(embedded, file, tmp_path / "run")


def test_a_classifier_saves_the_fingerprint_of_the_latent_space(controlled):
    run, classifier = controlled
    assert read_args(classifier)["space_fingerprint"] == load_run(run, device="cpu").components.space.fingerprint()
