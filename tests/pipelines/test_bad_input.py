"""Mistakes of a user through the real main(): a one-line message with the remedy, exit status 2, no file changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train_latent_model
import train_text_diffusion
from latent_models.pretraining import __main__ as pretraining
from latent_models.tokenizers.training import train_tokenizer
from utils.cache_folder import encoded_folder

ROOT = Path(__file__).resolve().parents[2]
TINY = "--device cpu --num_train_steps 2 --train_batch_size 8 --lr_warmup_steps 1"
LM = f"{TINY} --vocab_size 200 --d_model 64 --layers 1 --heads 2 --max_seq_len 40"
AE = f"{TINY} --max_seq_len 40 --num_encoder_latents 4 --dim_ae 64 --num_layers 1 --enc_dec_model {{chain}}/lm"
DIFF = f"{TINY} --max_seq_len 40 --tx_dim 64 --tx_depth 2 --scorer {{scorer}} --latent_model_path {{chain}}/ae"
MODULES = {"lm": (pretraining, LM), "ae": (train_latent_model, AE), "diff": (train_text_diffusion, DIFF)}


@pytest.fixture(scope="module")
def broken(chain, tales_folder, tmp_path_factory) -> Path:
    """A folder of damaged or unsuitable files, runs and models."""
    root = tmp_path_factory.mktemp("broken")
    (root / "empty.jsonl").write_text("")
    (root / "blank.txt").write_text("\n  \n\n")
    lines = (tales_folder / "train.jsonl").read_text().splitlines()
    (root / "bad.jsonl").write_text("\n".join([*lines[:2], '{"text": "no end', *lines[2:5]]))
    (root / "column.jsonl").write_text('{"story": 1}\n')
    (root / "plain.txt").write_text("".join(json.loads(line)["text"] + "\n" for line in lines))
    (root / "nothing").mkdir()
    write_odd_corpora(root)
    for name, change in {
        "no_checkpoint": lambda run: shutil.rmtree(run / "checkpoints"),
        "all_damaged": lambda run: [f.write_bytes(b"") for f in run.rglob("checkpoints/*/model.safetensors")],
        "no_json": lambda run: (run / "args.json").write_text("{"),
        "newer": lambda run: _edit(run / "args.json", schema_version=99),
        "wider": lambda run: _edit(run / "args.json", tx_dim=128),
    }.items():
        shutil.copytree(chain / "diff", root / name)
        change(root / name)
    shutil.copytree(chain / "ae", root / "wider_ae")
    _edit(root / "wider_ae" / "args.json", dim_ae=128, enc_dec_model=str(chain / "lm"))
    shutil.copytree(chain / "lm", root / "other_tokenizer")
    larger = [f"word{i}" for i in range(500)]
    train_tokenizer(larger, "word", 500, 40).save_pretrained(root / "other_tokenizer")
    shutil.copytree(chain / "lm", root / "other_special")
    file = root / "other_special" / "tokenizer_config.json"
    _edit(file, pad_token="<mask>")
    shutil.copytree(chain / "lm", root / "other_lm")
    _retrain(root / "other_lm")
    (root / "gpt").mkdir()
    (root / "gpt" / "config.json").write_text('{"model_type": "gpt2", "n_embd": 8}')
    return root


def write_odd_corpora(root: Path) -> None:
    """Write corpora with one mistake each, in the formats of users."""
    import pyarrow
    import pyarrow.parquet

    texts = [f"Anna went to the garden {i} times." for i in range(30)]

    def jsonl(name: str, rows: list) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    jsonl("labelled.jsonl", rows)
    jsonl("third.jsonl", [*rows[:2], {"text": "a", "label": 2}])
    jsonl("one_class.jsonl", [{**row, "label": "glad"} for row in rows])
    jsonl("every_one.jsonl", [{**row, "label": i} for i, row in enumerate(rows * 10)])
    jsonl("ag_news/train.jsonl", [*rows[:4], {"text": "a", "label": 4}, *rows])
    jsonl("sst/train.jsonl", [{"sentence": "good", "label": 0.9}, {"sentence": "bad", "label": "bad"}])
    jsonl("pairs.jsonl", [{"src": "a", "trg": "b"}, {"src": "c"}])
    jsonl("halves.jsonl", [{"src": text, "trg": ""} for text in texts])
    (root / "bare.csv").write_text("".join(f"{text}\n" for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"title": texts, "body": texts}), root / "titles.parquet")
    (root / "torn.parquet").write_bytes((root / "titles.parquet").read_bytes()[:300])


def _edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _retrain(folder: Path) -> None:
    """Change the weights and keep shapes and vocabulary."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({name: x + 0.01 for name, x in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


TALES = "--train_file {tales}/train.jsonl --valid_file {tales}/valid.jsonl --test_file {tales}/test.jsonl"
CASES = {
    # the corpus
    "missing file": ("lm ae diff", "--train_file {broken}/none.jsonl", "no file .*none.jsonl"),
    "empty file": ("lm ae diff", "--train_file {broken}/empty.jsonl", "empty.jsonl.*(no|empty)"),
    "only blank lines": ("lm ae diff", "--train_file {broken}/blank.txt", "blank.txt.*(no|empty)"),
    "malformed line": ("lm ae diff", "--train_file {broken}/bad.jsonl", "bad.jsonl.*line 3"),
    "no such column": ("lm", "--train_file {broken}/column.jsonl", "column.jsonl"),
    "unknown corpus": ("lm ae diff", "--dataset_name talse", "talse.*did you mean.*tales"),
    "absent corpus": ("lm ae diff", "--dataset_name roc --data_dir {broken}/nothing", "roc is not in"),
    "no corpus": ("lm diff", "", "no corpus"),
    "two corpora": ("lm diff", TALES + " --dataset_name tales", "two corpora"),
    "a class that training lacks": (
        "lm", "--train_file {broken}/labelled.jsonl --valid_file {broken}/third.jsonl",
        "third.jsonl, line 3: label 2 is not one of the classes 0, 1"),
    "a label out of range": (
        "lm diff", "--dataset_name ag_news --data_dir {broken}", "train.jsonl, line 5: label 4 is not one of"),
    "a label that is no number": (
        "lm", "--dataset_name sst --data_dir {broken}", r"line 2: label 'bad' is not a number in \[0, 1\]"),
    "labels that are no classes": ("lm", "--train_file {broken}/every_one.jsonl", "300 different values in 300 rows"),
    "one class": (
        "diff", "--train_file {broken}/one_class.jsonl --class_conditional",
        r"two classes or more, but all training texts of one_class have the same one \(glad\)"),
    "a row without its target": ("lm", "--train_file {broken}/pairs.jsonl", "pairs.jsonl, line 2: no column 'trg'"),
    "sources without target": (
        "lm", "--train_file {broken}/halves.jsonl", "a source .src. without text .trg.,.*line 1:"),
    "a table without header": (
        "lm diff", "--train_file {broken}/bare.csv", "bare.csv, line 1: 'Anna went.*is not a column name"),
    "which column": ("lm", "--train_file {broken}/titles.parquet", r"columns \(title, body\) holds the text"),
    "a wrong column": (
        "lm", "--train_file {broken}/titles.parquet --text_column bdy", "no column 'bdy' .did you mean body"),
    "half a file": ("lm", "--train_file {broken}/torn.parquet", "torn.parquet is not a complete parquet file"),
    "a missing repository": ("lm diff", "--dataset_name nobody/nothing", "nobody/nothing could not be loaded"),
    "classes without labels": ("diff", "--train_file {broken}/plain.txt --class_conditional", "needs labels"),
    # sizes
    "tx_dim": ("diff", TALES + " --tx_dim 100", "--tx_dim is 100.*use 64 or 128"),
    "d_model": ("lm", TALES + " --d_model 65", "--d_model 65.*--heads 2"),
    "dim_ae": ("ae", TALES + " --dim_ae 100", "--dim_ae.* is 100.*use 64 or 128"),
    "too many skips": ("diff", TALES + " --num_dense_connections 5", "--num_dense_connections 5"),
    "longer than the model reads": ("ae", TALES + " --max_seq_len 100", "--max_seq_len 100.*40"),
    "longer than the autoencoder reads": ("diff", TALES + " --max_seq_len 64", "--max_seq_len 64.*40"),
    "no room for a token": ("ae", TALES + " --max_seq_len 2", "--max_seq_len 3 or more"),
    "no steps of sampling": (
        "diff", TALES + " --sampling_timesteps 0", "--sampling_timesteps must be at least 1, not 0"),
    "more steps than the chain has": (
        "diff",
        TALES + " --beta_schedule linear --timesteps 20 --sampling_timesteps 30",
        "30.*20",
    ),
    "respacing without a chain": ("diff", TALES + " --timestep_respacing ddim5", "--timestep_respacing.*add --beta_"),
    "steps chosen twice": (
        "diff", TALES + " --beta_schedule sqrt --timestep_respacing 5 --time_grid karras", "--time_grid both choose"),
    "no such respacing": ("diff", TALES + " --beta_schedule sqrt --timestep_respacing fast", "the respacing 'fast'"),
    "a shift of the uniform grid": (
        "diff", TALES + " --grid_shift 2", "--grid_shift has no effect on the uniform grid"),
    "a shift below zero": ("diff", TALES + " --time_grid shifted --grid_shift -2", "grid shift .*positive number"),
    "no bound of the weight": ("diff", TALES + " --loss_weighting min_snr --config min_snr_gamma=0", "gamma"),
    "a bound below zero": ("diff", TALES + " --truncate_noise -1", "--truncate_noise"),
    "no probability": (
        "diff", TALES + " --train_prob_self_cond 1.5", "--train_prob_self_cond must be .* at most 1, not 1.5"),
    # models and runs
    "no such model": ("ae", TALES + " --enc_dec_model ./nowhere", "--enc_dec_model ./nowhere"),
    "folder without a model": ("ae", TALES + " --enc_dec_model {broken}/nothing", "config.json"),
    "not an encoder-decoder": ("ae", TALES + " --enc_dec_model {broken}/gpt", "gpt2"),
    "hub id that is not cached": ("ae", TALES + " --enc_dec_model nobody/nothing", "nobody/nothing"),
    "tokenizer of another model": ("ae", TALES + " --enc_dec_model {broken}/other_tokenizer", "tokenizer"),
    "other special tokens": ("ae", TALES + " --enc_dec_model {broken}/other_special", "pad_token_id"),
    "another language model": ("diff", TALES + " --enc_dec_model {broken}/other_lm", "not the language model that"),
    "autoencoder of another width": ("diff", TALES + " --latent_model_path {broken}/wider_ae", "wider_ae.*shape"),
    "not an autoencoder": ("diff", TALES + " --latent_model_path {chain}/diff", "not the run of an autoencoder"),
    "no autoencoder there": ("diff", TALES + " --latent_model_path {broken}/nothing", "nothing.*args.json"),
    "too much noise": ("diff", TALES + " --sampler ddim --ddim_sampling_eta 1.5", "eta must be at least 0"),
    "a scorer of another kind": ("diff", TALES + " --scorer {chain}/lm", "lm is not a causal language model"),
    "weights of another width": ("diff", TALES + " --init_path {chain}/diff --tx_dim 128", "chain.*diff.*shape"),
    "weights of another depth": (
        "diff",
        TALES + " --init_path {chain}/diff --self_condition --tx_depth 3",
        "lacks denoiser",
    ),
    "weights of another program": ("diff", TALES + " --init_path {chain}/lm", "chain.*lm"),
    "no such scorer": ("diff", TALES + " --scorer ./nowhere", "scorer ./nowhere"),
    "statistics of normalised latents": (
        "diff",
        TALES + " --latent_model_path {chain}/ae_l2 --normalize_latent",
        "--normalize_latent.*--l2_normalize_latents",
    ),
    # flags
    "unknown flag": ("lm ae diff", TALES + " --learning_rte 1", "did you mean --learning_rate"),
    "no number": ("lm ae diff", TALES + " --learning_rate fast", "--learning_rate expects a finite number"),
    "unknown decoding": ("ae diff", TALES + " --decoding beem", "--decoding 'beem'"),
    "two kinds of schedule": ("diff", TALES + " --beta_schedule linear --train_schedule cosine", "exclude each other"),
    "chain length without a chain": ("diff", TALES + " --timesteps 100", "--timesteps.*--beta_schedule"),
    "eta without ddim": ("diff", TALES + " --sampler ddpm --ddim_sampling_eta 1", "--ddim_sampling_eta.*ddim"),
    "decoder latents": ("ae", TALES + " --num_decoder_latents 8", "--num_decoder_latents 8.*leave it out"),
    "evaluate and resume": ("diff", "--eval --resume_training --resume_dir {chain}/diff", "exclude each other"),
    "evaluate what": ("diff ae", "--eval", "--eval needs --resume_dir"),
    "no such configuration": ("lm ae diff", "--config {broken}/none.yaml", "none.yaml"),
    "FSDP of a denoiser": (
        "diff", TALES + " --train_context_encoder --fsdp",
        "--fsdp shards.*--lm_mode ft only.*averaged weights"),
    "FSDP of a small model": ("lm", TALES + " --fsdp", "--fsdp shards.*--lm_mode ft only"),
    "absent device": ("lm ae diff", TALES + " --device mps", "--device mps"),
}  # fmt: skip
RUNS = {
    # flags after --resume_dir, of any program
    "no such folder": ("diff", "{broken}/none --resume_training", "none is not a run folder"),
    "an empty folder": ("lm", "{broken}/nothing --resume_training", "nothing is not a run folder"),
    "no checkpoint": ("diff", "{broken}/no_checkpoint --resume_training", "holds no checkpoint"),
    "no checkpoint to evaluate": ("diff", "{broken}/no_checkpoint --eval", "holds no checkpoint"),
    "only damaged checkpoints": ("diff", "{broken}/all_damaged --resume_training", "none of its checkpoints"),
    "args.json is no JSON": ("diff", "{broken}/no_json --eval", "args.json: not valid JSON"),
    "of a newer release": ("diff", "{broken}/newer --eval", "newer release"),
    "of another width": ("diff", "{broken}/wider --resume_training", "wider.*shape"),
    "evaluated with another width": ("diff", "{broken}/wider --eval", "wider.*shape"),
    "an autoencoder as a diffusion run": ("diff", "{chain}/ae --resume_training", "a run of train_latent_model.py"),
    "an autoencoder evaluated as a diffusion run": ("diff", "{chain}/ae --eval", "a run of train_latent_model.py"),
    "a language model as an autoencoder": ("ae", "{chain}/lm --resume_training", "a run of python -m latent_models"),
    "a diffusion run as a language model": ("lm", "{chain}/diff --resume_training", "a run of train_text_diffusion.py"),
    "flags that training fixed": ("ae", "{chain}/ae --resume_training --dim_ae 128", "--dim_ae 128 differs from 64"),
    "into another folder": ("diff", "{chain}/diff --resume_training --output_dir {broken}/x", "leave --output_dir out"),
    "another model to resume with": (
        "ae",
        "{chain}/ae --resume_training --enc_dec_model {broken}/other_lm",
        "not the language model",
    ),
    "another model's states": (
        "diff",
        "{chain}/states --eval --enc_dec_model {broken}/other_lm",
        "not the language model",
    ),
    "no mode of a diffusion run": ("diff", "{chain}/diff", "--resume_dir .* alone has no effect: add one of --eval"),
    "no mode of a language model": ("lm", "{chain}/lm", "alone has no effect: add one of --resume_training"),
    "two modes": ("diff", "{chain}/diff --eval --eval_test", "--eval and --eval_test exclude each other"),
    "a file to write to": (
        "diff",
        "{chain}/diff --eval --output_dir {broken}/plain.txt",
        "cannot write to .*plain.txt",
    ),
    "nowhere to write to": ("ae", "{chain}/ae --eval --output_dir /proc/nowhere", "cannot write to /proc/nowhere"),
    "evaluated with another model": (
        "ae",
        "{chain}/ae --eval --enc_dec_model {broken}/other_lm",
        "not the language model",
    ),
}


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, chain, broken, programs, contents):
    """Run main() with a mistake and return its one error line. No file of `chain` or `broken` may change."""

    def run(name: str, argv: str, output: bool = True) -> str:
        module, base = MODULES[name]
        out = f"--output_dir {tmp_path / 'out'}" if output else ""
        places = dict(chain=chain, broken=broken, tales=programs.corpus, scorer=programs.scorer)
        words = f"{base if output else ''} {out} {argv}".format(**places).split()
        before = contents(chain), contents(broken)
        monkeypatch.setattr("sys.argv", ["program", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == 2
        assert (contents(chain), contents(broken)) == before, "a refused command changed something"
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return errors[0]

    return run


def test_a_dry_run_prints_corpus_statistics_and_rejects_bad_data(monkeypatch, capsys, broken, chain):
    """A dry run trains nothing, and finds mistakes of the data before hours of training."""

    def main(argv: str) -> str:
        monkeypatch.setattr("sys.argv", ["program", *argv.split(), "--dry_run"])
        assert train_text_diffusion.main() == 0
        return capsys.readouterr().out

    base = f"--latent_model_path {chain / 'ae'} --max_seq_len 40 --class_conditional"
    shown = main(f"{base} --train_file {broken / 'labelled.jsonl'}")
    assert "columns: text = text, label = label" in shown and "train rows by class: 0 11, 1 10" in shown
    assert "warning: only 21 training texts" in shown
    with pytest.raises(SystemExit):
        main(f"{base} --train_file {broken / 'one_class.jsonl'}")


def test_every_program_saves_the_corpus_statistics(chain):
    for run in ("lm", "ae", "diff"):
        survey = json.loads((chain / run / "survey.json").read_text())
        assert survey["splits"]["train"]["rows"] == 200 and survey["max_length"] == 40
        assert survey["splits"]["test"]["tokens"]["100"] <= 40 and survey["warnings"]


def _expand(cases):
    return [
        pytest.param(stage, argv, message, id=f"{title}-{stage}".replace(" ", "_"))
        for title, (stages, argv, message) in cases.items()
        for stage in stages.split()
    ]


@pytest.mark.parametrize(("stage", "argv", "message"), _expand(CASES))
def test_a_mistake_gives_one_error_line(refused, tmp_path, stage, argv, message):
    line = refused(stage, argv)
    assert re.search(message, line), line
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not encoded_folder().exists(), "the error came only after the corpus was encoded"


@pytest.mark.parametrize(("stage", "argv", "message"), _expand(RUNS))
def test_an_unusable_run_folder_gives_one_error_line(refused, stage, argv, message):
    line = refused(stage, f"--resume_dir {argv}", output=False)
    assert re.search(message, line), line


@pytest.mark.parametrize("stage", ["lm", "ae", "diff"])
def test_training_does_not_overwrite_a_run(refused, chain, stage):
    line = refused(stage, f"{TALES} --output_dir {{chain}}/{stage}")
    assert f"--output_dir {chain / stage} already holds a run" in line and "--resume_training" in line


@pytest.mark.parametrize("stage", ["lm", "ae", "diff"])
def test_training_does_not_overwrite_a_model(refused, broken, stage):
    shutil.rmtree(broken / "other_lm" / "checkpoints", ignore_errors=True)
    assert "already holds a model" in refused(stage, f"{TALES} --output_dir {{broken}}/other_lm")


def test_a_nonfinite_loss_stops_training_and_keeps_the_checkpoints(programs, chain, tmp_path, capsys):
    """A learning rate that is far too high, after a good checkpoint."""
    from utils import checkpoints
    from utils.errors import UserError

    space = f"--latent_model_path {chain / 'ae'}"
    flags = "--num_train_steps 400 --learning_rate 1e30 --lr_warmup_steps 0 --clip_grad_norm 0 --save_every 1"
    with pytest.raises(UserError, match="the (loss|grad_norm) is (nan|inf) at step .*no checkpoint was overwritten"):
        programs.diffusion(space, tmp_path / "run", flags)
    assert all(bool(x.isfinite().all()) for x in checkpoints.load(tmp_path / "run").tensors["model"].values())


@pytest.mark.slow
def test_an_unreachable_hub_is_reported_within_seconds(programs, tmp_path):
    """Without HF_HUB_OFFLINE and without a cache, as for a user. The time includes imports."""
    away = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"}
    environment = {k: v for k, v in os.environ.items() if k not in away} | {"HF_HOME": str(tmp_path / "cache")}
    command = f"train_latent_model.py {programs.data} --device cpu --enc_dec_model nobody/nothing-{os.getpid()}"
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, *command.split(), "--output_dir", tmp_path / "out"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2 and "nobody/nothing" in result.stderr.splitlines()[-1], result.stderr
    assert time.monotonic() - start < 30
