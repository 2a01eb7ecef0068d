"""The space of token embeddings of a run: its tokenizer trained, found or taken from the run, and its vectors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dataset_utils.corpus import Corpus
from diffusion.schedules import Schedule, timesteps_of
from latent_models.embedding_init import make_embedding_space
from latent_models.embeddings import EmbeddingSpace, TokenVectors
from latent_models.options import EmbeddingOptions, TokenizerOptions
from latent_models.tokenizers.choice import check_coverage, make_tokenizer
from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.identity import refuse_another_tokenizer
from utils.errors import UserError
from utils.flag_files import read_args
from utils.seeding import derive
from utils.settings import Settings
from utils.tokenizer_identity import fingerprint

TOKENIZER = "tokenizer"  # folder of a run
FROZEN = "embeddings.safetensors"  # file of a run


def first_sigma(schedule: Schedule) -> float:
    """sigma_0: the noise of the first step of a chain, what x0 carries around its embedding; 0 in continuous time."""
    timesteps = timesteps_of(schedule)
    return 0.0 if timesteps is None else float(schedule(torch.tensor(1 / timesteps, dtype=torch.float64)).sigma)


def load_embeddings(
    settings: Settings, run: Path, schedule: Schedule, texts: Sequence[str], device: torch.device
) -> EmbeddingSpace:
    """The space of the flags with fresh vectors, or that of a trained run, whose vectors its checkpoint fills.

    texts: of the corpus, which a new tokenizer is trained on.
    """
    options = settings.build(EmbeddingOptions)
    tokenizer = find_tokenizer(settings, run, texts)
    torch.manual_seed(derive(settings.random_seed, "embeddings"))
    sigma_0, width = first_sigma(schedule), settings.saved.get("embedding_width")
    space = make_embedding_space(tokenizer, options, settings.max_seq_len, sigma_0, trained_width=width)
    if settings.saved and options.freeze_embeddings:
        space.vectors.table.data.copy_(load_file(run / FROZEN)["table"])
    return space.to(device)


def keep_embeddings(space: EmbeddingSpace, run: Path) -> None:
    """Save what a run needs beside its checkpoints: the tokenizer, and vectors that do not train."""
    space.tokenizer.save_pretrained(run / TOKENIZER)
    if not space.vectors.table.requires_grad:
        save_file({"table": space.vectors.table.detach().cpu().contiguous()}, run / FROZEN)


def find_tokenizer(settings: Settings, run: Path, texts: Sequence[str]) -> Any:
    """That of a trained run, from its folder; else the one of the flags. UserError where it knows too little."""
    options = settings.build(TokenizerOptions)
    if settings.saved:
        return _of_run(settings, run)
    tokenizer = make_tokenizer(options, texts, settings.max_seq_len, settings.embedding_init)
    check_coverage(tokenizer, texts, options)
    if settings.init_path:
        _refuse_foreign(tokenizer, Path(settings.init_path))
    return tokenizer


def _refuse_foreign(tokenizer: Any, begun: Path) -> None:
    """UserError where --init_path holds embeddings of other tokens."""
    expected = read_args(begun).get("tokenizer_fingerprint")
    if fingerprint(tokenizer) != expected:
        raise UserError(
            f"--init_path {begun} was trained with another tokenizer, so its embeddings are of other tokens: "
            f"pass --vocab {begun / TOKENIZER}"
        )


def _of_run(settings: Settings, run: Path) -> Any:
    expected = settings.saved.get("tokenizer_fingerprint")
    kept = run / TOKENIZER
    if not kept.is_dir():
        raise UserError(f"{kept} is not there, and a run of embeddings means nothing without its tokenizer: restore it")
    tokenizer = load_tokenizer(str(kept), settings.max_seq_len, "the run's")
    refuse_another_tokenizer(tokenizer, expected, run)
    if "vocab" in settings.typed:  # harmless where it is the same one
        typed = make_tokenizer(settings.build(TokenizerOptions), [], settings.max_seq_len, settings.embedding_init)
        refuse_another_tokenizer(typed, expected, run)
    return tokenizer


def embedding_facts(space: EmbeddingSpace) -> dict[str, Any]:
    """What args.json keeps of the space."""
    return {
        "tokenizer_fingerprint": fingerprint(space.tokenizer),
        "embedding_width": space.vectors.width,
        "sigma_0": space.sigma_0,
    }


def tokenizer_of(settings: Settings) -> Callable[[Corpus], Any] | None:
    """For a dry run: what makes the tokenizer of a corpus, or says why it cannot be had. None in other spaces."""
    if settings.latent_space != "embeddings":
        return None

    def of(corpus: Corpus) -> Any:
        try:
            return find_tokenizer(settings, Path(settings.resume_dir or "."), corpus.train.all_texts())
        except UserError as error:
            print(f"note: {error}", file=sys.stderr)
            return None

    return of


class EmptyEmbeddings(nn.Module):
    """Shapes of a space whose tokenizer is not there yet, for a dry run: a vocabulary as large as the flags allow."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        options = settings.build(EmbeddingOptions)
        self.vectors = TokenVectors(settings.vocab_size, options)
        self.bias = nn.Parameter(torch.zeros(settings.vocab_size))
        self.length, self.dim, self.masked = settings.max_seq_len, self.vectors.dim, options.padding == "masked"
        self.trainable = True
