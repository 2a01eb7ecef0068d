"""A denoising network around a Hugging Face encoder: BERT's layout, with random or pretrained weights.

    z_t (B, L, d) -> Linear Tanh Linear -> + time vector -> encoder (positions, norm, layers) -> Linear Tanh Linear

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217; Gong et al. 2023 (DiffuSeq), arXiv:2210.08933. Called like `Denoiser`.
Differs from the published code: padding is masked out of attention, and with self_condition the previous estimate
is concatenated with z_t; a class is added to the time vector; the states of a source, if a context encoder makes them,
stand behind the latents in one sequence.
Shapes: B texts, L positions, d channels of a latent, E width of the encoder's input, H of its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import MAX_PERIOD, TIME_SCALE, project_in_float32, sinusoids
from model.conditions import ClassLabels, SourceTokens, check_classes, check_condition, check_length, concat_self_cond
from model.options import DenoiserOptions, EncoderDenoiserOptions
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs
from utils.records import Condition

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Encoders that read vectors instead of ids, by model_type: unusable rows of the position table.
UNUSED_POSITIONS = {
    "bert": 0, "electra": 0, "distilbert": 0, "albert": 0, "deberta-v2": 0,
    "roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2,
}  # fmt: skip
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def improved_ddpm_sinusoids(position: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of `position` at the frequencies 10000^(-i / half), i < half = width / 2: (B, width).

    Source: the code of Nichol & Dhariwal 2021, arXiv:2102.09672, and of its descendants Diffusion-LM, DiffuSeq and
    minimal text diffusion. It differs from DDPM's in the order and in the lowest frequency.
    """
    half = width // 2
    position = position.to(torch.promote_types(position.dtype, torch.float32))
    steps = torch.arange(half, device=position.device, dtype=position.dtype)
    phase = position[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    return F.pad(torch.cat([phase.cos(), phase.sin()], dim=-1), (0, width % 2))


SINUSOIDS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ddpm": sinusoids,
    "improved_ddpm": improved_ddpm_sinusoids,
}


class SinusoidalTimeEmbedding(nn.Module):
    """Noise level (B,) -> (B, E): sinusoids, Linear, SiLU, Linear, as in DDPM."""

    def __init__(self, width: int, dim: int, kind: str = "ddpm") -> None:
        """kind: a row of SINUSOIDS."""
        super().__init__()
        self.width, self.sinusoids = width, SINUSOIDS[kind]
        self.up = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, dim)

    def forward(self, time: Tensor) -> Tensor:
        wave = self.sinusoids(TIME_SCALE * time, self.width).to(self.up.weight.dtype)
        return self.out(F.silu(self.up(wave)))


def projection_mlp(inside: int, outside: int) -> nn.Module:
    """Linear, tanh, linear from one width to another; the identity where they are equal."""
    if inside == outside:
        return nn.Identity()
    hidden = max(inside, outside)
    return nn.Sequential(nn.Linear(inside, hidden), nn.Tanh(), nn.Linear(hidden, outside))


class HFEncoderDenoiser(nn.Module):
    """Self-conditioning on the channels, class in the time vector. A source is packed before the latents, or its states
    stand behind them; there is no cross-attention."""

    def __init__(
        self,
        latent_dim: int,
        max_len: int,
        options: DenoiserOptions,
        *,
        own_options: EncoderDenoiserOptions | None = None,
        num_classes: int = 0,
        source_dim: int = 0,
    ) -> None:
        """latent_dim: d. max_len: longest latent. options: uses self_condition, class_conditional, disable_dropout."""
        super().__init__()
        own = own_options or EncoderDenoiserOptions()
        config = encoder_config(own.encoder_config)
        positions = config.max_position_embeddings - UNUSED_POSITIONS[config.model_type]
        if max_len > positions:
            raise UserError(
                f"--max_seq_len {max_len} is longer than the {positions} positions of the encoder: lower it"
            )
        dropout = 0.0 if options.disable_dropout else own.encoder_dropout
        self.encoder, width = make_encoder(config, own, dropout)
        num_classes = check_classes(options.class_conditional, num_classes)
        self.latent_dim, self.max_len, self.self_condition = latent_dim, max_len, options.self_condition
        self.init_self_cond = nn.Parameter(0.02 * torch.randn(1, latent_dim)) if options.self_condition else None
        self.input_proj = projection_mlp(latent_dim * (2 if options.self_condition else 1), width)
        self.time_vector = SinusoidalTimeEmbedding(own.encoder_time_dim, width, own.encoder_sinusoids)
        self.class_labels = ClassLabels(num_classes, width) if num_classes else None
        self.source_tokens = SourceTokens(source_dim, width) if source_dim else None
        self.positions = positions
        self.output_proj = projection_mlp(config.hidden_size, latent_dim * options.outputs)

    def check_source_length(self, length: int) -> None:
        """UserError if the longest source, in tokens, does not fit behind the latents."""
        if self.max_len + length > self.positions:
            raise UserError(
                f"{self.max_len} positions of latents and {length} of sources are more than the encoder has, "
                f"{self.positions}: lower --max_source_len or --max_seq_len"
            )

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        condition: Condition | None = None,
        x0_self_cond: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
    ) -> Tensor:
        """See `model.denoiser.Denoiser.forward`."""
        check_condition(condition, self.class_labels, self.source_tokens)
        rows, length = z.shape[:2]
        check_length(length, self.max_len)
        x = z if self.init_self_cond is None else concat_self_cond(z, x0_self_cond, self_cond_mask, self.init_self_cond)
        vector = self.time_vector(time)  # (B, E)
        if self.class_labels is not None:
            vector = vector + self.class_labels(condition, rows)
        x = self.input_proj(x) + vector[:, None, :]  # (B, L, E)
        if self.source_tokens is not None:
            source, source_mask = self.source_tokens(condition, rows)  # (B, S, E)
            mask = source_mask.new_ones(rows, length) if mask is None else mask
            x, mask = torch.cat([x, source.to(x.dtype)], dim=1), torch.cat([mask, source_mask], dim=1)
        hidden = self.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, :length]  # (B, L, H)
        return project_in_float32(self.output_proj, hidden)

    def save_config(self, folder: Path) -> None:
        """Write config.json of the encoder, so that loading a run needs neither the hub nor the original folder."""
        self.encoder.config.save_pretrained(folder)


def encoder_config(name: str | None) -> PretrainedConfig:
    """The configuration of a folder, a config.json or a hub id; BERT-base's for None. Raises UserError, in one line."""
    from transformers import AutoConfig, BertConfig

    if name is None:
        return BertConfig()
    local = Path(name).exists()
    where: dict[str, Any] = {} if local else hub_kwargs()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        hint = "it holds no configuration" if local else "no such folder, and the hub cannot be reached or lacks it"
        raise UserError(f"--encoder_config {name} cannot be read ({hint}): {library_message(error)}") from error
    if config.model_type not in UNUSED_POSITIONS:
        raise UserError(
            f"--encoder_config {name} is a {config.model_type!r} model, which is not supported: "
            f"use an encoder of type {', '.join(UNUSED_POSITIONS)}"
        )
    return config


def make_encoder(config: PretrainedConfig, options: EncoderDenoiserOptions, dropout: float | None) -> tuple[Any, int]:
    """The encoder and its input width, without word embeddings and pooler, which would be unused.

    dropout: None for the value of the configuration.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    if dropout is not None:
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
    if options.encoder_init == "random":
        model = AutoModel.from_config(config, dtype=torch.float32)
    elif options.encoder_config is None or Path(options.encoder_config).is_file():
        raise UserError("--encoder_init pretrained needs weights: set --encoder_config to a folder or a hub id")
    else:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            model = _pretrained(options.encoder_config, config)
        finally:
            logging.set_verbosity(verbosity)
    words = model.get_input_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is words or name == "pooler":
                setattr(parent, name, None)
    return model, words.embedding_dim


def _pretrained(name: str, config: PretrainedConfig) -> Any:
    """Load pretrained weights. UserError for missing weights, which transformers would initialize at random."""
    from transformers import AutoModel

    where: dict[str, Any] = {} if Path(name).exists() else hub_kwargs()
    try:
        model, found = AutoModel.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **where
        )
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise UserError(
            f"--encoder_config {name} holds no weights that can be read: {library_message(error)}"
        ) from error
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"--encoder_config {name} lacks {len(missing)} weights of its config.json, such as "
            f"{missing[0]}: use another folder, or --encoder_init random"
        )
    return model
