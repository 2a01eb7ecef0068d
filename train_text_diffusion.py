"""Stage 2: train, sample from and evaluate a diffusion model. `python train_text_diffusion.py --help`"""

from pipelines.flags.programs import DIFFUSION
from utils.config import parse
from utils.errors import one_line


@one_line
def main() -> int:
    settings = parse(DIFFUSION)
    from pipelines.train_diffusion import run  # after parsing, so that --help need not wait for torch
    from utils.distributed import finish

    code = run(settings)
    finish()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
