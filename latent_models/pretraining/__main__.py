"""Stage 0: pretrain a small BART. `python -m latent_models.pretraining --help`"""

from pipelines.flags.programs import PRETRAIN
from utils.config import parse
from utils.errors import one_line


@one_line
def main() -> int:
    settings = parse(PRETRAIN)
    from pipelines.pretrain import run  # after parsing, so that --help need not wait for torch
    from utils.distributed import finish

    code = run(settings)
    finish()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
