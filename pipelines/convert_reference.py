"""A run of the published LD4LG code -> a run folder of ours, to sample from, evaluate, or train on from.

    python -m pipelines.convert_reference saved_latent_models/roc/2023-05-01_10-00-00 runs/roc/autoencoder
    python -m pipelines.convert_reference saved_diff_models/roc/2023-05-03_10-00-00 runs/roc/diffusion \\
        --latent_model_path runs/roc/autoencoder

The first folder holds args.json and model.pt (of either release, or of the annealed fork; best_model.pt too, if it is
there), and stays as it is. Weights, their average, statistics, step and flags are taken over, the optimizer is not:
--init_path starts another training from the weights. Files are read as tensors and numbers only (weights_only): a file
cannot run code. Seconds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset_utils import registry
from dataset_utils.options import DataOptions
from latent_models import reference_weights as autoencoder_weights
from latent_models.encoder_states import EncoderStatesSpace
from latent_models.language_models import LanguageModel, load_language_model
from latent_models.normalisation import LatentStatistics, count_lengths
from latent_models.options import AutoencoderOptions
from latent_models.spaces import LatentSpace
from model import reference_weights as denoiser_weights
from model.denoiser import Denoiser, make_denoiser
from model.options import DenoiserOptions
from model.reference_weights import bare
from model.states_denoiser import StatesDenoiser
from pipelines.building.models import (
    AUTOENCODER_COPY,
    keep_autoencoder,
    load_autoencoder,
    load_model_of_texts,
    new_space,
)
from pipelines.building.models import relative as relative_path
from pipelines.data.tokens import tokenize_split
from pipelines.flags.programs import AUTOENCODER, DIFFUSION
from utils import checkpoints
from utils.command_line import OneLineParser
from utils.ema import averaged
from utils.errors import UserError, fold, one_line
from utils.flag_files import read_args, saved_flags, write_args
from utils.settings import Program, Settings
from utils.state import weights

NEWEST, BEST = "model.pt", "best_model.pt"
FIRST_RELEASE = "encoder.rel_pos.relative_attention_bias.weight"  # in no other network
FILE = Mapping[str, Any]  # what torch.save wrote


class Network(nn.Module):
    """A denoiser with the statistics of its latents, under the names that a run of ours has."""

    def __init__(self, space: LatentSpace, options: DenoiserOptions, state: Mapping[str, Tensor]) -> None:
        """state: weights of the reference, whose shapes tell what is conditioned on."""
        super().__init__()
        classes = [len(x) - 1 for name, x in state.items() if name.startswith("class_embedding.") and x.ndim == 2][:1]
        source = state["seq2seq_proj.weight"].shape[1] if "seq2seq_proj.weight" in state else 0
        length = len(state["pos_emb.emb.weight"])
        self.denoiser = make_denoiser(space.dim, length, options, classes[0] if classes else 0, source)
        self.statistics = LatentStatistics(space.dim, space.length)


# --------------------------------------------------------------------------------------------------------- reading


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, FILE]]:
    """args.json, and what model.pt and best_model.pt hold, by name. UserError where it is no run of the reference."""
    saved = read_args(folder)
    if "schema_version" in saved:
        raise UserError(f"{folder} is a run of this project already: there is nothing to convert")
    files = {name: read_file(folder / name) for name in (NEWEST, BEST) if (folder / name).is_file()}
    if not files:
        raise UserError(f"{folder} holds no {NEWEST}: name the folder that the published code wrote")
    return saved, files


def read_file(path: Path) -> FILE:
    """A checkpoint as tensors, numbers and containers; anything else in it is refused, and never run."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip files, pickles and archives of older releases
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {fold(error)}") from None
    if not isinstance(held, dict) or not isinstance(held.get("model"), dict):
        raise UserError(f"{path} holds no weights under 'model': it is not a checkpoint of the published code")
    return held


def settings_of(program: Program, saved: Mapping[str, Any], folder: Path, **changes: Any) -> Settings:
    """The flags of args.json as a command line of ours would have set them. changes: what is called otherwise here."""
    settings = Settings(program)
    for name, value in (saved_flags(program, saved, folder) | changes).items():
        settings.set(name, value, source="saved")
    for rule in program.rules:
        rule(settings)
    return settings


def refuse_other_weights(model: nn.Module, held: Mapping[str, Tensor], name: str, file: Path, flag: str) -> None:
    """UserError where a frozen model differs from the copy of it that a checkpoint holds.

    held: weights by the model's names.
    """
    own = model.state_dict()
    for key, x in held.items():
        if key in own and (own[key].shape != x.shape or not torch.allclose(own[key], x.to(own[key]), atol=1e-6)):
            raise UserError(
                f"{name} is not the model in {file}, whose {key} differs: say where that one is with {flag}"
            )


# ------------------------------------------------------------------------------------------------------ autoencoders


def convert_autoencoder(source: Path, target: Path, language_model: str | None = None) -> None:
    """A run of train_latent_model.py. language_model: where it is now; None: as args.json says."""
    saved, files = read_run(source)
    name = language_model or saved["enc_dec_model"]
    settings = settings_of(AUTOENCODER, saved, source, num_decoder_latents=None, enc_dec_model=name)
    model = load_model_of_texts(settings, name, frozen=settings.lm_mode == "freeze")
    facts = {"language_model_fingerprint": model.fingerprint() if model.frozen else None}
    space = new_space(model, settings.build(AutoencoderOptions), settings.max_seq_len)
    for file, held in files.items():
        state = {bare(key, ("module.",)): x for key, x in held["model"].items()}
        own = {key: x for key, x in state.items() if not key.startswith(autoencoder_weights.PREFIX)}
        if model.frozen:
            refuse_other_weights(model.model, own, name, source / file, "--enc_dec_model")
        else:
            _load_tuned(model.model, own, source / file)
        cut = autoencoder_weights.cut_positions(state, settings.max_seq_len)
        autoencoder_weights.load_reference(space.autoencoder, cut)
        _save(target, file, {"model": weights(space)}, held, facts, settings)
    trained = sum(p.numel() for p in space.parameters() if p.requires_grad)
    _write_args(settings, source, target, model, trainable_params=trained)


def _load_tuned(model: nn.Module, held: Mapping[str, Tensor], file: Path) -> None:
    """Weights of a language model that was trained along; older ones hold tables that are no longer used."""
    lacking = [name for name, _ in model.named_parameters() if name not in held]
    if lacking:
        raise UserError(
            f"{file} lacks {lacking[0]} of the language model that was trained along: it is of another model"
        )
    model.load_state_dict({name: x for name, x in held.items() if name in model.state_dict()}, strict=False)


# --------------------------------------------------------------------------------------------------------- diffusion


def convert_diffusion(
    source: Path,
    target: Path,
    language_model: str | None = None,
    autoencoder: Path | None = None,
    context_encoder: str | None = None,
    data_dir: str | None = None,
) -> None:
    """A run of train_text_diffusion.py.

    autoencoder: its run, converted or not; None: as args.json says. language_model, context_encoder: where they are
    now. data_dir: of the corpus, whose lengths samples of uncompressed states follow.
    """
    saved, files = read_run(source)
    states = {file: {bare(key): x for key, x in held["model"].items()} for file, held in files.items()}
    some = next(iter(states.values()))
    changes: dict[str, Any] = {"data_dir": data_dir, "dense_pairing": "reference"}
    if "seq2seq_proj.weight" in some:  # an article may be four times as long as its summary
        changes["max_source_len"] = saved["max_seq_len"] * (4 if saved["dataset_name"] == "xsum" else 1)
    if FIRST_RELEASE in some:
        changes |= {"denoiser_variant": "states", "sampler": "ddim", "dense_pairing": "mirror"}
    if saved.get("latent_model_path"):
        changes["latent_model_path"] = AUTOENCODER_COPY
    elif language_model:
        changes["enc_dec_model"] = language_model
    settings = settings_of(DIFFUSION, saved, source, **changes)
    space: LatentSpace
    if saved.get("latent_model_path"):
        space = _bring_autoencoder(autoencoder or Path(saved["latent_model_path"]), target, language_model)
    else:
        model = load_model_of_texts(settings, settings.enc_dec_model)
        space = EncoderStatesSpace(model, settings.max_seq_len).requires_grad_(False)
    network = Network(space, settings.build(DenoiserOptions), some)
    lengths = _length_counts(settings, space) if space.masked else None
    own: LanguageModel = space.language_model  # type: ignore[assignment]
    facts: dict[str, Any] = {
        "latent_dim": space.dim,
        "latent_length": space.length,
        "seq2seq": "seq2seq_proj.weight" in some,
    }
    if facts["seq2seq"]:
        facts |= _context_facts(settings, own, context_encoder or saved["enc_dec_model"], some, source, target)
    for file, held in files.items():
        tensors = {"model": _filled(network, held["model"], lengths)}
        ema = {k.removeprefix("ema_model."): x for k, x in held.get("ema", {}).items() if k.startswith("ema_model.")}
        if not ema:
            print(f"note: {source / file} holds no averaged weights: the trained ones stand in", file=sys.stderr)
        _filled(network, ema or held["model"], lengths)
        tensors["ema"] = {name: x.detach().clone() for name, x in averaged(network).items()}
        updates = int(held["ema"]["step"]) if "step" in held.get("ema", {}) else None
        _save(target, file, tensors, held, {"ema_updates": updates}, settings)
    row = registry.DATASETS.get(settings.dataset_name)
    names = row.class_names if row and settings.class_conditional else ()
    trained = sum(p.numel() for p in network.parameters())
    fingerprint = own.fingerprint()
    _write_args(
        settings, source, target, own, language_model_fingerprint=fingerprint, class_names=list(names),
        trainable_params=trained, **facts,
    )  # fmt: skip


def _bring_autoencoder(folder: Path, target: Path, language_model: str | None) -> LatentSpace:
    """An autoencoder's run becomes part of the diffusion run, converted if it is of the reference; its space."""
    own = target / AUTOENCODER_COPY
    if not (folder / "args.json").is_file():
        raise UserError(f"{folder} is not the run of an autoencoder: say where that is with --latent_model_path")
    if "schema_version" in read_args(folder):
        space, _ = load_autoencoder(folder, torch.device("cpu"), language_model)
        keep_autoencoder(folder, target, space.language_model.name)
        return space
    convert_autoencoder(folder, own, language_model)
    return load_autoencoder(own, torch.device("cpu"), language_model)[0]


def _filled(network: Network, state: Mapping[str, Tensor], lengths: Tensor | None) -> dict[str, Tensor]:
    """The network with the reference's weights and statistics; copies of what it holds then."""
    named = {bare(key): x for key, x in state.items()}
    assert isinstance(network.denoiser, Denoiser | StatesDenoiser)  # the published variants
    denoiser_weights.load_reference(network.denoiser, named)
    statistics = network.statistics
    statistics.mean.copy_(named["latent_mean"])
    # the first release divides by scale + 1e-5, the second by no less than 1e-5, as we do
    statistics.scale.copy_(named["latent_scale"] + (1e-5 if FIRST_RELEASE in named else 0))
    if lengths is not None:
        statistics.length_counts.copy_(lengths)
    return {name: x.detach().clone() for name, x in weights(network).items()}


def _length_counts(settings: Settings, space: LatentSpace) -> Tensor:
    """How long training texts are: samples of uncompressed states draw their lengths from it."""
    missing = registry.find(settings.build(DataOptions))
    if missing:
        raise UserError(
            f"samples of encoder states draw their lengths from the corpus; say where with --data_dir: {missing}"
        )
    corpus = registry.load(settings.build(DataOptions))
    tokens = tokenize_split(corpus.train, space.language_model, settings.max_seq_len)  # type: ignore[arg-type]
    return count_lengths(tokens.lengths, space.length)


def _context_facts(
    settings: Settings, own: LanguageModel, name: str, state: Mapping[str, Tensor], source: Path, target: Path
) -> dict[str, Any]:
    """What a run with sources keeps of the model that reads them."""
    language = registry.languages(settings.build(DataOptions))[1]
    model = load_language_model(name, language=language)
    held = {k.removeprefix("context_encoder."): x for k, x in state.items() if k.startswith("context_encoder.")}
    refuse_other_weights(model.model.get_encoder(), held, name, source, "--context_encoder")
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
    held: FILE,
    facts: dict[str, Any],
    settings: Settings,
) -> None:
    known = {"step": int(held.get("step", 0)), "best": {}, "seed": settings.random_seed, **facts}
    save = checkpoints.save if file == NEWEST else checkpoints.save_best
    save(target, tensors, known)


def _write_args(settings: Settings, source: Path, target: Path, model: LanguageModel, **facts: Any) -> None:
    write_args(
        settings,
        target,
        converted_from=str(source),
        enc_dec_model_relative=relative_path(model.name, target),
        language=model.language,
        **facts,
    )


@one_line
def main(arguments: list[str] | None = None) -> int:
    """Convert one run; which kind it is shows in its args.json."""
    parser = OneLineParser(
        prog="python -m pipelines.convert_reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder that the published code wrote")
    parser.add_argument("out", type=Path, help="run folder to make")
    parser.add_argument("--enc_dec_model", help="where its language model is now (default: as args.json says)")
    parser.add_argument(
        "--latent_model_path", type=Path, help="of a denoiser: run of its autoencoder, converted or not"
    )
    parser.add_argument("--context_encoder", help="of a denoiser with sources: where the model that reads them is now")
    parser.add_argument("--data_dir", help="of a denoiser on encoder states: where its corpus is")
    given = parser.parse_args(arguments)
    if given.out.exists() and any(given.out.iterdir()):
        raise UserError(f"{given.out} is not empty, and nothing is overwritten: name another folder")
    partial = given.out.with_name(given.out.name + ".partial")  # beside it: relative paths stay what they are
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if "num_encoder_latents" in read_args(given.run):
            convert_autoencoder(given.run, partial, given.enc_dec_model)
        else:
            convert_diffusion(
                given.run, partial, given.enc_dec_model, given.latent_model_path, given.context_encoder, given.data_dir
            )
        partial.replace(given.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{given.out}: converted from {given.run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
