"""Runs of the unofficial Hydra version of LD4LG: .hydra/config.yaml and checkpoints/pytorch_model.bin.

Its network is that of the first release without the norm before scale and shift. pytorch_model_1.bin holds the averaged
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset_utils import registry
from latent_models.language_models import LanguageModel
from latent_models.spaces.encoder_states import EncoderStatesSpace
from model.reference_weights import load_hydra
from pipelines.builders.models import DiffusionModel, load_model_of_texts
from pipelines.cli.programs import DIFFUSION
from pipelines.conversion.common import (
    NEWEST,
    check_same_weights,
    make_settings,
    read_pickled,
    read_state,
    save,
    training_lengths,
    write_run_args,
)
from utils.cli.args_io import read_yaml
from utils.errors import UserError
from utils.state import trainable_state

CONFIG = Path(".hydra/config.yaml")
WEIGHTS, AVERAGED, SCHEDULER = "pytorch_model.bin", "pytorch_model_1.bin", "scheduler.bin"

# our flag -> keys of its configuration
FLAGS = {
    "beta_schedule": "diffusion.beta",
    "timesteps": "diffusion.timesteps",
    "objective": "diffusion.objective",
    "loss_type": "diffusion.loss_type",
    "train_prob_self_cond": "diffusion.self_condition_prob",
    "class_unconditional_prob": "diffusion.class_uncondition_prob",
    "enc_dec_model": "network.autoencoder.name",
    "max_seq_len": "network.transformer.seq_len",
    "tx_dim": "network.transformer.hidden_dim",
    "tx_depth": "network.transformer.depth",
    "self_condition": "network.transformer.use_self_condition",
    "class_conditional": "network.transformer.use_class_condition",
    "learning_rate": "train.optimizer.params.lr",
    "adam_weight_decay": "train.optimizer.params.weight_decay",
    "lr_schedule": "train.scheduler.name",
    "lr_warmup_steps": "train.scheduler.num_warmup_steps",
    "train_batch_size": "train.dataloader.batch_size",
    "num_samples": "generation.num_samples",
    "eval_batch_size": "generation.batch_size",
    "sampling_timesteps": "generation.sampling_steps",
    "ddim_sampling_eta": "generation.eta",
    "random_seed": "general.seed",
}
# what is the same in each of its runs
FIXED = {
    "denoiser_variant": "states",
    "scale_shift": True,
    "scale_shift_norm": False,
    "normalize_latent": True,
    "sampler": "ddim",
    "ema_decay": 0.9999,
    "ema_update_every": 10,
}


def convert_hydra(source: Path, target: Path, language_model: str | None = None, data_dir: str | None = None) -> None:
    """language_model: its folder or name now. data_dir: folder of the corpus, from which the lengths of samples are."""
    config = read_yaml(source / CONFIG, "the configuration of the run")
    folder = source / "checkpoints"
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}: name the run folder that holds .hydra/ and checkpoints/")
    state = read_state(folder / WEIGHTS)
    averaged = {}
    if (folder / AVERAGED).is_file():
        found = read_state(folder / AVERAGED)
        averaged = {name.removeprefix("ema_model."): x for name, x in found.items() if name not in ("initted", "step")}
    saved = {name: value for name, key in FLAGS.items() if (value := _entry(config, key)) is not None}
    _check_layout(config, saved, source / CONFIG)
    name = str(_entry(config, "dataset.name") or "")
    changes: dict[str, Any] = {**FIXED, "data_dir": data_dir, "dataset_name": name or None}
    dropouts = [_entry(config, f"network.transformer.{kind}_dropout") for kind in ("attn", "ff")]
    changes["disable_dropout"] = dropouts == [0, 0]
    if language_model:
        changes["enc_dec_model"] = language_model
    settings = make_settings(DIFFUSION, saved, source, **changes)
    model = load_model_of_texts(settings, settings.config.language_model.enc_dec_model)
    _check_copy(model, state, folder / WEIGHTS)
    space = EncoderStatesSpace(model, settings.config.language_model.max_seq_len).requires_grad_(False)
    table = state.get("transformer.class_emb.weight")
    length = len(state["transformer.pos_emb.emb.weight"])
    network = DiffusionModel(space, settings.config.denoiser, length, 0 if table is None else len(table) - 1)
    lengths = training_lengths(settings, space)
    tensors = {"model": _fill(network, state, lengths), "ema": _fill(network, averaged or state, lengths)}
    save(target, NEWEST, tensors, {"step": _step(folder)}, {}, settings)
    row = registry.DATASETS.get(name)
    names = list(row.class_names) if row and settings.config.denoiser.class_conditional else []
    write_run_args(
        settings, source, target, model, language_model_fingerprint=model.fingerprint(), class_names=names,
        trainable_params=sum(p.numel() for p in network.parameters()), latent_dim=space.dim,
        latent_length=space.length, seq2seq=False,
    )  # fmt: skip


def _entry(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key such as "network.transformer.depth"; None without one.

    A group of the configuration, as diffusion.beta is, stands for its schedule or its name.
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        return value.get("schedule", value.get("name"))
    return value


def _check_layout(config: Mapping[str, Any], saved: Mapping[str, Any], file: Path) -> None:
    """UserError for a network or a chain that no flags of ours describe."""
    width = saved.get("tx_dim")
    network = {
        "layer_block": ["a", "c", "f"], "head_dim": 64, "x_dim": width,
        "heads": None if width is None else width // 64,
    }  # fmt: skip
    for name, wanted in network.items():
        found = _entry(config, f"network.transformer.{name}")
        if found is not None and found != wanted:
            raise UserError(f"{file}: network.transformer.{name} is {found}, and only runs with {wanted} are converted")
    if saved.get("beta_schedule") == "linear" and saved.get("timesteps", 1000) != 1000:
        raise UserError(
            f"{file}: the linear chain of that version equals ours at 1,000 steps only, and this run has "
            f"{saved['timesteps']}: it cannot be converted"
        )


def _check_copy(model: LanguageModel, state: Mapping[str, Tensor], file: Path) -> None:
    copy = {k.removeprefix("autoencoder."): x for k, x in state.items() if k.startswith("autoencoder.")}
    check_same_weights(model.model, copy, model.name, file, "--enc_dec_model")


@torch.no_grad()
def _fill(network: DiffusionModel, state: Mapping[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
    """Load published weights and statistics into the network. Returns copies of its tensors."""
    load_hydra(network.denoiser, state)
    network.statistics.mean.copy_(state["x_mean"])
    network.statistics.scale.copy_(state["x_std"].reshape(()) + 1e-5)  # that version divides by std + 1e-5
    network.statistics.length_counts.copy_(lengths)
    return {name: x.detach().clone() for name, x in trainable_state(network).items()}


def _step(folder: Path) -> int:
    """Steps of the learning-rate schedule; 0 where its file is absent or holds other objects."""
    with suppress(UserError):
        return int(read_pickled(folder / SCHEDULER).get("last_epoch", 0)) if (folder / SCHEDULER).is_file() else 0
    return 0
