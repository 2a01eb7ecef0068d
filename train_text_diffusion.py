"""Stage 2: train, sample from and evaluate a diffusion model. `python train_text_diffusion.py --help`"""

from pipelines.cli.programs import DIFFUSION
from utils.cli.parse import parse
from utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> int:
    settings = parse(DIFFUSION)
    from pipelines.train_diffusion import train  # after parsing, so that --help need not wait for torch
    from utils.distributed import cleanup

    code = train(settings)
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
