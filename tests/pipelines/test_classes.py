"""Class-conditional runs: which classes are sampled, how they are evaluated, and errors for unknown classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_utils import readers
from dataset_utils.columns import Columns
from dataset_utils.corpus import Corpus
from dataset_utils.raw_split import collect_rows
from dataset_utils.registry import NOT_IN_CATALOG
from dataset_utils.splits import Split
from evaluation import classifiers
from pipelines.cli.class_rules import MOST_UNASKED, why_not_each_class
from pipelines.sampling.classes import (
    ALL,
    NO_LABEL,
    NULL,
    PRIOR,
    ClassSelection,
    TrainingClassPrior,
    class_index,
    select_classes,
)
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError

NAMES = ("world", "sports", "business")
TOPICS = ("forest", "garden", "sea", "town")  # classes of the synthetic stories, in alphabetical order
FEW = "--num_samples 6"


@pytest.fixture(scope="module")
def class_run(programs, chain, tmp_path_factory) -> Path:
    """A class-conditional run that evaluated every class during training."""
    folder = tmp_path_factory.mktemp("class_run") / "run"
    flags = f"--class_conditional --label_column class --class_id all {FEW} --num_train_steps 40 --learning_rate 3e-3"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", folder, flags) == 0
    return folder


@pytest.fixture(scope="module")
def evaluate(programs, class_run, tmp_path_factory):
    """A function: run --eval with some flags -> (result, folder) of the evaluation."""

    def run(flags: str, split: str = "valid") -> tuple[dict, Path]:
        out = tmp_path_factory.mktemp("evaluated")
        mode = {"valid": "--eval", "test": "--eval_test"}[split]
        assert programs.again("diffusion", class_run, f"{mode} --output_dir {out} {flags}") == 0
        return json.loads((out / "evaluation" / f"eval-{split}.json").read_text()), out / "evaluation"

    return run


@pytest.fixture(scope="module")
def all_classes(evaluate):
    return evaluate("--class_id none")


# ------------------------------------------------------------------------------------------------ selection of classes


def test_a_class_is_given_by_name_or_number():
    assert [class_index(wanted, NAMES) for wanted in ("sports", "1", 1, " business ")] == [1, 1, 1, 2]
    for one in ("1", 1, 1.0, "1.0", np.int64(1)):
        assert class_index(one, ("1", "2", "3")) == 0  # where names are numbers, numbers are names
        assert class_index(one, ("0", "yes", "1.0")) == 2
    assert class_index(True, ("false", "true")) == class_index("TRUE", ("False", "True")) == 1
    for wrong in (0, "0", 0.0, "4"):
        with pytest.raises(UserError, match=r"^--class_id [04] is not a class.*: give one of 1, 2, 3$"):
            class_index(wrong, ("1", "2", "3"), "--class_id")
    for no_label in (None, math.nan, [1], " "):
        with pytest.raises(UserError, match="is not a class, since .*: give one of 1, 2, 3$"):
            class_index(no_label, ("1", "2", "3"))
    for wrong in ("sprots", "3", "-1", "1.5", -1, 3, "", "none"):
        with pytest.raises(UserError, match=r"is not a class.*give one of 0 \(world\), 1 \(sports\), 2 \(business\)"):
            class_index(wrong, NAMES)
    with pytest.raises(UserError, match="did you mean sports"):
        class_index("sport", NAMES)


@pytest.mark.parametrize("training", [True, False])
def test_class_id_selects_the_sampled_classes(training):
    choices = {
        wanted: select_classes(wanted, NAMES, 0.1, training=training) for wanted in (None, ALL, PRIOR, NULL, "sports")
    }
    every = (0, 1, 2)
    assert choices == {
        None: ClassSelection(PRIOR, () if training else every),
        ALL: ClassSelection(None, every),
        PRIOR: ClassSelection(PRIOR, ()),
        NULL: ClassSelection(NULL, ()),
        "sports": ClassSelection(None, (1,)),
    }
    with pytest.raises(UserError, match="trained without the null class"):
        select_classes(NULL, NAMES, 0.0, training=training)


def test_classes_are_drawn_as_often_as_in_training_and_stay_with_their_texts(class_run, monkeypatch):
    generator = TextDiffusionPipeline.from_pretrained(class_run, device="cpu", eval_batch_size=8).generator
    generator.whole_blocks = True  # as in an evaluation
    drawn = TrainingClassPrior(torch.tensor([0] * 30 + [3] * 10))

    def decode(latents, strategy, seed):  # every third text of a batch is empty
        return ["" if i % 3 == 0 else f"text {i}" for i in range(len(latents))]

    monkeypatch.setattr(generator, "decode", decode)
    sampled = generator.sample(12, 7, ("greedy",), drawn, quiet=True)
    texts, labels = sampled.texts["greedy"], drawn.classes_of(sampled, "greedy")
    expected = [(f"text {i}", drawn.drawn[b][i]) for b in sorted(drawn.drawn) for i in range(8) if i % 3]
    assert list(zip(texts, labels, strict=True)) == expected[:12] and set(labels) <= {0, 3}
    assert sampled.empty["greedy"] == 7

    monkeypatch.setattr(generator, "decode", lambda latents, strategy, seed: [""] * len(latents))
    nothing = generator.sample(2, 7, ("greedy",), drawn, quiet=True)
    assert nothing.texts["greedy"] == ["", ""] and drawn.classes_of(nothing, "greedy") == [NO_LABEL] * 2
    many = drawn(0, 4000, torch.Generator().manual_seed(1)).class_id
    assert 0.72 < (many == 0).float().mean() < 0.78


# ------------------------------------------------------------------------------------------------ evaluation


def test_evaluation_scores_all_classes_jointly_and_each_class(all_classes):
    result, folder = all_classes
    model = "model/greedy/"
    for key in ("label_accuracy", "mean_class_accuracy", "local_lm_val_mauve", "diversity"):
        assert isinstance(result[model + key], int | float), key
    for c in range(4):
        for key in (
            f"cond{c}_label_accuracy",
            f"cond{c}_diversity",
            f"cond{c}_perplexity",
            f"cond{c}_num_empty_resampled",
        ):
            assert model + key in result, key
        for d in range(4):
            for split in ("val", "train"):
                assert f"{model}local_lm_cond{c}_ref{d}_{split}_mauve" in result
            assert f"reference/local_lm_cond{c}_ref{d}_train_mauve" in result
        assert f"reference/val_cond{c}_label_accuracy" in result
        assert len(json.loads((folder / f"eval-valid-seed42-cond{c}_greedy-samples.json").read_text())) == 6
    protocol = result["protocol"]
    assert protocol["classifier"]["comparable"] is False and len(protocol["classifier"]["fingerprint"]) == 64
    assert protocol["classes"]["mauve_few_samples"] is True and protocol["classes"]["n"] == 6 and protocol["n"] == 6


def test_evaluation_writes_the_class_matrices_and_plots_them(all_classes):
    result, folder = all_classes
    found = json.loads((folder / "eval-valid-classes.json").read_text())
    assert found["class_names"] == list(TOPICS) and found["greedy"]["classes"] == [0, 1, 2, 3]
    for split in ("val", "train"):
        assert found["greedy"]["mauve"][split][2][1] == result[f"model/greedy/local_lm_cond2_ref1_{split}_mauve"]
    for c, row in enumerate(found["greedy"]["predicted_shares"]):
        assert row[c] == result[f"model/greedy/cond{c}_label_accuracy"] and sum(row) == pytest.approx(1)
    assert found["held-out texts"]["mauve"]["train"][3][3] == result["reference/local_lm_cond3_ref3_train_mauve"]
    assert (folder / "eval-valid-classes-greedy.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_records_nearest_texts_of_each_class_and_a_trajectory_of_them(all_classes):
    _, folder = all_classes
    trajectory = json.loads((folder / "trajectory.json").read_text())
    assert len(trajectory["classes"]) == len(trajectory["views"][0]["texts"]) == 6
    assert set(trajectory["classes"]) <= set(TOPICS)
    for prefix in ("", *(f"cond{c}_" for c in range(len(TOPICS)))):
        stem = f"eval-valid-seed42-{prefix}greedy"
        samples, nearest = (json.loads((folder / f"{stem}-{name}.json").read_text()) for name in ("samples", "nearest"))
        assert len(samples) == len(nearest) > 0


def test_the_classifier_is_saved_with_its_held_out_accuracy(all_classes):
    result, folder = all_classes
    metadata = json.loads((folder.parent / "classifier" / "local_classifier.json").read_text())
    assert metadata["comparable"] is False and metadata["class_names"] == list(TOPICS)
    assert metadata["held_out"]["accuracy"] == result["reference/val_label_accuracy"] > 0.9
    text = (folder / "eval-valid.txt").read_text()
    assert "classifier trained on this corpus" in text


def test_evaluation_of_one_class_by_name_or_number(evaluate):
    results = {wanted: evaluate(f"--class_id {wanted} {FEW}") for wanted in ("sea", "2")}
    numbers = [
        {k: v for k, v in result.items() if k != "protocol" and not k.startswith("speed/")}
        for result, _ in results.values()
    ]
    assert numbers[0] == numbers[1]
    result, folder = results["sea"]
    assert "model/greedy/local_lm_cond2_ref0_val_mauve" in result and "model/greedy/cond2_label_accuracy" in result
    assert not any("cond1_ref" in key or "cond0_lab" in key for key in result if key.startswith("model/"))
    assert "model/greedy/diversity" not in result and result["protocol"]["class_id"] == "sea"
    assert json.loads((folder / "eval-valid-classes.json").read_text())["greedy"]["classes"] == [2]
    assert {path.name for path in folder.glob("*-samples.json")} == {"eval-valid-seed42-cond2_greedy-samples.json"}


def test_evaluation_of_all_classes_the_prior_and_the_null_class(evaluate):
    joint, per_class = "model/greedy/diversity", "model/greedy/mean_class_accuracy"
    every, prior, null = (evaluate(f"--class_id {wanted} {FEW}")[0] for wanted in (ALL, PRIOR, NULL))
    assert per_class in every and joint not in every
    assert joint in prior and per_class not in prior and "model/greedy/label_accuracy" in prior
    assert joint in null and per_class not in null and "model/greedy/label_accuracy" not in null
    assert all(every[f"speed/{part}_texts_per_second"] > 0 for part in ("denoise", "decode"))


def test_the_test_split_is_evaluated_over_five_seeds(evaluate):
    result, folder = evaluate("--num_samples 3 --class_id forest", "test")
    assert len(result["model/greedy/cond0_label_accuracy"]["values"]) == 5
    found = json.loads((folder / "eval-test-classes.json").read_text())
    assert found["seeds"] == 5
    assert found["greedy"]["predicted_shares"][0][0] == pytest.approx(
        result["model/greedy/cond0_label_accuracy"]["mean"]
    )


def test_training_evaluates_every_class(class_run):
    for c in range(4):
        assert len((class_run / f"cond{c}_greedy-sample-1.txt").read_text().splitlines()) == 6
    metrics = json.loads((class_run / "metrics.json").read_text())
    assert "model/greedy/mean_class_accuracy" in metrics


def test_training_samples_classes_from_the_prior_by_default(programs, chain, tmp_path):
    space = f"--enc_dec_model {chain / 'lm'}"
    assert programs.diffusion(space, tmp_path / "run", "--class_conditional --class_unconditional_prob 0") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "model/greedy/label_accuracy" in metrics and "model/greedy/mean_class_accuracy" not in metrics
    with pytest.raises(UserError, match="--class_id unconditional: this network was trained without the null class"):
        programs.again("diffusion", tmp_path / "run", "--eval --class_id unconditional")
    with pytest.raises(UserError, match="trained without a null class"):
        TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")(1)


def test_resumed_training_may_evaluate_other_classes(programs, chain, tmp_path):
    space, flags = f"--latent_model_path {chain / 'ae'}", "--class_conditional --num_train_steps 4 --save_every 1"
    assert programs.diffusion(space, tmp_path / "run", f"{flags} --max_seconds 0") == 0
    assert programs.resume("diffusion", tmp_path / "run", "--class_id 1") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["step"] == 4 and metrics["protocol"]["class_id"] == "1"


# ------------------------------------------------------------------------------------------------ synthetic data


def test_synthetic_data_equals_samples_of_the_run_and_can_be_read_as_training_texts(programs, class_run, tmp_path):
    flags = f"--gen_data --num_samples 8 --cls_free_guidance 4 --output_dir {tmp_path}"
    assert programs.again("diffusion", class_run, flags) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(class_run, device="cpu")
    for seed in (42, 46):
        file = tmp_path / f"synth_sample8_seed{seed}.csv"
        read = collect_rows(readers.by_suffix(file)(file), Columns(guess=True), str(file))
        assert read.columns.label == "class" and read.labels == [topic for topic in TOPICS for _ in range(2)]
        written = [pipeline(2, seed=seed, decoding="greedy", class_id=c, guidance=4.0) for c in range(4)]
        assert read.texts == [text.strip() for of_class in written for text in of_class]


def test_synthetic_data_needs_all_classes(programs, class_run):
    with pytest.raises(UserError, match="--gen_data writes texts of every class: leave --class_id 2 out"):
        programs.again("diffusion", class_run, "--gen_data --num_samples 8 --class_id 2")


# ------------------------------------------------------------------------------------------------ TextDiffusionPipeline


def test_the_pipeline_accepts_one_class_or_one_per_text(class_run):
    pipeline = TextDiffusionPipeline.from_pretrained(class_run, device="cpu", sampling_timesteps=2, eval_batch_size=4)
    assert pipeline.class_names == TOPICS

    def draw(class_id):
        return pipeline(4, class_id=class_id, generator=3, output_type="latent").latents.x0

    latents, mixed = [draw(c) for c in ("sea", 2, ["sea"] * 4, "town")], draw([2, "town", 2, 3])
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])
    assert not torch.equal(latents[0], latents[3])
    torch.testing.assert_close(mixed[::2], latents[0][::2])
    torch.testing.assert_close(mixed[1::2], latents[3][1::2])
    assert len(pipeline(3, class_id="town", guidance=3.0, decoding="greedy")) == 3
    assert pipeline.generator.guidance == 1, "the weight of one call does not change the next"


def test_a_text_of_a_list_of_classes_keeps_its_place_where_another_is_empty(class_run, monkeypatch):
    pipeline = TextDiffusionPipeline.from_pretrained(class_run, device="cpu", sampling_timesteps=2, eval_batch_size=4)
    alone = pipeline(4, class_id="sea", generator=3, decoding="greedy").texts
    assert pipeline(4, class_id=["sea"] * 4, generator=3, decoding="greedy").texts == alone
    assert pipeline.sample(4, class_id=["sea"] * 4, seed=3, decoding="greedy") == alone
    decode = pipeline.generator.decode

    def first_is_empty(*given):
        monkeypatch.setattr(pipeline.generator, "decode", decode)
        return ["", *decode(*given)[1:]]

    monkeypatch.setattr(pipeline.generator, "decode", first_is_empty)
    found = pipeline(4, class_id=["sea", "town", "sea", "town"], generator=3, decoding="greedy").texts
    assert len(found) == 4 and found[0] == "" and found[2] == alone[2], "text i has class i"


def test_the_pipeline_rejects_wrong_classes_and_guidance_without_one(class_run):
    pipeline = TextDiffusionPipeline.from_pretrained(class_run, device="cpu")
    with pytest.raises(UserError, match="class mountain is not a class"):
        pipeline(1, class_id="mountain")
    with pytest.raises(UserError, match="2 classes for 3 texts"):
        pipeline(3, class_id=["sea", "town"])
    with pytest.raises(UserError, match="guidance 2 needs a class"):
        pipeline(3, guidance=2.0)


@pytest.mark.parametrize("network", ["", "--denoiser_variant states --beta_schedule linear --normalize_latent"])
def test_class_conditional_diffusion_of_encoder_states(programs, chain, tmp_path, network):
    flags = (
        f"--class_conditional --label_column class --self_condition --num_train_steps 8 --learning_rate 1e-2 {network}"
    )
    assert programs.diffusion(f"--enc_dec_model {chain / 'lm'}", tmp_path / "run", flags) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "model/greedy/label_accuracy" in metrics
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu", sampling_timesteps=2)
    found = [
        pipeline(8, class_id=c, generator=1, output_type="latent", num_inference_steps=2).latents
        for c in ("sea", "town", None)
    ]
    assert all(torch.equal(latents.mask, found[0].mask) for latents in found), "lengths do not depend on the class"
    assert not torch.equal(found[0].x0, found[1].x0) and not torch.equal(found[0].x0, found[2].x0)
    assert len(pipeline(3, class_id="sea", guidance=2.0, decoding="greedy")) == 3
    flags = f"--eval --class_id sea --cls_free_guidance 1.5 --sampling_timesteps 2 --output_dir {tmp_path / 'out'}"
    assert programs.again("diffusion", tmp_path / "run", flags) == 0
    folder = tmp_path / "out" / "evaluation"
    result = json.loads((folder / "eval-valid.json").read_text())
    assert "model/greedy/local_lm_cond2_ref2_val_mauve" in result
    (samples,) = folder.glob("*-samples.json")
    texts = json.loads(samples.read_text())
    sea = classifiers.load(tmp_path / "out" / "classifier", TOPICS).predict(texts)
    assert result["model/greedy/cond2_label_accuracy"] == sum(c == 2 for c in sea) / len(texts), sorted(result)


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--class_id mountain", "--class_id mountain is not a class.*0 .forest., 1 .garden., 2 .sea., 3 .town."),
        ("--class_id 4", "--class_id 4 is not a class"),
        ("--class_id=-1", "--class_id -1 is not a class"),
        ("--class_id twon", "did you mean town"),
        ("--classifier ./nowhere", "classifier ./nowhere: there is no such folder"),
        ("--classifier nobody/nothing", "classifier nobody/nothing cannot be loaded"),
    ],
)
def test_a_wrong_class_or_classifier_is_an_early_error(programs, class_run, tmp_path, chain, flags, message):
    """It is raised before anything is trained or sampled."""
    with pytest.raises(UserError, match=message):
        programs.again("diffusion", class_run, f"--eval --output_dir {tmp_path} {flags}")
    with pytest.raises(UserError, match=message):
        space = f"--latent_model_path {chain / 'ae'} --class_conditional --label_column class"
        programs.diffusion(space, tmp_path / "run", f"{flags} --num_train_steps 100000")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_guidance_needs_a_class(programs, class_run, tmp_path):
    with pytest.raises(
        UserError, match="--cls_free_guidance 2 needs a condition, and --class_id unconditional gives none"
    ):
        flags = "--class_id unconditional --cls_free_guidance 2"
        programs.again("diffusion", class_run, f"--eval --output_dir {tmp_path} {flags}")


def test_a_run_without_classes_rejects_class_flags(programs, chain, tmp_path):
    for flag in ("--class_id sea", "--classifier home"):
        with pytest.raises(UserError, match=f"{flag} needs a run with --class_conditional"):
            programs.again("diffusion", chain / "diff", f"--eval {flag}")
        with pytest.raises(UserError, match=f"{flag} needs a run with --class_conditional"):
            programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flag)


def test_separate_samples_need_texts_of_each_class_and_are_left_out_if_nobody_asked(
    programs, class_run, tales_folder, tmp_path, capfd
):
    rows = [line for line in (tales_folder / "valid.jsonl").read_text().splitlines() if '"class": "sea"' not in line]
    (tmp_path / "valid.jsonl").write_text("\n".join(rows) + "\n")
    flags = f"--eval --output_dir {tmp_path} --valid_file {tmp_path / 'valid.jsonl'}"
    for asked in ("all", "town"):
        with pytest.raises(UserError, match="the valid split of .* has no text of class sea.*--class_id prior"):
            programs.again("diffusion", class_run, f"{flags} --class_id {asked}")
    assert programs.again("diffusion", class_run, f"{flags} --class_id prior {FEW}") == 0
    assert "not each separately" not in capfd.readouterr().err
    assert programs.again("diffusion", class_run, f"{flags} --class_id none {FEW}") == 0
    note = "note: all classes are sampled jointly, and not each separately, too: the valid split has no text of class"
    assert f"{note} sea" in capfd.readouterr().err
    found = json.loads((tmp_path / "evaluation/eval-valid.json").read_text())
    assert {"model/greedy/diversity", "model/greedy/label_accuracy"} <= found.keys()
    assert "model/greedy/mean_class_accuracy" not in found


def test_each_of_many_classes_is_sampled_only_if_that_is_asked_for():
    def why(classes: int, **labels: list[int]) -> str | None:
        every = list(range(classes))
        splits = {name: Split(["a text"] * classes, labels=labels.get(name, every)) for name in ("train", "valid")}
        names = tuple(f"c{c}" for c in every)
        return why_not_each_class(Corpus("own", splits, NOT_IN_CATALOG, class_names=names), ("valid", "train"))

    assert why(MOST_UNASKED) is None
    assert "21 classes, more than 20, would be compared with each other (--class_id NAME" in str(why(MOST_UNASKED + 1))
    assert why(3, train=[0, 2, 2]) == "the train split has no text of class c1"
    assert why(3, valid=[1, 1, 1], train=[0, 2, 2]) == "the valid split has no text of class c0"


def test_evaluation_rejects_a_corpus_with_other_classes(programs, class_run, tales_folder, tmp_path):
    """The corpus has as many classes, and one of them has another name."""
    for split in ("train", "valid", "test"):
        text = (tales_folder / f"{split}.jsonl").read_text().replace('"class": "sea"', '"class": "ocean"')
        (tmp_path / f"{split}.jsonl").write_text(text)
    files = " ".join(f"--{split}_file {tmp_path / split}.jsonl" for split in ("train", "valid", "test"))
    with pytest.raises(
        UserError, match="was trained on the classes forest, garden, sea, town, and .* has forest, garden, ocean"
    ):
        programs.again("diffusion", class_run, f"--eval --output_dir {tmp_path} {files}")


def test_class_conditional_training_needs_two_classes(programs, chain, tales_folder, tmp_path):
    rows = [line for line in (tales_folder / "train.jsonl").read_text().splitlines() if '"class": "sea"' in line]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    flags = f"--class_conditional --train_file {tmp_path / 'train.jsonl'} --valid_file none --test_file none"
    with pytest.raises(UserError, match="--class_conditional needs two classes or more"):
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
