"""Runs of LD4LG, of both releases and of the annealed fork: args.json, model.pt and perhaps best_model.pt."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dataset_utils import registry
from latent_models.autoencoders import reference_weights as autoencoder_weights
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace, copy_autoencoder
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.normalization import LatentStatistics
from model import make_denoiser
from model import reference_weights as denoiser_weights
from model.denoiser import Denoiser
from model.encoder_state_denoiser import EncoderStateDenoiser
from model.options import DenoiserOptions
from model.reference_weights import strip_prefixes
from pipelines.builders.models import AUTOENCODER_COPY, load_model_of_texts, new_space
from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.programs import AUTOENCODER, DIFFUSION
from pipelines.conversion.common import (
    BEST,
    NEWEST,
    Pickled,
    check_same_weights,
    make_settings,
    only_tensors,
    read_pickled,
    save,
    training_lengths,
    write_run_args,
)
from utils.cli.args_io import read_args
from utils.cli.settings import Settings
from utils.ema import ema_tensors
from utils.errors import UserError
from utils.pretrained import relative_path
from utils.state import trainable_state

FIRST_RELEASE = "encoder.rel_pos.relative_attention_bias.weight"  # in no other network


class Network(nn.Module):
    """A denoiser and the statistics of its latents, under the names in checkpoints of this project."""

    def __init__(self, space: LatentSpace, options: DenoiserOptions, state: Mapping[str, Tensor]) -> None:
        """state: published weights; their names and shapes show the conditions."""
        super().__init__()
        classes = [len(x) - 1 for name, x in state.items() if name.startswith("class_embedding.") and x.ndim == 2][:1]
        source = state["seq2seq_proj.weight"].shape[1] if "seq2seq_proj.weight" in state else 0
        length = len(state["pos_emb.emb.weight"])
        self.denoiser = make_denoiser(space.dim, length, options, classes[0] if classes else 0, source)
        self.statistics = LatentStatistics(space.dim, space.length)


# --------------------------------------------------------------------------------------------------------- reading


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Pickled]]:
    """args.json, and the checkpoints model.pt and best_model.pt by name. UserError for any other folder."""
    saved = read_args(folder)
    if "schema_version" in saved:
        raise UserError(f"{folder} is a run of this project already: use it as it is")
    files = {name: read_checkpoint(folder / name) for name in (NEWEST, BEST) if (folder / name).is_file()}
    if not files:
        raise UserError(f"{folder} holds no {NEWEST}: name the folder that the published code wrote")
    return saved, files


def read_checkpoint(path: Path) -> Pickled:
    """Load a checkpoint of tensors, numbers and containers. UserError for a file that holds anything else."""
    checkpoint = read_pickled(path)
    if not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path} holds no weights under 'model': it is not a checkpoint of the published code")
    only_tensors(checkpoint["model"], path)
    return checkpoint


# ------------------------------------------------------------------------------------------------------ autoencoders


def convert_autoencoder(source: Path, target: Path, language_model: str | None = None) -> None:
    """Convert a run of train_latent_model.py. language_model: its folder or name now; None: as in args.json."""
    saved, files = read_run(source)
    name = language_model or saved["enc_dec_model"]
    settings = make_settings(AUTOENCODER, saved, source, num_decoder_latents=None, enc_dec_model=name)
    model = load_model_of_texts(settings, name, frozen=settings.config.autoencoder.lm_mode == "freeze")
    metadata = {"language_model_fingerprint": model.fingerprint() if model.frozen else None}
    space = new_space(settings, model)
    for file, checkpoint in files.items():
        state = {strip_prefixes(key, ("module.",)): x for key, x in checkpoint["model"].items()}
        own = {key: x for key, x in state.items() if not key.startswith(autoencoder_weights.PREFIX)}
        if model.frozen:
            check_same_weights(model.model, own, name, source / file, "--enc_dec_model")
        else:
            _load_finetuned(model.model, own, source / file)
        cut = autoencoder_weights.cut_positions(state, settings.config.language_model.max_seq_len)
        assert isinstance(space.autoencoder, PerceiverAutoencoder)  # the only published one
        autoencoder_weights.load_reference(space.autoencoder, cut)
        save(target, file, {"model": trainable_state(space)}, checkpoint, metadata, settings)
    trained = sum(p.numel() for p in space.parameters() if p.requires_grad)
    write_run_args(settings, source, target, model, trainable_params=trained)


def _load_finetuned(model: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load the weights of a fine-tuned language model. Tables that the model no longer has are ignored."""
    missing = [name for name, _ in model.named_parameters() if name not in state]
    if missing:
        raise UserError(
            f"{file} lacks {missing[0]} of the fine-tuned language model: name the right model with --enc_dec_model"
        )
    model.load_state_dict({name: x for name, x in state.items() if name in model.state_dict()}, strict=False)


# --------------------------------------------------------------------------------------------------------- diffusion


def convert_diffusion(
    source: Path,
    target: Path,
    language_model: str | None = None,
    autoencoder: Path | None = None,
    context_encoder: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Convert a run of train_text_diffusion.py.

    autoencoder: its run, converted or not; None: as in args.json. language_model, context_encoder: their folders or
    names now. data_dir: folder of the corpus, from which a run on encoder states takes the lengths of samples.
    """
    saved, files = read_run(source)
    states = {
        file: {strip_prefixes(key): x for key, x in checkpoint["model"].items()} for file, checkpoint in files.items()
    }
    first_state = next(iter(states.values()))
    changes: dict[str, Any] = {"data_dir": data_dir, "skip_pairing": "ld4lg"}
    if "seq2seq_proj.weight" in first_state:  # an article may be four times as long as its summary
        changes["max_source_len"] = saved["max_seq_len"] * (4 if saved["dataset_name"] == "xsum" else 1)
    if FIRST_RELEASE in first_state:
        changes |= {"denoiser_variant": "states", "sampler": "ddim", "skip_pairing": "unet"}
    if saved.get("latent_model_path"):
        changes["latent_model_path"] = AUTOENCODER_COPY
    elif language_model:
        changes["enc_dec_model"] = language_model
    settings = make_settings(DIFFUSION, saved, source, **changes)
    space: LatentSpace
    if saved.get("latent_model_path"):
        space = _import_autoencoder(autoencoder or Path(saved["latent_model_path"]), target, language_model)
    else:
        model = load_model_of_texts(settings, settings.config.language_model.enc_dec_model)
        space = EncoderStatesSpace(model, settings.config.language_model.max_seq_len).requires_grad_(False)
    network = Network(space, settings.config.denoiser, first_state)
    lengths = training_lengths(settings, space) if space.variable_length else None
    own: LanguageModel = space.language_model  # type: ignore[assignment]
    metadata: dict[str, Any] = {
        "latent_dim": space.dim,
        "latent_length": space.length,
        "seq2seq": "seq2seq_proj.weight" in first_state,
    }
    if metadata["seq2seq"]:
        metadata |= _context_metadata(
            settings, own, context_encoder or saved["enc_dec_model"], first_state, source, target
        )
    for file, checkpoint in files.items():
        tensors = {"model": _fill(network, checkpoint["model"], lengths)}
        ema = {
            k.removeprefix("ema_model."): x for k, x in checkpoint.get("ema", {}).items() if k.startswith("ema_model.")
        }
        if not ema:
            print(
                f"note: {source / file} holds no averaged weights: the trained weights are used instead",
                file=sys.stderr,
            )
        _fill(network, ema or checkpoint["model"], lengths)
        tensors["ema"] = {name: x.detach().clone() for name, x in ema_tensors(network).items()}
        updates = int(checkpoint["ema"]["step"]) if "step" in checkpoint.get("ema", {}) else None
        save(target, file, tensors, checkpoint, {"ema_updates": updates}, settings)
    row = registry.DATASETS.get(settings.config.data.dataset_name)
    names = row.class_names if row and settings.config.denoiser.class_conditional else ()
    trained = sum(p.numel() for p in network.parameters())
    fingerprint = own.fingerprint()
    write_run_args(
        settings, source, target, own, language_model_fingerprint=fingerprint, class_names=list(names),
        trainable_params=trained, **metadata,
    )  # fmt: skip


def _import_autoencoder(folder: Path, target: Path, language_model: str | None) -> LatentSpace:
    """Copy the run of an autoencoder into the diffusion run, converted where necessary. Returns its space."""
    own = target / AUTOENCODER_COPY
    if not (folder / "args.json").is_file():
        raise UserError(f"{folder} is not the run of an autoencoder: name it with --latent_model_path")
    if "schema_version" in read_args(folder):
        space = CompressedSpace.from_pretrained(folder, language_model=language_model)
        copy_autoencoder(folder, own, space.language_model.name)
        return space
    convert_autoencoder(folder, own, language_model)
    return CompressedSpace.from_pretrained(own, language_model=language_model)


def _fill(network: Network, state: Mapping[str, Tensor], lengths: Tensor | None) -> dict[str, Tensor]:
    """Load published weights and statistics into the network. Returns copies of its tensors."""
    named = {strip_prefixes(key): x for key, x in state.items()}
    assert isinstance(network.denoiser, Denoiser | EncoderStateDenoiser)  # the published variants
    denoiser_weights.load_reference(network.denoiser, named)
    statistics = network.statistics
    statistics.mean.copy_(named["latent_mean"])
    # the first release divides by scale + 1e-5, the second by no less than 1e-5, as we do
    statistics.scale.copy_(named["latent_scale"] + (1e-5 if FIRST_RELEASE in named else 0))
    if lengths is not None:
        statistics.length_counts.copy_(lengths)
    return {name: x.detach().clone() for name, x in trainable_state(network).items()}


def _context_metadata(
    settings: Settings[DiffusionConfig],
    own: LanguageModel,
    name: str,
    state: Mapping[str, Tensor],
    source: Path,
    target: Path,
) -> dict[str, Any]:
    """Entries of args.json about the model that encodes the sources."""
    language = registry.languages(settings.config.data)[1]
    model = LanguageModel.from_pretrained(name, language=language)
    copy = {k.removeprefix("context_encoder."): x for k, x in state.items() if k.startswith("context_encoder.")}
    check_same_weights(model.model.get_encoder(), copy, name, source, "--context_encoder")
    shared = model.fingerprint() == own.fingerprint()
    return {
        "context_model": None if shared else name,
        "context_model_relative": None if shared else relative_path(name, target),
        "context_fingerprint": model.fingerprint(),
        "context_language": model.language,
        "source_dim": model.dim,
    }
