"""Stage 1: train the autoencoder. `python train_latent_model.py --help`"""

from pipelines.cli.programs import AUTOENCODER
from utils.cli.parse import parse
from utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> int:
    settings = parse(AUTOENCODER)
    from pipelines.train_autoencoder import train  # after parsing, so that --help need not wait for torch
    from utils.distributed import cleanup

    code = train(settings)
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
