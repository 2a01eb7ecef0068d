"""Convert a run of the published LD4LG code to a run folder of this project, to sample, evaluate or continue from.

    python -m pipelines.convert_reference saved_latent_models/roc/2023-05-01_10-00-00 runs/roc/autoencoder
    python -m pipelines.convert_reference saved_diff_models/roc/2023-05-03_10-00-00 runs/roc/diffusion \\
        --latent_model_path runs/roc/autoencoder

The first folder holds args.json, model.pt and perhaps best_model.pt, of either release or of the annealed fork; it does
not change. The conversion keeps weights, averaged weights, statistics, step and flags, and drops the optimizer:
--init_path starts another training from the weights. Checkpoints are read with weights_only, so that a file cannot run
code. It takes seconds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset_utils import registry
from latent_models.autoencoders import reference_weights as autoencoder_weights
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace, copy_autoencoder
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.normalization import LatentStatistics, count_lengths
from model import make_denoiser
from model import reference_weights as denoiser_weights
from model.denoiser import Denoiser
from model.encoder_state_denoiser import EncoderStateDenoiser
from model.options import DenoiserOptions
from model.reference_weights import strip_prefixes
from pipelines.builders.models import AUTOENCODER_COPY, load_model_of_texts, new_space
from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.programs import AUTOENCODER, DIFFUSION
from pipelines.data.tokens import tokenize_split
from utils import checkpoints
from utils.argparse_utils import OneLineParser
from utils.cli.args_io import read_args, saved_flags, write_args
from utils.cli.flags import shown
from utils.cli.settings import Program, Settings
from utils.ema import ema_tensors
from utils.errors import UserError, exit_on_user_error, library_message, refuse_unreadable
from utils.pretrained import relative_path
from utils.state import trainable_state

NEWEST, BEST = "model.pt", "best_model.pt"
FIRST_RELEASE = "encoder.rel_pos.relative_attention_bias.weight"  # in no other network
PublishedCheckpoint = Mapping[str, Any]  # as torch.save wrote it


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


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, PublishedCheckpoint]]:
    """args.json, and the checkpoints model.pt and best_model.pt by name. UserError for any other folder."""
    saved = read_args(folder)
    if "schema_version" in saved:
        raise UserError(f"{folder} is a run of this project already: use it as it is")
    files = {name: read_checkpoint(folder / name) for name in (NEWEST, BEST) if (folder / name).is_file()}
    if not files:
        raise UserError(f"{folder} holds no {NEWEST}: name the folder that the published code wrote")
    return saved, files


def read_checkpoint(path: Path) -> PublishedCheckpoint:
    """Load a checkpoint of tensors, numbers and containers. UserError for a file that holds anything else."""
    with refuse_unreadable(str(path), "copy it again from where it was written"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other versions of pickle; what is not read raises an error
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path} holds no weights under 'model': it is not a checkpoint of the published code")
    odd = [name for name, x in checkpoint["model"].items() if not (isinstance(name, str) and isinstance(x, Tensor))]
    if odd:
        raise UserError(
            f"{path} holds {shown(odd[0])} under 'model', which is no tensor: the published code did not write it"
        )
    return checkpoint


def make_settings(program: Program, saved: Mapping[str, Any], folder: Path, **changes: Any) -> Settings:
    """Settings of this project from the flags of args.json. changes: flags with another name or value here."""
    settings = Settings(program)
    for name, value in (saved_flags(program, saved, folder) | changes).items():
        settings.set(name, value, source="saved")
    for rule in program.rules:
        rule(settings)
    return settings


def check_same_weights(model: nn.Module, copy: Mapping[str, Tensor], name: str, file: Path, flag: str) -> None:
    """UserError if a frozen model differs from its copy in a checkpoint.

    copy: weights of the copy, under the names of the model. flag: the flag that names the folder of the model.
    """
    own = model.state_dict()
    for key, x in copy.items():
        if key in own and (own[key].shape != x.shape or not torch.allclose(own[key], x.to(own[key]), atol=1e-6)):
            raise UserError(
                f"{name} is not the model in {file}: {key} differs; name the folder of that model with {flag}"
            )


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
        _save(target, file, {"model": trainable_state(space)}, checkpoint, metadata, settings)
    trained = sum(p.numel() for p in space.parameters() if p.requires_grad)
    _write_args(settings, source, target, model, trainable_params=trained)


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
    lengths = _length_counts(settings, space) if space.variable_length else None
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
        _save(target, file, tensors, checkpoint, {"ema_updates": updates}, settings)
    row = registry.DATASETS.get(settings.config.data.dataset_name)
    names = row.class_names if row and settings.config.denoiser.class_conditional else ()
    trained = sum(p.numel() for p in network.parameters())
    fingerprint = own.fingerprint()
    _write_args(
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


def _length_counts(settings: Settings[DiffusionConfig], space: LatentSpace) -> Tensor:
    """Counts of the lengths of training texts, from which samples of encoder states draw their lengths."""
    missing = registry.missing_files_message(settings.config.data)
    if missing:
        raise UserError(
            f"samples of encoder states draw their lengths from the corpus: name its folder with --data_dir; {missing}"
        )
    corpus = registry.load(settings.config.data)
    tokens = tokenize_split(corpus.train, space.language_model, settings.config.language_model.max_seq_len)  # type: ignore[arg-type]
    return count_lengths(tokens.lengths, space.length)


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


# ----------------------------------------------------------------------------------------------------------- writing


def _save(
    target: Path,
    file: str,
    tensors: dict[str, dict[str, Tensor]],
    checkpoint: PublishedCheckpoint,
    metadata: dict[str, Any],
    settings: Settings[DiffusionConfig],
) -> None:
    known = {"step": int(checkpoint.get("step", 0)), "best": {}, "seed": settings.config.loop.random_seed, **metadata}
    save = checkpoints.save if file == NEWEST else checkpoints.save_best
    save(target, tensors, known)


def _write_args(
    settings: Settings[DiffusionConfig], source: Path, target: Path, model: LanguageModel, **metadata: Any
) -> None:
    write_args(
        settings,
        target,
        converted_from=str(source),
        enc_dec_model_relative=relative_path(model.name, target),
        language=model.language,
        **metadata,
    )


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    """Convert one run; its args.json shows whether it is an autoencoder or a denoiser."""
    parser = OneLineParser(
        prog="python -m pipelines.convert_reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder of the published code")
    parser.add_argument("out", type=Path, help="run folder to write")
    parser.add_argument("--enc_dec_model", help="folder or name of its language model (default: as in args.json)")
    parser.add_argument("--latent_model_path", type=Path, help="run of the autoencoder, converted or not (denoisers)")
    parser.add_argument("--context_encoder", help="folder or name of the model that encodes sources (runs on pairs)")
    parser.add_argument("--data_dir", help="folder of the corpus (denoisers on encoder states)")
    args = parser.parse_args(arguments)
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty: name another folder")
    # in the same parent folder, so that relative paths stay valid
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if "num_encoder_latents" in read_args(args.run):
            convert_autoencoder(args.run, partial, args.enc_dec_model)
        else:
            convert_diffusion(
                args.run, partial, args.enc_dec_model, args.latent_model_path, args.context_encoder, args.data_dir
            )
        partial.replace(args.out)
    except (UserError, OSError):
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as error:
        # the folder was written by other code: what it lacks, or has in another shape, is not a bug of this program
        raise UserError(
            f"{args.run} has not the content of a run of the published code ({library_message(error)}): check that the "
            "folder is whole, and that --enc_dec_model and --latent_model_path name its models"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.out}: converted from {args.run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
