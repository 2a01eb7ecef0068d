"""Commands on trained runs: evaluation, synthetic data, moved folders, and flags that training has fixed."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from utils.errors import UserError
from utils.local_models import file_sha256


@pytest.fixture(scope="module")
def class_run(programs, chain, tmp_path_factory):
    """A class-conditional run."""
    folder = tmp_path_factory.mktemp("class_run") / "run"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", folder, "--class_conditional") == 0
    return folder


def added(before, after) -> set[str]:
    """Names of the files that an evaluation added. All others must be unchanged."""
    earlier = {name: content for name, content in before.items() if not name.startswith("evaluation/")}
    assert [name for name, content in earlier.items() if after.get(name) != content] == []
    return {name.split("/")[0] for name in after.keys() - earlier.keys()}


def test_eval_uses_validation_texts_and_changes_no_file_of_the_run(programs, chain, contents):
    before = contents(chain / "diff")
    assert programs.again("diffusion", chain / "diff", "--eval --sampler ddim --sampling_timesteps 3") == 0
    assert added(before, contents(chain / "diff")) == {"evaluation"}
    folder = chain / "diff" / "evaluation"
    result = json.loads((folder / "eval-valid.json").read_text())
    for key in ("model/greedy/local_lm_val_mauve", "model/greedy/local_lm_train_mauve", "model/greedy/diversity",
                "model/greedy/memorization", "model/greedy/perplexity", "reference/val_perplexity",
                "model/greedy/num_empty_resampled"):  # fmt: skip
        assert isinstance(result[key], int | float), key
    protocol = result["protocol"]
    assert protocol["sampler"] == "ddim" and protocol["sampling_timesteps"] == protocol["network_calls"] == 3
    assert protocol["comparable"] is False and protocol["n"] == 4 and protocol["mauve_few_samples"] is True
    assert len(json.loads((folder / "eval-valid-seed42-greedy-samples.json").read_text())) == 4
    assert (folder / "eval-valid.txt").is_file()


def test_a_training_without_scores_is_scored_when_it_is_evaluated(programs, chain, tmp_path):
    space, without = f"--latent_model_path {chain / 'ae'}", "--config training_scores=False"
    assert programs.diffusion(space, tmp_path / "run", without) == 0
    trained = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "model/greedy/diversity" in trained
    assert not any(key.endswith(("_mauve", "perplexity")) for key in trained)
    assert not (tmp_path / "run/evaluation/models").exists()
    assert programs.again("diffusion", tmp_path / "run", "--eval") == 0
    found = json.loads((tmp_path / "run/evaluation/eval-valid.json").read_text())
    assert found["model/greedy/perplexity"] > 1 and "model/greedy/local_lm_val_mauve" in found
    with pytest.raises(UserError, match="--class_id all compares classes by MAUVE, and training_scores=False"):
        programs.diffusion(space, tmp_path / "classes", f"--class_conditional --class_id all {without}")
    with pytest.raises(UserError, match="mauve"):
        programs.diffusion(space, tmp_path / "best", f"--best_metric mauve {without}")


def test_each_sampling_setting_has_its_own_protocol(programs, chain, tmp_path):
    """Two results compare only where their protocols agree, so each flag that changes texts is an entry."""
    found = []
    for k, flags in enumerate([
        "", "--time_grid shifted", "--time_grid shifted --grid_shift 2", "--posterior_variance small", "--sampler heun",
        "--truncate_noise 1", "--eval_batch_size 3", "--sampler ddim", "--sampler ddim --ddim_sampling_eta 1",
    ]):  # fmt: skip
        assert programs.again("diffusion", chain / "diff", f"--eval {flags} --output_dir {tmp_path / str(k)}") == 0
        found.append(json.loads((tmp_path / str(k) / "evaluation/eval-valid.json").read_text())["protocol"])
    assert len({json.dumps(metadata, sort_keys=True) for metadata in found}) == len(found)
    assert [metadata["network_calls"] for metadata in found] == [2, 2, 2, 2, 3, 2, 2, 2, 2]


def test_eval_is_repeatable_and_writes_to_output_dir(programs, chain, contents, tmp_path):
    before = contents(chain)
    for name in "ab":
        assert programs.again("diffusion", chain / "diff", f"--eval --output_dir {tmp_path / name}") == 0
    assert contents(chain) == before
    one, other = (json.loads((tmp_path / name / "evaluation" / "eval-valid.json").read_text()) for name in "ab")
    for result in (one, other):
        assert all(result.pop(f"speed/{part}_texts_per_second") > 0 for part in ("denoise", "decode"))
    assert one == other


def test_eval_test_uses_five_seeds(programs, chain):
    assert programs.again("diffusion", chain / "diff", "--eval_test --num_samples 3 --decoding greedy,nucleus") == 0
    folder = chain / "diff" / "evaluation"
    result = json.loads((folder / "eval-test.json").read_text())
    for strategy in ("greedy", "nucleus"):
        summary = result[f"model/{strategy}/local_lm_test_mauve"]
        assert set(summary) == {"mean", "std", "values"} and len(summary["values"]) == 5
        named = [result[f"model/{strategy}/local_lm_test_mauve_seed{seed}"] for seed in range(42, 47)]
        assert named == summary["values"]
        samples = {(folder / f"eval-test-seed{s}-{strategy}-samples.json").read_text() for s in range(42, 47)}
        assert len(samples) > 1, "each seed gives other samples"


def test_eval_scores_each_class(programs, class_run, contents):
    before = contents(class_run)
    assert programs.again("diffusion", class_run, "--eval") == 0
    assert added(before, contents(class_run)) == {"evaluation"}
    result = json.loads((class_run / "evaluation" / "eval-valid.json").read_text())
    for c in range(4):
        assert (
            f"model/greedy/cond{c}_diversity" in result and f"model/greedy/local_lm_cond{c}_ref{c}_val_mauve" in result
        )


def test_gen_data_writes_equally_many_texts_of_each_class(programs, class_run):
    assert programs.again("diffusion", class_run, "--gen_data --num_samples 8") == 0
    for seed in range(42, 47):
        with (class_run / f"synth_sample8_seed{seed}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == list("00112233") and all("text" in row for row in rows)


def test_gen_data_needs_a_class_conditional_run(programs, chain, class_run):
    with pytest.raises(UserError, match="--gen_data needs a class-conditional run"):
        programs.again("diffusion", chain / "diff", "--gen_data --num_samples 8")
    with pytest.raises(UserError, match="--num_samples 7 is not divisible by the 4 classes: give 4"):
        programs.again("diffusion", class_run, "--gen_data --num_samples 7")
    with pytest.raises(UserError, match="--gen_data"):
        programs.again("autoencoder", chain / "ae", "--gen_data")


@pytest.mark.parametrize(
    "flags",
    ["--tx_dim 128", "--objective pred_v", "--max_seq_len 30", "--train_schedule sigmoid", "--no_self_condition"],
)
def test_evaluation_rejects_flags_that_training_has_fixed(programs, chain, flags):
    with pytest.raises(
        UserError, match=f"{flags.split()[0].replace('no_', '')} .*differs from .*an evaluation cannot change it"
    ):
        programs.again("diffusion", chain / "diff", f"--eval {flags}")


@pytest.mark.parametrize(
    "flags",
    ["--scale 0.5 --sampling_schedule sigmoid", "--ddim_sampling_eta 1", "--num_samples 2 --decoding beam",
     "--sampler dpmpp --sampling_timesteps 1 --eval_batch_size 3", "--max_seq_len 40 --tx_dim 64"],
)  # fmt: skip
def test_sampling_flags_may_differ(programs, chain, flags, tmp_path):
    assert programs.again("diffusion", chain / "diff", f"--eval --output_dir {tmp_path} {flags}") == 0


@pytest.mark.parametrize(("flag", "split"), [("--eval", "valid"), ("--eval_test", "test")])
def test_autoencoder_is_validated_by_its_best_checkpoint(programs, chain, contents, flag, split):
    before = contents(chain / "ae")
    assert programs.again("autoencoder", chain / "ae", f"{flag} --decoding greedy,beam") == 0
    assert added(before, contents(chain / "ae")) <= {"evaluation"}
    result = json.loads((chain / "ae" / "evaluation" / f"eval-{split}.json").read_text())
    for key in ("bleu", "exact_match", "rouge1"):
        for title in ("autoencoder", "bart"):
            assert f"{title}/greedy/{key}" in result and f"{title}/beam/{key}" in result


def test_moved_runs_find_their_components(programs, chain, tmp_path):
    """lm, ae and diff move together, twice, so the paths of the command lines no longer exist."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert programs.autoencoder(chain / "lm", tmp_path / "ae", "--num_train_steps 4 --max_seconds 0") == 0
    shutil.copytree(chain / "lm", tmp_path / "lm")
    # trained where the language model is, then the tree moves
    shutil.rmtree(tmp_path / "ae")
    assert programs.autoencoder(tmp_path / "lm", tmp_path / "ae", "--num_train_steps 4 --max_seconds 0") == 0
    latents = f"--latent_model_path {tmp_path / 'ae'}"
    assert programs.diffusion(latents, tmp_path / "diff", "--num_train_steps 4 --max_seconds 0") == 0
    states = f"--enc_dec_model {tmp_path / 'lm'}"
    assert programs.diffusion(states, tmp_path / "states", "--num_train_steps 4 --max_seconds 0") == 0
    first.mkdir()
    for name in ("lm", "ae", "diff", "states"):
        (tmp_path / name).rename(first / name)
    for where in (first, second):
        if where is second:
            first.rename(second)
        for stage, name in (("autoencoder", "ae"), ("diffusion", "diff"), ("diffusion", "states")):
            assert programs.again(stage, where / name, "--eval") == 0, name
            assert programs.resume(stage, where / name, "--max_seconds 0") == 0, name


def test_a_diffusion_run_does_not_need_the_autoencoders_folder(programs, chain, tmp_path):
    shutil.copytree(chain / "ae", tmp_path / "ae")
    # ../lm does not exist beside the copy, so a flag names the language model; the run saves its path
    space = f"--latent_model_path {tmp_path / 'ae'} --enc_dec_model {chain / 'lm'}"
    assert programs.diffusion(space, tmp_path / "diff", "--num_train_steps 4 --max_seconds 0") == 0
    shutil.rmtree(tmp_path / "ae")
    assert programs.again("diffusion", tmp_path / "diff", "--eval") == 0
    assert programs.resume("diffusion", tmp_path / "diff") == 0


def test_init_path_starts_from_the_weights_of_another_run(programs, chain, tmp_path, fingerprints):
    space = f"--latent_model_path {chain / 'ae_l2'} --self_condition"
    assert programs.diffusion(space, tmp_path / "run", f"--init_path {chain / 'diff'} --learning_rate 0") == 0
    assert fingerprints(tmp_path / "run")[1]["model"] == fingerprints(chain / "diff")[1]["model"]


def test_resume_dir_alone_starts_an_autoencoder_from_the_weights_of_another(programs, chain, tmp_path, fingerprints):
    """--resume_dir alone, as in the published command line: weights only, from step 0."""
    flags = f"--resume_dir {chain / 'ae'} --learning_rate 0 --num_train_steps 2"
    assert programs.autoencoder(chain / "lm", tmp_path / "run", flags) == 0
    assert fingerprints(tmp_path / "run")[1]["model"] == fingerprints(chain / "ae")[1]["model"]


def test_flags_name_texts_that_were_moved(programs, chain, tmp_path):
    shutil.copytree(programs.corpus, tmp_path / "texts")
    files = " ".join(f"--{split}_file {tmp_path / 'texts' / split}.jsonl" for split in ("train", "valid", "test"))
    assert programs.again("diffusion", chain / "diff", f"--eval --output_dir {tmp_path / 'out'} {files}") == 0


def test_a_dry_run_of_a_trained_run_does_not_need_the_autoencoders_folder(programs, chain, tmp_path, capsys):
    shutil.copytree(chain / "ae", tmp_path / "ae")
    space = f"--latent_model_path {tmp_path / 'ae'} --enc_dec_model {chain / 'lm'}"
    assert programs.diffusion(space, tmp_path / "diff", "--num_train_steps 1") == 0
    shutil.rmtree(tmp_path / "ae")
    capsys.readouterr()
    assert programs.again("diffusion", tmp_path / "diff", "--eval --dry_run") == 0
    assert "latent space" in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_scorer_flag_a_local_one_is_trained_once(programs, chain, tmp_path, contents):
    space = f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, tmp_path / "run", "--scorer none") == 0
    assert (tmp_path / "run" / "scorer" / "local_lm.json").is_file()
    before = contents(tmp_path / "run" / "scorer")
    assert programs.again("diffusion", tmp_path / "run", "--eval") == 0
    assert contents(tmp_path / "run" / "scorer") == before


@pytest.fixture
def unpacked_scorer(programs, tmp_path, monkeypatch):
    """A scorer in the place where the default scorer lies, with the record of such a folder."""
    folder = tmp_path / "models" / "smollm2-135m"
    shutil.copytree(programs.scorer, folder)
    (folder / "local_lm.json").unlink()
    record = {"name": folder.name, "sha256": {p.name: file_sha256(p) for p in folder.iterdir()}}
    (folder / "pretrained.json").write_text(json.dumps(record))
    monkeypatch.setenv("LATENT_DIFFUSION_MODELS", str(folder.parent))
    return folder


def test_an_unpacked_model_is_the_default_scorer_and_an_encoder_adds_mauve(
    programs, chain, unpacked_scorer, tmp_path, capsys
):
    flags = f"--eval --scorer none --output_dir {tmp_path / 'out'} --mauve_encoder {unpacked_scorer}"
    assert programs.again("diffusion", chain / "diff", flags) == 0
    assert f"scorer: {unpacked_scorer}" in capsys.readouterr().err
    result = json.loads((tmp_path / "out/evaluation/eval-valid.json").read_text())
    assert result["protocol"]["scorer"] == "smollm2-135m"
    assert result["protocol"]["mauve_encoder"]["scaling"] == 8
    for name in ("smollm2-135m", "smollm2-135m-embeddings"):
        assert {f"model/greedy/{name}_val_mauve", f"reference/{name}_train_val_mauve"} <= set(result)
    assert "reference/val_linear_auc" in result and "model/greedy/linear_auc" in result
    weights = unpacked_scorer / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"model.safetensors is missing or was changed.*latent_models.pretrained"):
        programs.again("diffusion", chain / "diff", flags)
