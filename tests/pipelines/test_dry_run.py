"""--dry_run of the published ROCStories recipes without their data builds all components and writes no file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_latent_model
import train_text_diffusion
from latent_models.pretraining import __main__ as pretraining
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.tokenizers.training import train_tokenizer
from pipelines import train_causal_lm, train_classifier, train_draft_model
from pipelines.summary import module_table
from utils.distributed import cleanup

STAGE_0 = "--dataset_name roc --tokenizer bpe --vocab_size 2000 --d_model 256 --heads 4 --layers 3 --max_seq_len 64"
AUTOENCODER = (
    "--dataset_name roc --learning_rate 1e-4 --lr_warmup_steps 1000 --train_batch_size 256 --num_encoder_latents 32 "
    "--dim_ae 64 --num_decoder_latents 32 --eval_every 1000 --num_layers 3 --wandb_name roc_l2norm_32_64 "
    "--l2_normalize_latent"  # abbreviated, as the published script has it
)
DIFFUSION = (
    "--dataset_name roc --learning_rate 2e-4 --num_train_steps 250000 --train_batch_size 128 --tx_dim 768 "
    "--tx_depth 12 --objective pred_v --loss_type l2 --num_samples 1000 --self_condition --scale_shift "
    "--num_dense_connections 3 --train_schedule cosine --sampling_timesteps 250 --save_and_sample_every 5000 "
    "--wandb_name roc_latent_v"
)
EVALUATION = "--sampling_timesteps 250 --num_samples 1000 --sampler ddpm --sampling_schedule cosine"
FIRST_RELEASE = (
    "--dataset_name roc --learning_rate 1e-4 --num_train_steps 500000 --train_batch_size 64 --tx_dim 768 --tx_depth 12 "
    "--objective pred_x0 --loss_type l1 --beta_schedule linear --self_condition --normalize_latent --scale_shift "
    "--disable_dropout --denoiser_variant states --optimizer adamw --timesteps 1000 --amp"
)
ANNEALED = (
    "--dataset_name roc --num_train_steps 80000 --adam_weight_decay 0.01 --train_batch_size 64 --T_schedule polynomial "
    "--polynomial_T_power 2 --optimizer adamW --loss_type l1 --beta_schedule linear --random_seed 41 --self_condition "
    "--save_and_sample_every 5000 --denoiser_variant states --ddim_sampling_eta 1"
)


@pytest.fixture(scope="module")
def models(programs, tmp_path_factory) -> Path:
    """A tiny BART that reads 64 tokens, and the run of an autoencoder around it."""
    root = tmp_path_factory.mktemp("models")
    options = PretrainingOptions(vocab_size=200, d_model=64, layers=1, heads=2, max_seq_len=64)
    tokenizer = train_tokenizer(["an untrained tiny bart"], "word", 200, 64)
    small_bart(options, tokenizer).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    assert programs.autoencoder(root / "lm", root / "ae", "--max_seq_len 64 --num_train_steps 1 --eval_texts 1") == 0
    return root


@pytest.fixture
def dry_run(monkeypatch, tmp_path, capsys):
    """A function: run main() of an entry point in an empty folder -> (stdout, lines of stderr)."""

    def run(program, argv: str) -> tuple[str, list[str]]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["program", *argv.split(), "--dry_run"])
        assert program.main() == 0
        assert not list(tmp_path.iterdir()), "a dry run writes nothing"
        out, err = capsys.readouterr()
        return out, err.strip().splitlines()

    return run


@pytest.mark.parametrize(
    ("program", "argv", "shown"),
    [
        (pretraining, STAGE_0, ["d_model", "256", "language model"]),
        (train_latent_model, f"{AUTOENCODER} --enc_dec_model {{models}}/lm", ["num_encoder_latents", "autoencoder"]),
        (train_text_diffusion, f"{DIFFUSION} --latent_model_path {{models}}/ae", ["tx_dim", "768", "denoiser"]),
        (train_text_diffusion, f"{DIFFUSION} {EVALUATION} --latent_model_path {{models}}/ae", ["ddpm"]),
        (
            train_text_diffusion,
            f"{DIFFUSION} --denoiser_variant encoder --latent_model_path {{models}}/ae",
            ["denoiser"],
        ),
        (train_text_diffusion, f"{FIRST_RELEASE} --enc_dec_model {{models}}/lm", ["linear", "pred_x0"]),
        (train_text_diffusion, f"{ANNEALED} --enc_dec_model {{models}}/lm", ["polynomial", "ddim_sampling_eta"]),
    ],
    ids=["pretraining", "autoencoder", "diffusion", "sampling", "encoder", "first-release", "annealed"],
)
def test_published_recipes_without_their_data(dry_run, models, program, argv, shown):
    out, errors = dry_run(program, argv.format(models=models))
    assert all(word in out for word in shown)
    assert "trained" in out and "frozen" in out
    # the layout of the encoder variant comes from its configuration, not from flags
    of_encoder = "note: these flags have no effect here: --tx_dim has an effect only with"
    notes = [line for line in errors if "--amp" not in line and not line.startswith(of_encoder)]
    assert len(notes) == 1 and notes[0].startswith("note: roc is not in datasets"), errors


def test_every_training_program_destroys_its_process_group(dry_run, models, chain, tmp_path_factory):
    """Without it NCCL warns at the end of each run, and may block other processes."""
    store = tmp_path_factory.mktemp("group")
    for i, (program, argv) in enumerate((
        (pretraining, STAGE_0),
        (train_latent_model, f"{AUTOENCODER} --enc_dec_model {models}/lm"),
        (train_text_diffusion, f"{DIFFUSION} --latent_model_path {models}/ae"),
        (train_draft_model, f"--latent_model_path {models}/ae"),
        (train_classifier, f"--diffusion_run {chain}/diff --dataset_name sst"),
    )):  # fmt: skip
        torch.distributed.init_process_group("gloo", init_method=f"file://{store / str(i)}", rank=0, world_size=1)
        try:
            dry_run(program, argv)
            assert not torch.distributed.is_initialized()
        finally:
            cleanup()


def test_modules_are_a_table_and_tensors_are_listed_on_demand(dry_run, models):
    out, _ = dry_run(train_text_diffusion, f"{DIFFUSION} --latent_model_path {models / 'ae'}")
    table = out[out.index("\nmodule ") :].splitlines()
    names = {line.split()[0] for line in table if line.strip()}
    assert {"denoiser", "trunk", "positions"} <= names, "the modules of the denoiser are named"
    assert len(table) < 60 and "trunk.blocks.0" not in out
    layers = next(line for line in table if line.strip().startswith("blocks (list of 12)"))
    assert int(layers.split()[-2].replace(",", "")) > 50e6 and layers.split()[-1] == "0"
    verbose, _ = dry_run(train_text_diffusion, f"{DIFFUSION} --latent_model_path {models / 'ae'} --verbose")
    assert "trunk.blocks.11.attention.q.weight [768, 768]" in verbose


def test_the_parts_of_a_module_sum_to_it_and_a_shared_tensor_counts_once():
    shared = torch.nn.Linear(3, 3)
    frozen = torch.nn.Linear(3, 2).requires_grad_(False)
    module = torch.nn.ModuleDict({"first": shared, "again": shared, "frozen": frozen})
    module.scale = torch.nn.Parameter(torch.ones(5))
    rows = [line.split() for line in module_table({"part": module}).splitlines()[1:]]
    assert rows[0] == ["part", "17", "8"]
    assert [row for row in rows if row[0] in ("first", "again", "frozen", "scale")] == [
        ["scale", "5", "0"], ["first", "12", "0"], ["frozen", "0", "8"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "flags", "advice"),
    [
        (pretraining, "--vocab_size 40", "raise --vocab_size (now 40), or use --tokenizer bpe"),
        (train_latent_model, "--enc_dec_model {models}/lm", "use a language model whose vocabulary contains them"),
        (
            train_text_diffusion,
            "--latent_space embeddings --vocab_size 40 --config max_unk_rate=1",
            "raise --vocab_size (now 40), or use --vocab byte-level",
        ),
        (train_causal_lm, "--tokenizer word --vocab_size 40", "raise --vocab_size (now 40), or use --tokenizer bpe"),
    ],
    ids=["stage-0", "autoencoder", "embeddings", "causal"],
)
def test_a_warning_of_unknown_tokens_names_what_helps_there(dry_run, models, programs, program, flags, advice):
    out, _ = dry_run(program, f"{programs.data} {flags.format(models=models)}")
    lines = [line for line in out.splitlines() if "unknown to the tokenizer" in line]
    assert lines and all(advice in line for line in lines), lines


def test_a_dry_run_with_its_data_prints_no_note(dry_run, programs, chain):
    out, errors = dry_run(train_text_diffusion, f"{programs.data} --latent_model_path {chain / 'ae'} --max_seq_len 40")
    assert not errors and "denoiser" in out


def test_widths_and_counts_are_those_of_the_published_network(dry_run, models):
    """The second release's ROC denoiser: 768 wide, 12 deep, 3 dense connections."""
    out, _ = dry_run(train_text_diffusion, f"{DIFFUSION} --latent_model_path {models / 'ae'}")
    line = next(line for line in out.splitlines() if line.startswith("denoiser "))
    assert 150e6 < int(line.split()[1].replace(",", "")) < 250e6, line
