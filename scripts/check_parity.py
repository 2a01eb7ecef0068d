#!/usr/bin/env python
"""Compare our modules with the published implementation on recorded weights, inputs and results.

How long: a few seconds on one core. Use, from any directory:

    python scripts/check_parity.py tests/golden          one row per file: its largest difference from the recording
    python scripts/check_parity.py tests/golden --each   one row per result

The folder holds meta.json (file name -> constructor arguments) and some or all of the files that it names, of any
size: {autoencoder,denoiser,diffusion,guidance}_*.safetensors and schedules.safetensors. In each, param.* are weights
under the reference's names, in.* are inputs, out.* results; see tests/golden/README.md.

Exit status: 0 within tolerance, 1 beyond it, 2 for an invalid folder. CPU, float32.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from diffusion.denoisers import make_denoise, project_x0
from diffusion.guidance import classifier_free_guided
from diffusion.loss import BoundNetwork, LossConfig, denoising_loss
from diffusion.samplers import make_sampler
from diffusion.schedules import make_continuous_schedule
from diffusion.timesteps import linear_grid
from latent_models.autoencoders import reference_weights as autoencoder_weights
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from model import reference_weights as denoiser_weights
from model.denoiser import Denoiser
from model.options import DenoiserOptions
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.records import Condition

Meta = Mapping[str, Any]

EXACT = 1e-5  # autoencoder, losses, schedules: matrix libraries move them by less than 3e-6
DENOISER = 5e-5  # the phase of the time embedding, rounded otherwise, moves a pass by 1.5e-5
TRAJECTORY = 5e-4  # ten steps amplify it; times the largest value, if that is above 1
UNBOUNDED = 1e-5  # of the largest value, where estimates from eps grow to thousands: 5e-4 would hide a wrong variance


class Result(NamedTuple):
    """One recorded result and ours."""

    file: str
    name: str
    difference: float  # the largest, absolute; inf for nan or another shape
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance


class File:
    """A recording: tensors by name, and constructor arguments. UserError for missing entries."""

    def __init__(self, folder: Path, name: str, meta: Meta) -> None:
        self.folder, self.name, self.meta = folder, name, meta
        try:
            self.tensors = load_file(folder / f"{name}.safetensors")
        except Exception as error:  # safetensors has no common class for damaged, truncated and missing files
            raise UserError(f"{folder / name}.safetensors cannot be read: {error}") from error

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise UserError(f"{self.folder / self.name}.safetensors holds no {key}: record it again")
        return self.tensors[key]

    def get(self, key: str) -> Tensor | None:
        return self.tensors.get(key)

    def argument(self, key: str, *default: Any) -> Any:
        arguments = self.meta.get(self.name, {})
        if key not in arguments and not default:
            raise UserError(f"{self.folder / 'meta.json'} has no {key} for {self.name}")
        return arguments.get(key, *default)

    def parameters(self) -> dict[str, Tensor]:
        return {k.removeprefix("param."): v.float() for k, v in self.tensors.items() if k.startswith("param.")}

    def results(self) -> list[str]:
        return [k.removeprefix("out.") for k in self.tensors if k.startswith("out.")]

    def compare(self, name: str, ours: Tensor, tolerance: float, key: str | None = None) -> Result:
        recorded = self[key or f"out.{name}"]
        if ours.shape != recorded.shape:
            return Result(self.name, name, float("inf"), tolerance)
        difference = (ours.double() - recorded.double()).abs().nan_to_num(nan=float("inf")).max().item()
        return Result(self.name, name, difference, tolerance)


# ---- parts, built from their recorded arguments and weights ----------------------------------------------------------


def autoencoder(file: File) -> PerceiverAutoencoder:
    options = PerceiverOptions(
        num_encoder_latents=file.argument("num_encoder_latents"),
        num_decoder_latents=file.argument("num_decoder_latents", None),
        dim_ae=file.argument("dim_ae"),
        num_layers=file.argument("depth"),
        l2_normalize_latents=file.argument("l2_normalize_latents"),
    )
    module = PerceiverAutoencoder(file.argument("dim_lm"), options, file.argument("max_seq_len")).eval()
    autoencoder_weights.load_reference(module, file.parameters())
    return module


def denoiser(file: File) -> Denoiser:
    options = DenoiserOptions(
        tx_dim=file.argument("tx_dim"),
        tx_depth=file.argument("tx_depth"),
        self_condition=file.argument("self_condition"),
        scale_shift=file.argument("scale_shift"),
        num_dense_connections=file.argument("num_dense_connections"),
        skip_pairing="ld4lg",
        class_conditional=file.argument("class_conditional", False),
    )
    module = Denoiser(
        file.argument("latent_dim"),
        file.argument("max_seq_len"),
        options,
        num_classes=file.argument("num_classes", 0),
        source_dim=file.argument("seq2seq_context_dim", 0) if file.argument("seq2seq", False) else 0,
    ).eval()
    denoiser_weights.load_reference(module, file.parameters())
    return module


def denoiser_of(file: File) -> Denoiser:
    """The denoiser of another file in the folder."""
    return denoiser(File(file.folder, file.argument("denoiser"), file.meta))


def condition(file: File) -> Condition | None:
    parts = [file.get(f"in.{name}") for name in ("class_id", "context", "context_mask")]
    return None if all(part is None for part in parts) else Condition.of(*parts)


def matched(pattern: str, name: str, file: File) -> re.Match[str]:
    if match := re.fullmatch(pattern, name):
        return match
    raise UserError(f"{file.folder / file.name}.safetensors holds out.{name}, for which there is no check")


# ---- checks: one per kind of file ------------------------------------------------------------------------------------


def check_autoencoder(file: File) -> Iterator[Result]:
    latents, states = autoencoder(file)(file["in.encoder_states"], file["in.attention_mask"])
    yield file.compare("latents", latents, EXACT)
    yield file.compare("decoder_states", states, EXACT)


# result -> mask, whether to pass the condition, whether to pass the previous estimate
PASSES = {
    "no_self_cond": ("in.mask", True, False),
    "with_self_cond": ("in.mask", True, True),
    "partial_mask": ("in.partial_mask", True, True),
    "null_context": ("in.mask", False, True),
}


def check_denoiser(file: File) -> Iterator[Result]:
    network = denoiser(file)
    for name in file.results():
        matched("|".join(PASSES), name, file)
        mask, with_condition, with_previous = PASSES[name]
        inputs = condition(file) if with_condition else None
        previous = file["in.self_cond"] if with_previous else None
        ours = network(file["in.z_t"], file["in.alpha"], file[mask], inputs, previous)
        yield file.compare(name, ours, DENOISER)


def check_schedules(file: File) -> Iterator[Result]:
    for key in sorted(file.tensors.keys() - {"t"}):
        name, scale = matched(r"(\w+)\.scale_([\d.]+)", key, file).groups()
        yield file.compare(key, make_continuous_schedule(name, float(scale))(file["t"]).alpha ** 2, EXACT, key)


def check_diffusion(file: File) -> Iterator[Result]:
    """Losses at fixed times and noise, then trajectories from recorded noise."""
    network, objective = denoiser_of(file), file.name.removeprefix("diffusion_")
    objective = file.argument("objective", objective)
    schedule = make_continuous_schedule(file.argument("train_schedule"), file.argument("scale", 1.0))

    def bind(mask: Tensor | None, rows: Tensor | None = None) -> BoundNetwork:
        mask = mask if mask is None or rows is None else mask[rows]

        def bound(
            z: Tensor, time: Tensor, x0_self_cond: Tensor | None = None, self_cond_mask: Tensor | None = None
        ) -> Tensor:
            return network(z, time, mask, None, x0_self_cond, self_cond_mask)

        return bound

    for name in file.results():
        if name.startswith("loss_"):
            loss_type, self_conditioned = matched(r"loss_(l1|l2|smooth_l1)_selfcond_([01])", name, file).groups()
            x0, mask, t, eps = (file[f"in.{part}"] for part in ("x0", "mask", "t", "noise"))
            every_row = (torch.ones(len(x0), dtype=torch.bool), torch.arange(len(x0)))
            result = denoising_loss(
                partial(bind, mask),
                x0,
                t,
                eps,
                LossConfig(schedule, objective, loss_type),
                mask=mask,
                self_cond=every_row if self_conditioned == "1" else None,
            )
            yield file.compare(name, result.loss.mean().reshape(file[f"out.{name}"].shape), EXACT)
            continue
        sampler, steps, norm = matched(r"(ddpm|ddim)_(\d+)(_l2norm)?", name, file).groups()
        denoise = make_denoise(bind(None), objective, schedule)
        if norm:
            denoise = project_x0(denoise, lambda x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5)
        ours = make_sampler(sampler)(
            denoise,
            schedule,
            linear_grid(int(steps)),
            file["in.z_T"],
            noise=lambda step, _: file["in.ddpm_noises"][step],
        )
        largest = file[f"out.{name}"].abs().max().item()
        unbounded = objective == "pred_noise" and not norm
        yield file.compare(
            name, ours, max(TRAJECTORY, UNBOUNDED * largest) if unbounded else TRAJECTORY * max(1, largest)
        )


def check_guidance(file: File) -> Iterator[Result]:
    network, inputs = denoiser_of(file), condition(file)
    if inputs is None:
        raise UserError(
            f"{file.folder / file.name}.safetensors holds neither in.class_id nor in.context: record it again"
        )
    schedule = make_continuous_schedule(file.argument("train_schedule", "cosine"), file.argument("scale", 1.0))
    twice = Condition.stack(inputs, inputs.null())
    denoise = classifier_free_guided(
        make_denoise(
            lambda z, time, x0_prev: network(z, time, None, twice, x0_prev), file.argument("objective"), schedule
        ),
        file.argument("cls_free_guidance"),
    )
    for name in file.results():
        sampler, steps = matched(r"(ddim)_(\d+)_cfg[\d.]+", name, file).groups()
        ours = make_sampler(sampler)(denoise, schedule, linear_grid(int(steps)), file["in.z_T"])
        yield file.compare(name, ours, TRAJECTORY * max(1, file[f"out.{name}"].abs().max().item()))


CHECKS: Mapping[str, Callable[[File], Iterator[Result]]] = {
    "autoencoder": check_autoencoder,
    "denoiser": check_denoiser,
    "schedules": check_schedules,
    "diffusion": check_diffusion,
    "guidance": check_guidance,
}


# ---- the folder ------------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> Meta:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a folder of recordings such as tests/golden") from error
    if not isinstance(meta, dict) or not all(isinstance(arguments, dict) for arguments in meta.values()):
        raise UserError(f"{path} does not map file names to constructor arguments")
    return meta


def recordings(folder: Path) -> list[str]:
    """Names of the files in the folder, each of a kind that is checked."""
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    if not names:
        raise UserError(f"{folder} holds no .safetensors file: give a folder of recordings such as tests/golden")
    for name in names:
        if name.split("_")[0] not in CHECKS:
            raise UserError(f"{folder / name}.safetensors is of no kind known here: {', '.join(CHECKS)}")
    return names


@torch.no_grad()
def check_file(folder: Path, name: str, meta: Meta) -> list[Result]:
    """Every result of one file, compared."""
    results = list(CHECKS[name.split("_")[0]](File(folder, name, meta)))
    if not results:
        raise UserError(f"{folder / name}.safetensors holds no result to compare")
    return results


def row(result: Result, ok: bool, width: int) -> str:
    verdict = "ok" if ok else "BEYOND TOLERANCE"
    return f"{result.file:{width}}  {result.difference:18.2e}  {result.tolerance:9.1e}  {verdict:3} {result.name}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description="Compare our modules with recordings of the reference implementation.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with meta.json and .safetensors recordings")
    parser.add_argument("--each", action="store_true", help="a row for each result, not only the worst of each file")
    arguments = parser.parse_args(argv)

    meta = read_meta(arguments.folder)
    names = recordings(arguments.folder)
    width = max(map(len, names))
    print(f"{'file':{width}}  largest difference  tolerance  result")
    failed = False
    for name in names:
        results = check_file(arguments.folder, name, meta)
        beyond = [result for result in results if not result.ok]
        failed |= bool(beyond)
        # without --each: all results beyond tolerance, or the one with the largest difference
        shown = results if arguments.each else beyond or [max(results, key=lambda result: result.difference)]
        for result in shown:
            print(row(result, result.ok, width), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
