"""Conversion of runs of the published code: tiny runs in its format with the recorded networks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latent_models.language_models import LanguageModel
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.spaces.compressed import CompressedSpace
from latent_models.tokenizers.training import train_tokenizer
from pipelines.convert_reference import main
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.model.test_reference_weights import first_release_names
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.records import Condition

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
META = json.loads((GOLDEN / "meta.json").read_text())
COMMON = dict(learning_rate=1e-4, lr_warmup_steps=1000, wandb_name="x", optimizer="adamw", num_devices=1, eval=False)
AUTOENCODER = dict(
    COMMON, dataset_name="tales", max_seq_len=40, num_encoder_latents=6, num_decoder_latents=32, dim_ae=64,
    num_layers=2, l2_normalize_latents=True, lm_mode="freeze", output_dir=None, save_dir="saved_latent_models",
    resume_dir=None,
)  # fmt: skip
DIFFUSION = dict(
    COMMON, dataset_name="tales", tx_dim=64, max_seq_len=8, objective="pred_v", train_schedule="cosine",
    sampling_schedule=None, scale=1.0, num_samples=4, sampling_timesteps=3, sampler="ddpm", class_conditional=False,
    trainable_params=5, amp=False, eval_test=False, resume_dir=None, init_path=None,
)  # fmt: skip


def golden(name: str) -> tuple[dict, dict]:
    """(weights under published names, recorded inputs and outputs)."""
    held = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key.removeprefix("param."): x.float() for key, x in held.items() if key.startswith("param.")}
    return weights, {key: x.float() if x.is_floating_point() else x for key, x in held.items()}


@pytest.fixture(scope="module")
def language_model(tales_folder, tmp_path_factory):
    """A function: width -> the folder of a tiny BART."""
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]

    def of(width: int) -> Path:
        folder = tmp_path_factory.mktemp(f"lm{width}")
        tokenizer = train_tokenizer(texts, "word", 200, 64)
        torch.manual_seed(width)
        small_bart(PretrainingOptions(d_model=width, layers=1, heads=2), tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return of


def write_run(
    folder: Path, args: dict, state: dict, ema: dict | None = None, name: str = "model.pt", step: int = 7
) -> Path:
    """Write a run folder as the published code does."""
    folder.mkdir(exist_ok=True)
    (folder / "args.json").write_text(json.dumps(args, indent=2))
    held = {"step": step, "model": state, "opt": {"state": {}, "param_groups": []}, "scaler": None}
    if ema is not None:
        averages = {f"{kind}.{key}": x for kind in ("online_model", "ema_model") for key, x in ema.items()}
        held["ema"] = {"initted": torch.tensor([1.0]), "step": torch.tensor([step]), **averages}
    torch.save(held, folder / name)
    return folder


def diffusion_state(weights: dict, width: int, **extra) -> dict:
    statistics = {"latent_mean": torch.zeros(width), "latent_scale": torch.tensor(1.0)}
    return {**statistics, **{f"diffusion_model.{key}": x for key, x in weights.items()}, **extra}


@pytest.fixture(scope="module")
def autoencoder(language_model, tmp_path_factory) -> tuple[Path, Path]:
    """(folder of the published run, its language model)."""
    lm = language_model(128)
    weights, _ = golden("autoencoder_l2norm_true")
    state = {f"perceiver_ae.{key}": x for key, x in weights.items()} | LanguageModel.from_pretrained(
        str(lm)
    ).model.state_dict()
    args = {**AUTOENCODER, "enc_dec_model": str(lm)}
    return write_run(tmp_path_factory.mktemp("reference") / "ae", args, state), lm


def test_a_converted_autoencoder_encodes_and_decodes_as_recorded(autoencoder, programs, tmp_path, capsys):
    source, _ = autoencoder
    assert main([str(source), str(tmp_path / "ae")]) == 0
    assert "converted from" in capsys.readouterr().out
    space, saved = CompressedSpace.from_pretrained(tmp_path / "ae"), read_args(tmp_path / "ae")
    _, data = golden("autoencoder_l2norm_true")
    latents = space.autoencoder.encode(data["in.encoder_states"], data["in.attention_mask"].bool())
    torch.testing.assert_close(latents, data["out.latents"], atol=1e-5, rtol=0)
    torch.testing.assert_close(space.autoencoder.decode(latents), data["out.decoder_states"], atol=1e-5, rtol=0)
    assert saved["max_seq_len"] == 40 and saved["learning_rate"] == 1e-4 and saved["converted_from"] == str(source)
    assert checkpoints.load(tmp_path / "ae").step == 7
    with pytest.raises(UserError, match="no state of the optimizer"):
        programs.resume("autoencoder", tmp_path / "ae", f"--data_dir {programs.corpus}")


def on_latents(scale: float = 1.0) -> dict:
    """The recorded plain denoiser, widened to 64 channels."""
    weights, _ = golden("denoiser_plain")
    torch.manual_seed(0)
    shapes = {"input_proj.weight": (64, 64), "output_proj.weight": (64, 64), "output_proj.bias": (64,)}
    return weights | {name: scale * 0.1 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("converted", [False, True])
def test_a_converted_denoiser_samples_with_the_averaged_weights(autoencoder, tmp_path, converted):
    """Its autoencoder may be unconverted. Parameter names may have the prefix of DataParallel."""
    folder, lm = autoencoder
    if converted:
        assert main([str(folder), str(tmp_path / "ae")]) == 0
        folder = tmp_path / "ae"
    args = {**DIFFUSION, "tx_depth": 2, "latent_model_path": "/gone", "enc_dec_model": "facebook/bart-base"}
    args |= dict(latent_model_path=str(folder)) if not converted else {}
    state, ema = (diffusion_state(on_latents(scale), 64) for scale in (0.0, 1.0))
    source = write_run(tmp_path / "reference", args, {f"module.{k}": x for k, x in state.items()}, ema)
    named = ["--latent_model_path", str(folder)] if converted else []
    assert main([str(source), str(tmp_path / "run"), *named]) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    network = pipeline.generator.denoiser
    assert torch.equal(network.output_proj.weight, ema["diffusion_model.output_proj.weight"])
    assert not checkpoints.load(tmp_path / "run").tensors["model"]["denoiser.output_proj.weight"].any()
    assert checkpoints.load(tmp_path / "run").metadata["ema_updates"] == 7
    texts = pipeline(3, seed=1, decoding="greedy")
    assert texts == pipeline(3, seed=1, decoding="greedy") and len(texts) == 3
    moved = tmp_path / "elsewhere"
    os.replace(tmp_path / "run", moved)
    assert TextDiffusionPipeline.from_pretrained(moved, device="cpu")(3, seed=1, decoding="greedy") == texts


def test_a_converted_denoiser_on_encoder_states_predicts_as_recorded_and_draws_lengths(
    language_model, programs, tmp_path
):
    weights, data = golden("denoiser_unconditional_selfcond_dense")
    lm = language_model(16)
    args = {**DIFFUSION, "tx_depth": 5, "self_condition": True, "scale_shift": True, "num_dense_connections": 2}
    args |= dict(enc_dec_model=str(lm), latent_model_path=None, normalize_latent=True)
    extra = {"latent_mean": torch.full((16,), 0.5), "latent_scale": torch.tensor(2.0)}
    state = diffusion_state(weights, 16) | extra
    source = write_run(tmp_path / "reference", args, state, state)
    with pytest.raises(SystemExit):  # the corpus is missing, and no folder is left behind
        main([str(source), str(tmp_path / "run"), "--data_dir", str(tmp_path)])
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("*.partial"))
    assert main([str(source), str(tmp_path / "run"), "--data_dir", str(programs.corpus)]) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    network, space = pipeline.generator.denoiser.eval(), pipeline.generator.space
    out = network(data["in.z_t"], data["in.alpha"], data["in.mask"].bool(), x0_self_cond=data["in.self_cond"])
    torch.testing.assert_close(out, data["out.with_self_cond"], atol=5e-5, rtol=0)
    assert space.statistics.length_counts.sum() == 200 and space.statistics.scale == 2
    assert len(pipeline(2, decoding="greedy")) == 2


def test_a_fine_tuned_language_model_is_converted_with_its_autoencoder(autoencoder, tmp_path):
    source, lm = autoencoder
    state = torch.load(source / "model.pt", weights_only=True)["model"]
    tuned = {key: x if key.startswith("perceiver_ae.") else x + 1 for key, x in state.items()}
    args = {**AUTOENCODER, "enc_dec_model": str(lm), "lm_mode": "ft"}
    assert main([str(write_run(tmp_path / "reference", args, tuned)), str(tmp_path / "ae")]) == 0
    space = CompressedSpace.from_pretrained(tmp_path / "ae")
    found = space.language_model.model.state_dict()
    assert torch.equal(found["model.decoder.layers.0.fc1.weight"], state["model.decoder.layers.0.fc1.weight"] + 1)


def test_a_class_conditional_denoiser_keeps_class_names_and_the_best_checkpoint(language_model, programs, tmp_path):
    """tales has four classes: the recorded network of three gets one more."""
    weights, _ = golden("denoiser_class_conditional")
    table = weights["class_embedding.0.weight"]
    weights["class_embedding.0.weight"] = torch.cat([table, table[:1]])
    args = {**DIFFUSION, "tx_depth": 2, "self_condition": True, "scale_shift": True, "num_dense_connections": 1}
    args |= dict(enc_dec_model=str(language_model(16)), class_conditional=True, class_unconditional_prob=0.1)
    state = diffusion_state(weights, 16)
    source = write_run(tmp_path / "reference", args, state, state)
    write_run(source, args, state, state, "best_model.pt", step=3)
    assert main([str(source), str(tmp_path / "run"), "--data_dir", str(programs.corpus)]) == 0
    assert checkpoints.load(tmp_path / "run").step == 7 and checkpoints.load_best(tmp_path / "run").step == 3
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    assert len(pipeline(2, decoding="greedy", class_id=pipeline.class_names[2])) == 2


def test_a_denoiser_with_sources_finds_its_context_encoder(language_model, programs, tmp_path):
    weights, data = golden("denoiser_seq2seq")
    lm, reader = language_model(16), language_model(48)
    args = {**DIFFUSION, "tx_depth": 2, "self_condition": True, "scale_shift": True, "num_dense_connections": 1}
    args |= dict(dataset_name="tales-pairs", enc_dec_model=str(lm), seq2seq_unconditional_prob=0.1)
    encoder = LanguageModel.from_pretrained(str(reader)).model.get_encoder().state_dict()
    held = {f"context_encoder.{key}": x for key, x in encoder.items()}
    state = diffusion_state(weights, 16, **held)
    source = write_run(tmp_path / "reference", args, state, state)
    flags = ["--data_dir", str(programs.corpus), "--context_encoder"]
    with pytest.raises(SystemExit):  # not the model that it was trained with
        main([str(source), str(tmp_path / "run"), *flags, str(lm)])
    assert main([str(source), str(tmp_path / "run"), *flags, str(reader)]) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    network = pipeline.generator.denoiser.eval()
    condition = Condition.of(source=data["in.context"], source_mask=data["in.context_mask"].bool())
    out = network(data["in.z_t"], data["in.alpha"], data["in.mask"].bool(), condition, data["in.self_cond"])
    torch.testing.assert_close(out, data["out.with_self_cond"], atol=5e-5, rtol=0)
    assert len(pipeline.generate_from_sources(["One night Leo ran."], candidates=2, decoding="greedy")) == 1


def test_a_run_of_the_first_release_keeps_its_schedule_and_network(language_model, programs, tmp_path):
    names = first_release_names(latent=16, positions=64)
    torch.manual_seed(0)
    weights = {key: 0.1 * torch.randn(shape) for key, shape in names.items() if "class_embedding" not in key}
    state = diffusion_state(weights, 16, betas=torch.zeros(4), latent_scale=torch.tensor(2.0))
    args = dict(
        COMMON, dataset_name="tales", optimizer="awamW", tx_dim=64, tx_depth=2, objective="pred_x0", loss_type="l1",
        beta_schedule="linear", timesteps=1000, sampling_timesteps=3, ddim_sampling_eta=1.0, self_condition=True,
        scale_shift=True, normalize_latent=True, num_samples=4, corruption_prob=0.0, milestone=12, T_schedule="cosine",
        enc_dec_model=str(language_model(16)), random_seed=41, gen_data=False, class_conditional=False,
    )  # fmt: skip
    source = write_run(tmp_path / "reference", args, state, state)
    assert main([str(source), str(tmp_path / "run"), "--data_dir", str(programs.corpus)]) == 0
    saved = json.loads((tmp_path / "run/args.json").read_text())
    wanted = dict(denoiser_variant="states", beta_schedule="linear", sampler="ddim", ddim_sampling_eta=1.0)
    assert {name: saved[name] for name in wanted} == wanted and saved["optimizer"] == "adamw"
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    assert torch.isclose(pipeline.generator.space.statistics.scale, torch.tensor(2.00001))
    assert len(pipeline(2, decoding="greedy")) == 2


def test_other_files_are_rejected_in_one_line_and_their_code_never_runs(autoencoder, language_model, tmp_path, capsys):
    folder, lm = autoencoder

    def error_of(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        line = capsys.readouterr().err
        assert ended.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
        return line

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "their code ran"),)

    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "args.json").write_text((folder / "args.json").read_text())
    torch.save({"model": {}, "step": Runs()}, evil / "model.pt")
    assert "can run code, so it is not read" in error_of(str(evil), str(tmp_path / "out"))
    assert not (tmp_path / "their code ran").exists()
    assert "is not empty" in error_of(str(folder), str(evil))
    other = str(language_model(128))
    load = LanguageModel.from_pretrained(other).model
    with torch.no_grad():
        load.model.shared.weight.add_(1)
    load.save_pretrained(other)
    assert "is not the model in" in error_of(str(folder), str(tmp_path / "out"), "--enc_dec_model", other)
    assert main([str(folder), str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    assert "is a run of this project already" in error_of(str(tmp_path / "ours"), str(tmp_path / "out"))
    (evil / "model.pt").unlink()
    assert "holds no model.pt" in error_of(str(evil), str(tmp_path / "out"))
