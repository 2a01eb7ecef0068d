"""Convert a run of published code to a run folder of this project, to sample, evaluate or continue from.

    python -m pipelines.convert_reference saved_latent_models/roc/2023-05-01_10-00-00 runs/roc/autoencoder
    python -m pipelines.convert_reference saved_diff_models/roc/2023-05-03_10-00-00 runs/roc/diffusion \\
        --latent_model_path runs/roc/autoencoder
    python -m pipelines.convert_reference outputs/2023-05-01/10-00-00 runs/e2e --data_dir datasets
    python -m pipelines.convert_reference diffusion_models/diffuseq_qqp_h128_... runs/qqp
    python -m pipelines.convert_reference ckpts/simple runs/simple --tokenizer data/simple/word-level-vocab.json

The files in the first folder tell which code wrote it: args.json is of LD4LG (either release, or the annealed fork),
.hydra/config.yaml of its Hydra version, training_args.json of DiffuSeq, DiffuSeq-v2 or minimal text diffusion. The
folder does not change. The conversion keeps weights, averaged weights, statistics, step and flags, and drops the
optimizer: --init_path starts another training from the weights. Checkpoints are read with weights_only, so that a file
cannot run code. It takes seconds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from pipelines.conversion.embeddings import ARGS, convert_embeddings
from pipelines.conversion.hydra import CONFIG, convert_hydra
from pipelines.conversion.ld4lg import convert_autoencoder, convert_diffusion
from utils.argparse_utils import OneLineParser
from utils.cli.args_io import read_args
from utils.errors import UserError, exit_on_user_error, library_message


def _ld4lg(run: Path, out: Path, args: argparse.Namespace) -> None:
    """Its args.json shows whether the run is an autoencoder or a denoiser."""
    if "num_encoder_latents" in read_args(run):
        convert_autoencoder(run, out, args.enc_dec_model)
        return
    convert_diffusion(run, out, args.enc_dec_model, args.latent_model_path, args.context_encoder, args.data_dir)


# a file of the run folder -> the conversion of runs that have it
FORMATS: dict[str, Callable[[Path, Path, argparse.Namespace], None]] = {
    "args.json": _ld4lg,
    str(CONFIG): lambda run, out, args: convert_hydra(run, out, args.enc_dec_model, args.data_dir),
    ARGS: lambda run, out, args: convert_embeddings(run, out, args.tokenizer),
}


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    """Convert one run."""
    parser = OneLineParser(
        prog="python -m pipelines.convert_reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder of the published code, or a checkpoint ema_RATE_STEP.pt")
    parser.add_argument("out", type=Path, help="run folder to write")
    parser.add_argument("--enc_dec_model", help="folder or name of its language model (default: as the run records)")
    parser.add_argument("--latent_model_path", type=Path, help="run of the autoencoder, converted or not (denoisers)")
    parser.add_argument("--context_encoder", help="folder or name of the model that encodes sources (runs on pairs)")
    parser.add_argument("--data_dir", help="folder of the corpus (denoisers on encoder states)")
    parser.add_argument("--tokenizer", help="folder, file or name of the tokenizer (runs on token embeddings)")
    args = parser.parse_args(arguments)
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty: name another folder")
    folder = args.run.parent if args.run.is_file() else args.run
    convert = next((convert for file, convert in FORMATS.items() if (folder / file).is_file()), None)
    if convert is None:
        found = "holds none of" if folder.is_dir() else "is no folder, so it lacks"
        raise UserError(
            f"{folder} {found} {', '.join(FORMATS)}, by which runs of published code are known: name the run folder of "
            "LD4LG, of its Hydra version, of DiffuSeq, of DiffuSeq-v2 or of minimal text diffusion"
        )
    # in the same parent folder, so that relative paths stay valid
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        convert(args.run, partial, args)
        partial.replace(args.out)
    except (UserError, OSError):
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as error:
        # the folder was written by other code: what it lacks, or has in another shape, is not a bug of this program
        raise UserError(
            f"{args.run} has not the content of a run of the published code ({library_message(error)}): check that the "
            "folder is whole, and that --enc_dec_model, --latent_model_path and --tokenizer name its models"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.out}: converted from {args.run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
