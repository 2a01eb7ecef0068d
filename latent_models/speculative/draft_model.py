"""The draft model: a small network that predicts all tokens of a text at once, for the language model to verify.

A latent encodes the whole text, so tokens need not be generated one after another: learned queries, one per position of
the text, attend to the memory that the autoencoder decodes from the latents, and the language model's own output layer
gives the tokens.

    memory (B, L, d_lm)  ->  hidden (B, T, d_lm)  ->  ids (B, T)

Its errors cost time and never change a text (verification.py). It depends neither on noise nor on how the memory was
computed. Shapes: B texts, L latents, T tokens, d_lm channels of the language model, V words.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.cross_entropy import MAX_LOGITS, chunked_nll
from latent_models.output_layer import output_layer
from latent_models.spaces.compressed import CompressedSpace
from latent_models.speculative.options import DraftModelOptions
from latent_models.speculative.verification import SpeculativeLoop
from model.attention import attend, check_heads, split_heads
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.pretrained import best_or_newest, copy_weights, load_into, options_from
from utils.run_folder import write_json

HEAD_DIM = 32  # half of the denoiser's: a draft model is narrow
SPACE = "space_fingerprint"  # key in args.json: hash of all that determines latents
DECODER = "writer_fingerprint"  # key in args.json: hash of all encoders and decoders


class DraftAttention(nn.Module):
    """A pre-norm branch: positions attend to each other, or to the memory, which is already normalized."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)  # keys first, then values
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x: (B, T, d); memory: (B, L, d), x itself if None. Returns (B, T, d)."""
        x = self.norm(x)
        k, v = self.kv(x if memory is None else memory).chunk(2, dim=-1)
        q, k, v = (split_heads(y, HEAD_DIM) for y in (self.q(x), k, v))  # (B, H, T or L, head)
        return self.out(attend(q, k, v))


class DraftLayer(nn.Module):
    """Cross-attention first, since the queries of the first layer are the same for every text; then self-attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cross = DraftAttention(dim)
        self.attention = DraftAttention(dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.cross(x, memory)
        x = x + self.attention(x)
        # relu: on a CPU gelu would take a seventh of the whole time
        return x + self.down(F.relu(self.up(self.norm(x))))


class DraftModel(nn.Module):
    """Predicts all tokens of a text from its memory."""

    def __init__(self, dim_lm: int, max_seq_len: int, options: DraftModelOptions) -> None:
        """dim_lm: width of the language model. max_seq_len: longest text, in tokens."""
        super().__init__()
        dim = options.draft_model_dim or default_dim(dim_lm)
        check_heads(dim, HEAD_DIM, "--draft_model_dim")
        self.queries = nn.Parameter(torch.randn(max_seq_len, dim))
        self.input_proj = nn.Linear(dim_lm, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(DraftLayer(dim) for _ in range(options.draft_model_depth))
        self.norm = nn.LayerNorm(dim)
        self.output_proj = nn.Linear(dim, dim_lm)

    @classmethod
    def from_pretrained(cls, folder: Path, space: CompressedSpace) -> DraftModel:
        """The frozen draft model of a run folder, on the CPU.

        space: the latent space for which it drafts. Raises UserError if the folder holds no draft model, or one that
        was trained for other latents.
        """
        saved = read_args(folder)
        if SPACE not in saved or "draft_model_depth" not in saved:
            raise UserError(
                f"--draft_model {folder} is not the run of a draft model: train one with python -m "
                "pipelines.train_draft_model"
            )
        if saved[SPACE] != space.encoding_fingerprint():
            raise UserError(
                f"the draft model in {folder} was trained for latents of another autoencoder: leave --draft_model out, "
                "or train one for this one with python -m pipelines.train_draft_model"
            )
        if saved[DECODER] != space.fingerprint():
            print(
                f"note: the draft model in {folder} was trained for an earlier decoder: texts are the same, and "
                "generated faster with a new one",
                file=sys.stderr,
            )
        made = cls(space.language_model.dim, saved["max_seq_len"], options_from(DraftModelOptions, saved))
        load_into(made, best_or_newest(folder))
        return made.requires_grad_(False).eval()

    @property
    def max_seq_len(self) -> int:
        """Longest text, in tokens."""
        return len(self.queries)

    def forward(self, memory: Tensor) -> Tensor:
        """memory: (B, L, d_lm). Returns inputs of the output layer (B, T, d_lm), T = max_seq_len."""
        memory = self.input_norm(self.input_proj(memory))
        x = self.queries.expand(len(memory), -1, -1)  # (B, T, d)
        for block in self.blocks:
            x = block(x, memory)
        return self.output_proj(self.norm(x))

    @torch.no_grad()
    def draft_ids(self, model: Any, memory: Tensor) -> Tensor:
        """The likeliest tokens (B, T) of each text; those after its end token mean nothing.

        model: the transformers model whose output layer is used.
        """
        weight, bias = output_layer(model)
        size = max(1, MAX_LOGITS // (self.max_seq_len * len(weight)))
        found = []
        for part in memory.split(size):
            logits = self(part).to(weight.dtype) @ weight.t()
            found.append((logits if bias is None else logits + bias).argmax(-1))
        return torch.cat(found)


def draft_loss(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """-log p(token) of each token independently, in nats: (B, t) float32.

    hidden: (B, T, d_lm), of the draft model. labels: (B, t), t <= T.
    """
    weight, bias = output_layer(model)
    hidden = hidden[:, : labels.shape[1]]
    with torch.autocast(hidden.device.type, enabled=False):
        nll = chunked_nll(hidden.flatten(0, 1).to(weight.dtype), weight, bias, labels.flatten())
    return nll.view(labels.shape)


def default_dim(dim_lm: int) -> int:
    """Half the width of the language model: a draft must cost a small part of the pass that verifies it."""
    return max(1, dim_lm // 2 // HEAD_DIM) * HEAD_DIM


def attach(draft_model: DraftModel, space: CompressedSpace) -> None:
    """Let a space decode greedily by speculative decoding with this draft model."""
    device = next(space.autoencoder.parameters()).device
    space.greedy_loop = SpeculativeLoop(draft_model.to(device))


def has_draft_model(space: nn.Module) -> bool:
    """Whether a draft model is attached to a space."""
    return isinstance(getattr(space, "greedy_loop", None), SpeculativeLoop)


def draft_metadata(space: CompressedSpace) -> dict[str, Any]:
    """Entries of a draft model's args.json that identify its space."""
    return {
        SPACE: space.encoding_fingerprint(),
        DECODER: space.fingerprint(),
        "max_seq_len": space.autoencoder.max_seq_len,
    }


def copy_draft_model(source: Path, target: Path) -> None:
    """Copy the run folder of a draft model for inference: args.json and its best weights."""
    write_json(target / "args.json", read_args(source))
    copy_weights(source, target, ("model",))
