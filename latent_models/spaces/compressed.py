"""The compressed space: an autoencoder turns a language model's encoder states into a fixed number of latents.

Lovelace et al. 2023, arXiv:2212.09462, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.autoencoders import autoencoder_row, make_autoencoder
from latent_models.autoencoders.augmentations import BatchAugmentation
from latent_models.autoencoders.base import Autoencoder
from latent_models.autoencoders.heads import Heads
from latent_models.autoencoders.losses import LATENT_LOSSES, LossInputs, loss_weights
from latent_models.autoencoders.options import LatentLossOptions
from latent_models.generation.generator import GreedyLoop
from latent_models.generation.infilling import fill_tokens
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from utils.checkpoints import Checkpoint, fingerprint
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.pretrained import best_or_newest, copy_weights, load_into, locate_model, options_from, relative_path
from utils.records import Batch, Latents
from utils.run_folder import write_json

RECONSTRUCTION = "reconstruction"  # name of the loss that every autoencoder has


class CompressedSpace(LatentSpace):
    """(B, T) tokens -> states (B, T, d_lm) -> latents (B, L, D) -> memory (B, S, d_lm) -> text."""

    save_frozen = False  # whether a checkpoint also holds the parameters that do not train

    def __init__(
        self,
        language_model: LanguageModel,
        autoencoder: Autoencoder,
        losses: LatentLossOptions | None = None,
        *,
        noise_level_conditioning: bool = False,
        alignment_dim: int | None = None,
    ) -> None:
        """losses: those beside reconstruction; None: none. noise_level_conditioning: whether the decoder reads
        the sigma of its latents.

        alignment_dim: channels of the features with which latents are aligned.
        """
        super().__init__()
        self.language_model = language_model
        self.autoencoder = autoencoder
        self.length, self.dim = autoencoder.num_latents, autoencoder.dim
        self.variable_length = self.one_latent_per_token = autoencoder.variable_length
        losses = losses or LatentLossOptions()
        self.latent_losses = loss_weights(losses)
        self.loss_weights = {**autoencoder.loss_weights, **self.latent_losses}
        self.heads = Heads(autoencoder, losses, noise_level_conditioning, alignment_dim)
        self.greedy_loop: GreedyLoop | None = None  # faster greedy decoding with equal texts; see generation/generator
        # (ids, mask) -> states of the encoder as it was before training, which feature matching predicts; None: it does
        # not train. A function, not a module: it belongs neither into checkpoints nor to what trains
        self.encode_before_training: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        language_model: str | None = None,
        fallback: str | None = None,
        device: torch.device | str = "cpu",
        meta: bool = False,
        checkpoint: Checkpoint | None = None,
    ) -> CompressedSpace:
        """The frozen space of an autoencoder's run folder, in eval mode.

        language_model: name or folder of the language model; None: the one in the run folder's args.json.
        fallback: used where the run folder's language model cannot be loaded. meta: on the meta device, without
        weights, for a dry run. checkpoint: one of the folder; None: the best, else the newest.
        Raises UserError if the folder holds no autoencoder, or the language model is not the one it was trained with.
        """
        saved = read_autoencoder_args(folder)
        if meta:
            model = _load_language_model(folder, saved, language_model, fallback, meta=True)
            with torch.device("meta"):
                return cls._from_args(model, saved).requires_grad_(False)
        checkpoint = checkpoint or best_or_newest(folder)
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
        losses = options_from(LatentLossOptions, saved)
        variational = losses.kl_weight > 0
        return cls(
            model,
            make_autoencoder(name, model.dim, options, saved["max_seq_len"], variational=variational),
            losses,
            noise_level_conditioning=bool(saved.get("noise_level_conditioning")),
            alignment_dim=saved.get("alignment_dim"),
        )

    def encode(self, batch: Batch) -> Latents:
        latents, _ = self.compress(self.language_model.encode(batch.input_ids, batch.attention_mask), batch)
        short = self.length - latents.x0.shape[1]
        if not short:
            return latents
        return Latents(F.pad(latents.x0, (0, 0, 0, short)), F.pad(latents.mask, (0, short)))

    def compress(self, states: Tensor, batch: Batch) -> tuple[Latents, Tensor | None]:
        """Latents of the encoder states (B, T, d_lm) of a batch, and their log-variance if they have one.

        With one latent per token they have the mask of the tokens, and no positions beyond them.
        """
        x0, log_variance = self.autoencoder.encode_distribution(states, batch.attention_mask)
        if self.variable_length:
            return Latents(x0, batch.attention_mask.bool()), log_variance
        return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device)), log_variance

    def decode(
        self, latents: Latents, *, decoder_noise: float | None = None, decoder_candidates: int = 1, **generate: Any
    ) -> list[str]:
        """decoder_noise: sigma of the noise that the latents get, which the decoder reads; None: none."""
        if decoder_candidates != 1:
            raise UserError("--decoder_candidates chooses among texts of a decoder of --decoder_model: leave it out")
        sigma = None
        if decoder_noise is not None:
            latents, sigma = self._noised(latents, decoder_noise, generate.get("draw_rows"))
        memory, mask = self.memory(latents, sigma), self._memory_mask(latents)
        return self.language_model.generate(memory, mask, greedy_loop=self.greedy_loop, **generate)

    def fill(self, latents: Latents, ids: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        return fill_tokens(self.language_model, self.memory(latents), self._memory_mask(latents), ids, known, lengths)

    def memory(self, latents: Latents, sigma: Tensor | None = None) -> Tensor:
        """What the language model's decoder attends to, (B, S, d_lm). sigma: (B,), noise of the latents; None: none."""
        x0 = latents.x0
        if self.heads.noise_level is not None:
            level = x0.new_zeros(len(x0)) if sigma is None else sigma
            x0 = x0 + self.heads.noise_level(level)[:, None, :].to(x0.dtype)
        if self.variable_length:
            decode: Any = self.autoencoder.decode  # takes the mask, see its contract
            return decode(x0, latents.mask)
        return self.autoencoder.decode(x0)

    def _memory_mask(self, latents: Latents) -> Tensor | None:
        return latents.mask if self.variable_length else None

    def _noised(self, latents: Latents, s: float, draw_rows: tuple[int, int] | None) -> tuple[Latents, Tensor]:
        """Latents with noise of level s, drawn for a whole block where these are some of its rows, and (B,) s."""
        if self.heads.noise_level is None:
            raise UserError(
                f"--decoder_noise {s:g} needs a decoder that reads the noise level of its latents, and this "
                "autoencoder was trained without --noise_level_conditioning: leave it out"
            )
        x0 = latents.x0
        first, size = draw_rows or (0, len(x0))
        noise = torch.randn(size, *x0.shape[1:])[first : first + len(x0)].to(x0)
        sigma = x0.new_full((len(x0),), s)
        return Latents(self.add_latent_noise(x0, noise, sigma, self._memory_mask(latents)), latents.mask), sigma

    def project(self, x0: Tensor) -> Tensor:
        return self.autoencoder.project(x0)

    def forward(
        self,
        batch: Batch,
        augment: BatchAugmentation | None = None,
        states: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Training losses of the autoencoder (B,) by name: reconstruction, in nats per token, the autoencoder's own,
        and the LATENT_LOSSES that are on.

        Reconstruction is the cross-entropy of the text given its latents. augment: changes of the batch on its way;
        None in validation. states: encoder states (B, T, d_lm), if already known. target: (B, d), features of the
        texts with which latents are aligned.
        """
        augment = augment or BatchAugmentation()
        ids, mask = batch.input_ids, batch.attention_mask
        if states is None:
            states = self.language_model.encode(ids, mask)
        latents, log_variance = self.compress(augment.states(states, mask), batch)
        x0 = latents.x0 if log_variance is None else augment.draw(latents.x0, log_variance)
        memory_mask = self._memory_mask(latents)
        x0 = augment(x0, memory_mask)
        memory = self.memory(Latents(x0, latents.mask), augment.sigma)
        hidden = augment.hidden_tokens(ids, mask)
        loss = self.language_model.reconstruction_loss(memory, memory_mask, ids, mask, hidden)
        losses = {RECONSTRUCTION: loss} | self.autoencoder.losses(batch, latents, states)
        matched = states if self.encode_before_training is None else self.encode_before_training(ids, mask)
        inputs = LossInputs(mask, matched, latents, log_variance, memory, memory_mask, target)
        for name in self.latent_losses:
            found = LATENT_LOSSES[name].compute(inputs, self.heads)
            losses |= {} if found is None else {name: found}
        return losses

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss that is minimized (B,): reconstruction, and each other loss times its weight."""
        total = losses[RECONSTRUCTION]
        for name, loss in losses.items():
            if name != RECONSTRUCTION:
                total = total + self.loss_weights.get(name, 1.0) * loss
        return total

    def freeze_encoder(self) -> None:
        """Train only the decoders; the encoders stay in eval mode, so that all latents stay as they are.

        Embeddings that encoder and decoder share belong to the encoder. A checkpoint holds both halves.
        """
        model, frozen = self.language_model.model, self._encoder_modules()
        self.requires_grad_(False)
        encoders = {id(p) for part in frozen for p in part.parameters()}
        heads = self.heads.decoder_parts()
        decoders = [self.autoencoder.decoder, model.get_decoder(), model.get_output_embeddings(), *heads]
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

    def add_latent_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents (B, L, D) with noise that imitates errors of sampling: sqrt(1 - sigma^2) x0 + sigma noise, projected.

        noise: standard normal. sigma: (B,) in [0, 1]; 0 leaves a text's latents unchanged. The noise is scaled to the
        root mean square of the latents, so that sigma means the same with and without --l2_normalize_latents.
        mask: (B, L), where texts have different numbers of latents: padding stays zero.
        """
        if mask is None:
            rms = x0.detach().square().mean((1, 2), keepdim=True).sqrt()
        else:
            valid = mask.to(x0.dtype)[..., None]
            noise = noise * valid
            square = (x0.detach().square() * valid).sum((1, 2), keepdim=True)
            rms = (square / (valid.sum((1, 2), keepdim=True) * self.dim).clamp(min=1)).sqrt()
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
