"""Pipelines of every kind of run, each trained for a few steps, and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from pipelines import train_classifier
from pipelines.cli.programs import CLASSIFIER
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.cli.parse import parse

SOURCES = ["Ben ran to the garden one warm night.", "Later she gave it to her mother."]
EMBEDDINGS = "--latent_space embeddings --embedding_dim 8 --timesteps 20"
ENCODER = "--denoiser_variant encoder --self_condition --beta_schedule sqrt --timesteps 20 --objective pred_x0"
# kind -> flags with which its run is loaded
KINDS: dict[str, dict[str, Any]] = {
    "latents": {"sampling_timesteps": 3, "sampler": "ddim", "ddim_sampling_eta": 0.5},
    "drafted": {"sampling_timesteps": 3, "decoding": "greedy"},
    "states": {"preset": "fast", "sampling_timesteps": 3},
    "classes": {"cls_free_guidance": 2},
    "pairs": {},
    "context": {"mixed_precision": "bf16"},
    "embeddings": {"eval_batch_size": 2, "clamp": True},
    "controlled": {"target_label": "1", "guidance_steps": 1, "guidance_prior_weight": 0.5},
    "frozen": {},
    "packed": {"rejection_rate": 0.5},
    "encoder": {},
    "student": {},
}


@pytest.fixture(scope="session")
def runs(programs, chain, tales_folder, tmp_path_factory) -> Callable[[str], Path]:
    """kind -> the folder of its run, trained when it is first asked for."""
    root = tmp_path_factory.mktemp("kinds")
    latents = f"--latent_model_path {chain / 'ae_l2'}"
    pairs = " ".join(f"--{s}_file {tales_folder / f'pairs_{s}.jsonl'}" for s in ("train", "valid", "test"))
    pairs += " --seq2seq_candidates 2"
    longer = "--num_train_steps 60 --learning_rate 3e-3 --log_every 60"
    packed = f"{pairs} --max_seq_len 64 --learned_mean_embed --denoise --denoise_rate 0.5 --truncate_sources"

    def drafted(out: Path) -> int:
        assert programs.draft_model(chain / "ae_l2", f"--output_dir {root / 'draft'} --config val_loss_examples=4") == 0
        return programs.diffusion(latents, out)

    def context(out: Path) -> int:
        assert programs.pretrain(root / "lm", "--d_model 32 --vocab_size 150 --num_train_steps 2") == 0
        return programs.diffusion(latents, out, f"{pairs} --context_encoder {root / 'lm'} --train_context_encoder")

    def controlled(out: Path) -> int:
        assert programs.diffusion(EMBEDDINGS, out, "--class_conditional") == 0
        flags = f"{programs.data} --diffusion_run {out} --output_dir {root / 'classifier'} --device cpu --no_wandb"
        flags += " --num_train_steps 2 --train_batch_size 8"
        return train_classifier.train(parse(CLASSIFIER, flags.split()))

    def encoder(out: Path) -> int:
        torch.manual_seed(0)
        small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
        BertModel(BertConfig(**small, max_position_embeddings=48)).save_pretrained(root / "bert")
        return programs.diffusion(latents, out, f"{ENCODER} --encoder_config {root / 'bert'}")

    ways: dict[str, Callable[[Path], int]] = {
        "drafted": drafted,
        "classes": lambda out: programs.diffusion(latents, out, f"--class_conditional --objective pred_v {longer}"),
        "pairs": lambda out: programs.diffusion(latents, out, f"{pairs} --self_condition"),
        "context": context,
        "embeddings": lambda out: programs.diffusion(EMBEDDINGS, out, "--self_condition --normalize_embeddings"),
        "controlled": controlled,
        "frozen": lambda out: programs.diffusion(EMBEDDINGS, out, "--freeze_embeddings --padding generated"),
        "packed": lambda out: programs.diffusion(EMBEDDINGS, out, packed),
        "encoder": encoder,
        "student": lambda out: programs.student(run("classes"), out, "--distill_steps 2"),
    }
    trained = {"latents": chain / "diff", "states": chain / "states"}

    def run(kind: str) -> Path:
        if kind not in trained:
            assert ways[kind](root / kind) == 0
            trained[kind] = root / kind
        return trained[kind]

    return run


@pytest.fixture(scope="session")
def loaded(runs, tmp_path_factory) -> Callable[[str], TextDiffusionPipeline]:
    """kind -> its pipeline."""
    pipelines: dict[str, TextDiffusionPipeline] = {}

    def load(kind: str) -> TextDiffusionPipeline:
        if kind not in pipelines:
            run, flags = runs(kind), dict(KINDS[kind])
            if kind == "drafted":
                flags["draft_model"] = str(run.parent / "draft")
            if kind == "controlled":
                flags["latent_classifier"] = str(run.parent / "classifier")
            pipelines[kind] = TextDiffusionPipeline.from_pretrained(run, device="cpu", **flags)
        return pipelines[kind]

    return load


@pytest.fixture(scope="session")
def saved(loaded, tmp_path_factory) -> Callable[[str], Path]:
    """kind -> the folder to which its pipeline was saved. Tests change copies only."""
    root = tmp_path_factory.mktemp("saved")

    def save(kind: str) -> Path:
        if not (root / kind).is_dir():
            loaded(kind).save_pretrained(root / kind)
        return root / kind

    return save


def call_of(pipeline: TextDiffusionPipeline) -> dict[str, Any]:
    """Arguments of a small call that every kind of run can answer."""
    if pipeline.sources is not None:
        return {"source": SOURCES, "num_samples": 2, "generator": 3}
    return {"num_samples": 3, "generator": 3, **({"class_id": 1} if pipeline.class_names else {})}
