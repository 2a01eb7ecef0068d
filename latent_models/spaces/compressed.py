"""The compressed space: an autoencoder turns a language model's encoder states into a fixed number of latents.

Lovelace et al. 2023, arXiv:2212.09462, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.autoencoders import autoencoder_row, make_autoencoder
from latent_models.autoencoders.base import Autoencoder
from latent_models.generation.generator import GreedyLoop
from latent_models.generation.infilling import fill_tokens
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from utils.checkpoints import fingerprint
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.pretrained import best_or_newest, copy_weights, load_into, locate_model, options_from, relative_path
from utils.records import Batch, Latents
from utils.run_folder import write_json

RECONSTRUCTION = "reconstruction"  # name of the loss that every autoencoder has


class CompressedSpace(LatentSpace):
    """(B, T) tokens -> states (B, T, d_lm) -> latents (B, L, D) -> memory (B, S, d_lm) -> text."""

    variable_length = False
    save_frozen = False  # whether a checkpoint also holds the parameters that do not train

    def __init__(self, language_model: LanguageModel, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.language_model = language_model
        self.autoencoder = autoencoder
        self.length, self.dim = autoencoder.num_latents, autoencoder.dim
        self.greedy_loop: GreedyLoop | None = None  # faster greedy decoding with equal texts; see generation/generator

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        language_model: str | None = None,
        fallback: str | None = None,
        device: torch.device | str = "cpu",
        meta: bool = False,
    ) -> CompressedSpace:
        """The frozen space of an autoencoder's run folder, in eval mode.

        language_model: name or folder of the language model; None: the one in the run folder's args.json.
        fallback: used where the run folder's language model cannot be loaded. meta: on the meta device, without
        weights, for a dry run.
        Raises UserError if the folder holds no autoencoder, or the language model is not the one it was trained with.
        """
        saved = read_autoencoder_args(folder)
        if meta:
            model = _load_language_model(folder, saved, language_model, fallback, meta=True)
            with torch.device("meta"):
                return cls._from_args(model, saved).requires_grad_(False)
        checkpoint = best_or_newest(folder)
        model = _load_language_model(folder, saved, language_model, fallback)
        # with ft and decoder the checkpoint also holds the language model's weights
        if saved.get("lm_mode") not in ("ft", "decoder"):
            model.check_fingerprint(checkpoint.metadata.get("language_model_fingerprint"), folder)
        space = cls._from_args(model, saved)
        load_into(space, checkpoint)
        return space.to(device).requires_grad_(False).eval()

    @classmethod
    def _from_args(cls, model: LanguageModel, saved: Mapping[str, Any]) -> CompressedSpace:
        name = saved.get("autoencoder", "perceiver")
        options: Any = options_from(autoencoder_row(name).options, saved)
        return cls(model, make_autoencoder(name, model.dim, options, saved["max_seq_len"]))

    def encode(self, batch: Batch) -> Latents:
        return self.compress(self.language_model.encode(batch.input_ids, batch.attention_mask), batch)

    def compress(self, states: Tensor, batch: Batch) -> Latents:
        """Latents of the encoder states (B, T, d_lm) of a batch."""
        x0 = self.autoencoder.encode(states, batch.attention_mask)
        return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device))

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        memory = self.autoencoder.decode(latents.x0)
        return self.language_model.generate(memory, None, greedy_loop=self.greedy_loop, **generate)

    def fill(self, latents: Latents, ids: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        memory = self.autoencoder.decode(latents.x0)
        return fill_tokens(self.language_model, memory, None, ids, known, lengths)

    def project(self, x0: Tensor) -> Tensor:
        return self.autoencoder.project(x0)

    def forward(
        self,
        batch: Batch,
        augment: Callable[[Tensor], Tensor] | None = None,
        states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Training losses of the autoencoder (B,) by name: reconstruction, in nats per token, and the autoencoder's
        own.

        Reconstruction is the cross-entropy of the text given its latents. augment: applied to the latents (B, L, D)
        before they are decoded, for example add_latent_noise. states: encoder states (B, T, d_lm), if already known.
        """
        if states is None:
            states = self.language_model.encode(batch.input_ids, batch.attention_mask)
        latents = self.compress(states, batch)
        x0 = latents.x0 if augment is None else augment(latents.x0)
        memory = self.autoencoder.decode(x0)
        loss = self.language_model.reconstruction_loss(memory, None, batch.input_ids, batch.attention_mask)
        return {RECONSTRUCTION: loss} | self.autoencoder.losses(batch, latents, states)

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss that is minimized (B,): reconstruction, and each other loss times its weight."""
        total = losses[RECONSTRUCTION]
        for name, loss in losses.items():
            if name != RECONSTRUCTION:
                total = total + self.autoencoder.loss_weights.get(name, 1.0) * loss
        return total

    def freeze_encoder(self) -> None:
        """Train only the decoders; the encoders stay in eval mode, so that all latents stay as they are.

        Embeddings that encoder and decoder share belong to the encoder. A checkpoint holds both halves.
        """
        model, frozen = self.language_model.model, self._encoder_modules()
        self.requires_grad_(False)
        encoders = {id(p) for part in frozen for p in part.parameters()}
        decoders = [self.autoencoder.decoder, model.get_decoder(), model.get_output_embeddings()]
        for p in (p for part in decoders for p in part.parameters()):
            p.requires_grad_(id(p) not in encoders)
        self.save_frozen = True

    def train(self, mode: bool = True) -> CompressedSpace:
        super().train(mode)
        if self.save_frozen:
            for part in self._encoder_modules():
                part.eval()
        return self

    def _encoder_modules(self) -> tuple[nn.Module, nn.Module]:
        return self.language_model.model.get_encoder(), self.autoencoder.encoder

    def add_latent_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents (B, L, D) with noise that imitates errors of sampling: sqrt(1 - sigma^2) x0 + sigma noise, projected.

        noise: standard normal. sigma: (B,) in [0, 1]; 0 leaves a text's latents unchanged. The noise is scaled to the
        root mean square of the latents, so that sigma means the same with and without --l2_normalize_latents.
        """
        rms = x0.detach().square().mean((1, 2), keepdim=True).sqrt()
        sigma = sigma[:, None, None]
        return self.project((1 - sigma**2).sqrt() * x0 + sigma * rms * noise)

    def encoding_fingerprint(self) -> str:
        """Hash of all that determines latents; two spaces with the same one differ at most in their decoders."""
        states, latents = self._encoder_modules()
        return fingerprint({**states.state_dict(), **{f"latents.{k}": x for k, x in latents.state_dict().items()}})

    def fingerprint(self) -> str:
        return fingerprint(self.autoencoder.state_dict()) + self.language_model.fingerprint()


def read_autoencoder_args(folder: Path) -> dict[str, Any]:
    """args.json of an autoencoder's run folder. Raises UserError if the folder is of another kind of run."""
    saved = read_args(folder)
    if "autoencoder" not in saved and "num_encoder_latents" not in saved:
        raise UserError(
            f"--latent_model_path {folder} is not the run of an autoencoder: train one with train_latent_model.py"
        )
    return saved


def _load_language_model(
    folder: Path, saved: Mapping[str, Any], name: str | None, fallback: str | None, *, meta: bool = False
) -> LanguageModel:
    language = saved.get("language")
    try:
        where = name or locate_model(saved["enc_dec_model"], folder, saved.get("enc_dec_model_relative"))
        return LanguageModel.from_pretrained(where, meta=meta, language=language)
    except UserError:
        if fallback is None:
            raise
        return LanguageModel.from_pretrained(fallback, meta=meta, language=language)


def copy_autoencoder(source: Path, target: Path, language_model: str) -> None:
    """Copy the run folder of an autoencoder for inference: args.json and its best weights.

    The copy needs nothing but the frozen language model. language_model: name or folder where that was found.
    """
    found = {"enc_dec_model": language_model, "enc_dec_model_relative": relative_path(language_model, target)}
    write_json(target / "args.json", {**read_args(source), **found})
    copy_weights(source, target)
