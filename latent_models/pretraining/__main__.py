"""Stage 0: pretrain a small BART. `python -m latent_models.pretraining --help`"""

from pipelines.cli.programs import PRETRAIN
from utils.cli.parse import parse
from utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> int:
    settings = parse(PRETRAIN)
    from pipelines.pretrain import train  # after parsing, so that --help need not wait for torch
    from utils.distributed import cleanup

    code = train(settings)
    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
