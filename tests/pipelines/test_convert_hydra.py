"""Conversion of runs of the Hydra version of LD4LG: a tiny run in its format, from weights of our network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from latent_models.language_models import LanguageModel
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.tokenizers.training import train_tokenizer
from model import make_denoiser
from model.blocks import FeedForward
from model.options import DenoiserOptions
from pipelines.convert_reference import main
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.records import Condition

WIDTH, LENGTH = 64, 24
NAMES = (  # ours -> published, without `transformer.`
    (r"^time_embedding\.up\.", "time_mlp.1."),
    (r"^time_embedding\.out\.", "time_mlp.3."),
    (r"^time_to_token\.", "time_pos_emb_mlp.1."),
    (r"^positions\.", "pos_emb.emb."),
    (r"^previous_tokens\.null$", "null_emb.weight"),
    (r"^previous_tokens\.proj\.", "self_proj."),
    (r"^class_labels\.table\.", "class_emb."),
    (r"^relative_positions\.table\.", "transformer_layers.rel_pos.relative_attention_bias."),
)
BRANCHES = {"attention": 0, "cross": 1, "feed_forward": 2}
INNER = (
    (r"^norm\.", "0."), (r"^(q|k|v|out)\.", r"1.to_\1."), (r"^up\.", "1.ff.0.proj."), (r"^down\.", "1.ff.2."),
    (r"^scale_shift\.proj\.", "2.time_mlp.1."),
)  # fmt: skip


def rename(name: str, rules) -> str:
    for pattern, replacement in rules:
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name


def published_name(name: str) -> str:
    if found := re.match(r"trunk\.blocks\.(\d+)\.(\w+?)\.(.+)$", name):
        layer = 3 * int(found[1]) + BRANCHES[found[2]]
        return f"transformer.transformer_layers.layers.{layer}.{rename(found[3], INNER)}"
    return f"transformer.{rename(name, NAMES)}"


def configuration(language_model: Path) -> dict:
    """The parts of .hydra/config.yaml that name the network, the process and the training."""
    layout = dict(
        x_dim=WIDTH, seq_len=LENGTH, hidden_dim=WIDTH, head_dim=64, heads=1, depth=2, layer_block=["a", "c", "f"],
        attn_dropout=0.1, ff_dropout=0.1, use_self_condition=True, use_class_condition=True, num_classes=4,
    )  # fmt: skip
    return {
        "dataset": {"name": "tales", "use_class_condition": True, "num_classes": 4},
        "diffusion": {
            "beta": {"schedule": "cosine", "s": 0.008}, "timesteps": 1000, "objective": "pred_x0", "loss_type": "l1",
            "self_condition_prob": 0.5, "class_uncondition_prob": 0.1,
        },
        "network": {"autoencoder": {"name": str(language_model)}, "transformer": layout},
        "train": {
            "optimizer": {"name": "AdamW", "params": {"lr": 1e-4, "weight_decay": 1e-6, "betas": [0.9, 0.999]}},
            "scheduler": {"name": "cosine", "num_warmup_steps": 1000}, "epoch": 150, "dataloader": {"batch_size": 8},
        },
        "generation": {"num_samples": 4, "batch_size": 4, "sampling_steps": 3, "eta": 0.0},
        "general": {"seed": 42},
    }  # fmt: skip


@pytest.fixture(scope="module")
def language_model(tales_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    tokenizer = train_tokenizer(texts, "word", 200, 64)
    torch.manual_seed(0)
    small_bart(PretrainingOptions(d_model=WIDTH, layers=1, heads=2), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def new_network(seed: int):
    """Our network in the layout of that version, with random numbers also where ours begins with zeros."""
    torch.manual_seed(seed)
    options = DenoiserOptions(
        tx_dim=WIDTH, tx_depth=2, self_condition=True, scale_shift=True, scale_shift_norm=False,
        denoiser_variant="states", class_conditional=True,
    )  # fmt: skip
    network = make_denoiser(WIDTH, LENGTH, options, num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return network.eval()


def write_run(folder: Path, config: dict, language_model: Path, network, averaged) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    (folder / "checkpoints").mkdir()
    bart = LanguageModel.from_pretrained(str(language_model)).model.state_dict()
    for i, (name, module) in enumerate((("pytorch_model.bin", network), ("pytorch_model_1.bin", averaged))):
        state = {published_name(key): x for key, x in module.state_dict().items()}
        state |= {f"autoencoder.{key}": x for key, x in bart.items()} | {"alphas_cumprod": torch.rand(1000)}
        state |= {"x_mean": torch.full((WIDTH,), 0.5), "x_std": torch.tensor(2.0) if i == 0 else torch.tensor([2.0])}
        torch.save(state, folder / "checkpoints" / name)
    return folder


def test_a_converted_run_predicts_and_samples_with_the_averaged_weights(language_model, programs, tmp_path):
    network, averaged = new_network(0), new_network(1)
    source = write_run(tmp_path / "theirs", configuration(language_model), language_model, network, averaged)
    scheduler = {"last_epoch": 1234, "_step_count": 1235, "lr_lambdas": [{}]}
    torch.save(scheduler, source / "checkpoints/scheduler.bin")
    assert main([str(source), str(tmp_path / "ours"), "--data_dir", str(programs.corpus)]) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "ours", device="cpu")
    z, time, mask = torch.randn(3, LENGTH, WIDTH), torch.tensor([0.0, 0.4, 0.999]), torch.ones(3, LENGTH).bool()
    condition, previous = Condition.of(class_id=torch.tensor([0, 3, 4])), torch.randn(3, LENGTH, WIDTH)
    with torch.no_grad():
        found, expected = (
            module(z, time, mask, condition, previous) for module in (pipeline.generator.denoiser.eval(), averaged)
        )
    assert torch.equal(found, expected)
    held, saved = checkpoints.load(tmp_path / "ours"), read_args(tmp_path / "ours")
    assert torch.equal(held.tensors["model"]["denoiser.norm.weight"], network.norm.weight) and held.step == 1234
    wanted = dict(denoiser_variant="states", beta_schedule="cosine", sampler="ddim", ddim_sampling_eta=0.0, tx_depth=2)
    assert {name: saved[name] for name in wanted} == wanted and saved["scale_shift_norm"] is False
    statistics = pipeline.generator.space.statistics
    assert torch.isclose(statistics.scale, torch.tensor(2.00001)) and statistics.length_counts.sum() == 200
    assert len(pipeline(2, decoding="greedy", class_id=pipeline.class_names[1])) == 2


def test_without_a_norm_the_branch_is_scaled_and_shifted_as_it_is():
    torch.manual_seed(0)
    branch, x, time = FeedForward(8, 4, post_norm=False), torch.randn(2, 3, 8), torch.randn(2, 4)
    torch.nn.init.normal_(branch.scale_shift.proj.weight)
    value, gate = branch.up(branch.norm(x)).chunk(2, dim=-1)
    h = branch.down(value * torch.nn.functional.gelu(gate))
    scale, shift = branch.scale_shift.proj(time)[:, None, :].chunk(2, dim=-1)
    torch.testing.assert_close(branch(x, time), h * (1 + scale) + shift)
    assert "post_norm.weight" not in branch.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["network"]["transformer"].update(layer_block=["a", "f"]), "layer_block is .* only runs with"),
        (lambda c: c["network"]["transformer"].update(x_dim=768), "x_dim is 768, and only runs with 64"),
        (
            lambda c: c["diffusion"].update(beta={"schedule": "linear"}, timesteps=500),
            "equals ours at 1,000 steps only, and this run has 500",
        ),
    ],
)
def test_another_layout_is_refused_in_one_line(language_model, programs, tmp_path, capsys, change, message):
    config = configuration(language_model)
    change(config)
    source = write_run(tmp_path / "theirs", config, language_model, new_network(0), new_network(1))
    with pytest.raises(SystemExit) as ended:
        main([str(source), str(tmp_path / "ours"), "--data_dir", str(programs.corpus)])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(message, line) and line.count("\n") == 1
    assert not (tmp_path / "ours").exists()
