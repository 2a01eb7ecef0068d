"""Stage 1: train the autoencoder. `python train_latent_model.py --help`"""

from pipelines.flags.programs import AUTOENCODER
from utils.config import parse
from utils.errors import one_line


@one_line
def main() -> int:
    settings = parse(AUTOENCODER)
    from pipelines.train_autoencoder import run  # after parsing, so that --help need not wait for torch
    from utils.distributed import finish

    code = run(settings)
    finish()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
