"""Stage 1: train the autoencoder. `python train_latent_model.py --help`

With --decoder_model, or on a run of it, this is python -m pipelines.train_text_decoder.
"""

import sys

from pipelines.cli.decoder_rules import is_of_text_decoder
from pipelines.cli.programs import AUTOENCODER
from utils.cli.parse import parse
from utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> int:
    if is_of_text_decoder(sys.argv[1:]):
        from pipelines.train_text_decoder import main as train_text_decoder

        return train_text_decoder()
    settings = parse(AUTOENCODER)
    from pipelines.train_autoencoder import train  # after parsing, so that --help need not wait for torch
    from utils.distributed import cleanup

    code = train(settings)
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
