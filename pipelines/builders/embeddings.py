"""The space of token embeddings of a run: its tokenizer, trained or loaded, and its embeddings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dataset_utils.corpus import Corpus
from diffusion.schedules import Schedule, num_timesteps
from latent_models.spaces.embedding_init import make_embedding_space
from latent_models.spaces.embeddings import EmbeddingSpace, TokenEmbedding
from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.from_flags import check_coverage, make_tokenizer
from pipelines.cli.configs import DiffusionConfig
from utils.cli.args_io import read_args
from utils.cli.settings import Settings
from utils.distributed import current
from utils.errors import UserError
from utils.seeding import derive_seed
from utils.shared import make_on_main
from utils.tokenizer_fingerprint import check_same_tokenizer, fingerprint

TOKENIZER = "tokenizer"  # folder below a run
FROZEN = "embeddings.safetensors"  # file of a run whose embeddings do not train


def first_step_sigma(schedule: Schedule) -> float:
    """sigma_0: the noise of a chain's first step, which x0 has around its embedding; 0 in continuous time."""
    timesteps = num_timesteps(schedule)
    return 0.0 if timesteps is None else float(schedule(torch.tensor(1 / timesteps, dtype=torch.float64)).sigma)


def load_embeddings(
    settings: Settings[DiffusionConfig], run: Path, schedule: Schedule, texts: Sequence[str], device: torch.device
) -> EmbeddingSpace:
    """The space of the flags with initial embeddings; those of a trained run are loaded later, with its checkpoint.

    texts: training texts of the corpus, for a new tokenizer.
    """
    options = settings.config.embeddings
    tokenizer = find_tokenizer(settings, run, texts)
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "embeddings"))
    sigma_0, width = first_step_sigma(schedule), settings.checkpoint_args.get("embedding_width")
    space = make_embedding_space(
        tokenizer, options, settings.config.language_model.max_seq_len, sigma_0, trained_width=width
    )
    if settings.checkpoint_args and options.freeze_embeddings:
        space.vectors.table.data.copy_(load_file(run / FROZEN)["table"])
    return space.to(device)


def save_embeddings(space: EmbeddingSpace, run: Path) -> None:
    """Save the tokenizer and embeddings that do not train, which checkpoints do not hold."""
    space.tokenizer.save_pretrained(run / TOKENIZER)
    if not space.vectors.table.requires_grad:
        save_file({"table": space.vectors.table.detach().cpu().contiguous()}, run / FROZEN)


def find_tokenizer(settings: Settings[DiffusionConfig], run: Path, texts: Sequence[str]) -> Any:
    """The tokenizer of a trained run, else that of the flags. UserError if its rate of unknown words is too high."""
    options = settings.config.tokenizer
    if settings.checkpoint_args:
        return _of_run(settings, run)
    longest, init = settings.config.language_model.max_seq_len, settings.config.embeddings.embedding_init
    tokenizer = make_on_main(current(), lambda: make_tokenizer(options, texts, longest, init))  # the ranks share it
    check_coverage(tokenizer, texts, options)
    if settings.config.intervals.init_path:
        _refuse_foreign(tokenizer, Path(settings.config.intervals.init_path))
    return tokenizer


def _refuse_foreign(tokenizer: Any, begun: Path) -> None:
    """UserError if the run of --init_path has another tokenizer."""
    expected = read_args(begun).get("tokenizer_fingerprint")
    if fingerprint(tokenizer) != expected:
        raise UserError(
            f"--init_path {begun} was trained with another tokenizer, so its embeddings are of other tokens: "
            f"pass --vocab {begun / TOKENIZER}"
        )


def _of_run(settings: Settings[DiffusionConfig], run: Path) -> Any:
    expected = settings.checkpoint_args.get("tokenizer_fingerprint")
    kept = run / TOKENIZER
    if not kept.is_dir():
        raise UserError(f"{kept} does not exist, and a run of embeddings needs its tokenizer: restore the folder")
    tokenizer = load_tokenizer(str(kept), settings.config.language_model.max_seq_len, "the run's")
    check_same_tokenizer(tokenizer, expected, run)
    if "vocab" in settings.explicit:  # harmless where it is the same one
        typed = make_tokenizer(
            settings.config.tokenizer,
            [],
            settings.config.language_model.max_seq_len,
            settings.config.embeddings.embedding_init,
        )
        check_same_tokenizer(typed, expected, run)
    return tokenizer


def embedding_metadata(space: EmbeddingSpace) -> dict[str, Any]:
    """Entries of args.json about the space."""
    return {
        "tokenizer_fingerprint": fingerprint(space.tokenizer),
        "embedding_width": space.vectors.width,
        "sigma_0": space.sigma_0,
    }


def tokenizer_of(settings: Settings[DiffusionConfig]) -> Callable[[Corpus], Any] | None:
    """For a dry run: a function corpus -> tokenizer, or None with a note where there is none. None in other spaces."""
    if settings.config.latents.latent_space != "embeddings":
        return None

    def of(corpus: Corpus) -> Any:
        try:
            return find_tokenizer(settings, Path(settings.config.run.resume_dir or "."), corpus.train.all_texts())
        except UserError as error:
            print(f"note: {error}", file=sys.stderr)
            return None

    return of


class MetaEmbeddings(nn.Module):
    """Shapes of a space whose tokenizer does not exist yet, for a dry run, with the largest vocabulary of the flags."""

    def __init__(self, settings: Settings[DiffusionConfig]) -> None:
        super().__init__()
        options = settings.config.embeddings
        self.vectors = TokenEmbedding(settings.config.tokenizer.vocab_size, options)
        self.bias = nn.Parameter(torch.zeros(settings.config.tokenizer.vocab_size))
        self.length, self.dim, self.variable_length = (
            settings.config.language_model.max_seq_len,
            self.vectors.dim,
            options.padding == "masked",
        )
        self.learned_with_denoiser = True
        self.always_project, self.has_text_decoder, self.decoding_draws = False, False, False
