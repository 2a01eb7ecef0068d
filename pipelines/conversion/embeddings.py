"""Runs of DiffuSeq, of DiffuSeq-v2 and of minimal text diffusion: training_args.json and ema_RATE_STEP.pt.

All three have one network, BERT's layers on token embeddings that train with it, as a flat table of weights. DiffuSeq
keeps averaged weights alone, minimal text diffusion modelSTEP.pt, too. The tokenizer is in the folder, or is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from dataset_utils.catalog import DATASETS
from latent_models.spaces.embedding_init import make_embedding_space
from latent_models.tokenizers.files import load_tokenizer
from model.options import EncoderDenoiserOptions
from model.reference_weights import Rules, load_renamed, rename_parameter, strip_prefixes
from pipelines.builders.diffusion_process import make_process
from pipelines.builders.embeddings import embedding_metadata, first_step_sigma, save_embeddings
from pipelines.builders.models import ENCODER_COPY, DiffusionModel, save_encoder_config
from pipelines.cli.programs import DIFFUSION
from pipelines.conversion.common import NEWEST, make_settings, read_state, save, write_run_args
from utils.cli.args_io import read_yaml
from utils.errors import UserError
from utils.state import trainable_state

ARGS = "training_args.json"
WORDS = "word-level-vocab.json"  # of minimal text diffusion, which keeps it beside the data

# published name -> ours, applied in order; the rest of the layers have the names of BERT
RULES: Rules = (
    (r"^word_embedding\.weight$", "space.vectors.table"),
    (r"^lm_head\.bias$", "space.bias"),
    (r"^mean_embed$", "absorbing"),
    (r"^time_embed\.0\.", "denoiser.time_vector.up."),
    (r"^time_embed\.2\.", "denoiser.time_vector.out."),
    (r"^input_up_proj\.", "denoiser.input_proj."),
    (r"^output_down_proj\.", "denoiser.output_proj."),
    (r"^input_transformers\.", "denoiser.encoder.encoder."),
    (r"^position_embeddings\.", "denoiser.encoder.embeddings.position_embeddings."),
    (r"^LayerNorm\.", "denoiser.encoder.embeddings.LayerNorm."),
)
IGNORED = ("position_ids", "lm_head.weight")  # the head is tied to the embeddings
SEGMENTS = "denoiser.encoder.embeddings.token_type_embeddings.weight"  # of BERT; the published networks have none

# names of training_args.json -> our flag and its value; the second column of an absent value is the program's default
Value = Callable[[Any], Any]
FLAGS: Mapping[str, tuple[str, Value]] = {
    "seq_len": ("max_seq_len", int), "sequence_len": ("max_seq_len", int),
    "hidden_t_dim": ("encoder_time_dim", int), "num_channels": ("encoder_time_dim", int),
    "dropout": ("encoder_dropout", float),
    "diffusion_steps": ("timesteps", int),
    "noise_schedule": ("beta_schedule", str),
    "schedule_sampler": ("schedule_sampler", str),
    "lr": ("learning_rate", float),
    "weight_decay": ("adam_weight_decay", float),
    "learning_steps": ("num_train_steps", int), "lr_anneal_steps": ("num_train_steps", int),
    "gradient_clipping": ("clip_grad_norm", lambda x: max(float(x), 0.0)),
    "ema_rate": ("ema_decay", lambda x: float(str(x).split(",")[0])),
    "seed": ("random_seed", int),
    "learned_mean_embed": ("learned_mean_embed", bool),
    "denoise": ("denoise", bool),
    "denoise_rate": ("denoise_rate", float),
    "reg_rate": ("reg_rate", float),
    "predict_xstart": ("objective", lambda x: "pred_x0" if x else "pred_noise"),
}  # fmt: skip
# what is the same in each of their runs: the recipes of scripts/embedding
COMMON = {
    "latent_space": "embeddings", "denoiser_variant": "encoder", "encoder_sinusoids": "improved_ddpm",
    "padding": "generated", "lr_schedule": "linear", "lr_warmup_steps": 0, "truncate_sources": True,
}  # fmt: skip


def convert_embeddings(source: Path, target: Path, tokenizer: str | None = None) -> None:
    """source: the folder, or one of its checkpoints. tokenizer: its folder, file or hub id, where it is elsewhere."""
    folder = source.parent if source.is_file() else source
    saved = read_yaml(folder / ARGS, "the arguments of the run")
    files, step = _checkpoints(source)
    state = {kind: _own_names(read_state(path), path) for kind, path in files.items()}
    newest = state["ema"]
    settings = make_settings(DIFFUSION, {}, folder, **_flags(saved, newest, folder))
    config = settings.config
    length = config.language_model.max_seq_len
    process = make_process(config.process, config.sampling, config.denoiser.denoiser_variant)
    space = make_embedding_space(
        _tokenizer(saved, folder, tokenizer, length),
        config.embeddings,
        length,
        first_step_sigma(process.train_schedule),
    )
    if len(space.vectors.table) != len(newest["space.vectors.table"]):
        raise UserError(
            f"{files['ema']} holds {len(newest['space.vectors.table']):,} token embeddings, and its tokenizer has "
            f"{len(space.vectors.table):,} tokens: name the tokenizer of that run with --tokenizer"
        )
    _bert_config(newest).save_pretrained(target / ENCODER_COPY)
    own = EncoderDenoiserOptions(**{f.name: settings.get(f.name) for f in fields(EncoderDenoiserOptions)})
    own = replace(own, encoder_config=str(target / ENCODER_COPY / "config.json"))
    network = DiffusionModel(
        space, config.denoiser, length, 0, own_options=own, absorbing=config.absorbing.learned_mean_embed
    )
    tensors = {kind: _fill(network, found) for kind, found in state.items()}
    tensors.setdefault("model", tensors["ema"])
    save(target, NEWEST, tensors, {"step": step}, {}, settings)
    save_embeddings(space, target)
    save_encoder_config(network.denoiser, target)
    write_run_args(
        settings, source, target, None, **embedding_metadata(space), latent_dim=space.dim, latent_length=space.length,
        class_names=[], seq2seq=_has_sources(saved), trainable_params=sum(p.numel() for p in network.parameters()),
        **({"null_sources": False} if _has_sources(saved) else {}),
    )  # fmt: skip


def _checkpoints(source: Path) -> tuple[dict[str, Path], int]:
    """The averaged weights of the newest step (or of the file that is named), the weights beside them, and the step."""
    folder = source.parent if source.is_file() else source
    steps = {path: int(found[1]) for path in folder.glob("ema_*.pt") if (found := re.search(r"_(\d+)\.pt$", path.name))}
    chosen = [path for path in sorted(steps) if path.name == source.name or not source.is_file()]
    if not chosen:
        raise UserError(f"{folder} holds no ema_RATE_STEP.pt beside {ARGS}: name the folder of the checkpoints")
    newest = max(chosen, key=lambda path: steps[path])
    step = steps[newest]
    plain = [path for path in folder.glob("model*.pt") if re.fullmatch(rf"model_?0*{step}\.pt", path.name)]
    return {"ema": newest, **({"model": plain[0]} if plain else {})}, step


def _own_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    named = {strip_prefixes(key, ("module.",)): x for key, x in state.items()}
    if "word_embedding.weight" not in named or "position_embeddings.weight" not in named:
        raise UserError(f"{path} lacks word_embedding.weight or position_embeddings.weight: it is of another system")
    return {rename_parameter(key, RULES): x for key, x in named.items() if key not in IGNORED}


def _flags(saved: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Our flags of a run, by its arguments and the shapes of its weights."""
    if not saved.get("rescale_timesteps", True):
        raise UserError(f"{folder / ARGS}: rescale_timesteps is off, and only runs with it on are converted")
    if saved.get("logits_mode", 1) != 1:
        raise UserError(f"{folder / ARGS}: logits_mode is {saved['logits_mode']}, and only runs with 1 are converted")
    flags: dict[str, Any] = dict(COMMON)
    flags |= {flag: value(saved[name]) for name, (flag, value) in FLAGS.items() if name in saved}
    flags["embedding_dim"] = state["space.vectors.table"].shape[1]
    if (name := str(saved.get("dataset", "")).lower()) in DATASETS:
        flags["dataset_name"] = name
    batch, micro = int(saved.get("batch_size", 64)), int(saved.get("microbatch", -1))
    micro = micro if 0 < micro < batch else batch
    flags |= {"train_batch_size": micro, "gradient_accumulation_steps": max(1, batch // micro)}
    if _is_minimal(saved):  # it samples with the small variance and truncated noise
        flags |= {"posterior_variance": "small", "truncate_noise": 0.9}
        return flags | {"sampling_timesteps": flags.get("timesteps", 250)}
    flags["pretrain_blocks"] = not _has_sources(saved)
    if flags.get("learned_mean_embed"):
        return flags | {"sampler": "dpmpp", "sampling_timesteps": 10}
    return flags | {"clamp": True, "sampling_timesteps": flags.get("timesteps", 250)}


def _has_sources(saved: Mapping[str, Any]) -> bool:
    """Whether the run is one of pairs: DiffuSeq's, unless it pre-trained on running text."""
    return not _is_minimal(saved) and "pretrain" not in str(saved.get("notes", ""))


def _is_minimal(saved: Mapping[str, Any]) -> bool:
    """Whether minimal text diffusion wrote the arguments; DiffuSeq has another name for the width of time."""
    return "hidden_t_dim" not in saved


def _tokenizer(saved: Mapping[str, Any], folder: Path, named: str | None, length: int) -> Any:
    """The tokenizer that is named, else that of the run folder, else BERT's where the run used it."""
    if named:
        return load_tokenizer(named, length, "--tokenizer")
    if (folder / WORDS).is_file():
        return load_tokenizer(str(folder / WORDS), length, "--tokenizer")
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        return load_tokenizer(str(folder), length, "--tokenizer")
    if (folder / "vocab.json").is_file():
        return _of_vocabulary(folder / "vocab.json", length)
    if saved.get("vocab") == "bert" or saved.get("use_pretrained_embeddings"):
        return load_tokenizer("bert", length, "--tokenizer")
    raise UserError(
        f"{folder} holds no tokenizer: name it with --tokenizer, as data/DATASET/{WORDS} of minimal text diffusion or "
        "the vocabulary file of DiffuSeq"
    )


def _of_vocabulary(path: Path, length: int) -> Any:
    """The tokenizer of a vocabulary file of DiffuSeq, which a run folder keeps as a table of tokens and their ids."""
    table = json.loads(path.read_text(encoding="utf-8"))
    words = path.with_name("vocab.json.words")
    try:
        words.write_text("".join(f"{token}\n" for token in sorted(table, key=lambda t: table[t])), encoding="utf-8")
        return load_tokenizer(str(words), length, "--tokenizer")
    finally:
        words.unlink(missing_ok=True)


def _bert_config(state: Mapping[str, Tensor]) -> BertConfig:
    """The layout of the encoder, by the shapes of its weights; heads are 64 wide, as BERT's."""
    positions, width = state["denoiser.encoder.embeddings.position_embeddings.weight"].shape
    layers = {int(found[1]) for name in state if (found := re.search(r"\.encoder\.encoder\.layer\.(\d+)\.", name))}
    inner = len(state["denoiser.encoder.encoder.layer.0.intermediate.dense.weight"])
    return BertConfig(
        hidden_size=width, num_hidden_layers=len(layers), num_attention_heads=max(1, width // 64),
        intermediate_size=inner, max_position_embeddings=positions,
    )  # fmt: skip


@torch.no_grad()
def _fill(network: DiffusionModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load published weights into the network. Returns copies of its tensors."""
    own = network.state_dict()
    statistics = {name: x for name, x in own.items() if name.startswith("statistics.")}
    segments = torch.zeros_like(own[SEGMENTS])
    load_renamed(network, {**state, SEGMENTS: segments, **statistics}, lambda name: name, "network")
    return {name: x.detach().clone() for name, x in trainable_state(network).items()}
