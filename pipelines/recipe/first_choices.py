"""The first choices of a recipe: by its corpus, the models and the machine, all but the numbers of steps."""

from __future__ import annotations

import shlex
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.recipe import plan
from pipelines.recipe.arguments import CORPUS_FLAGS
from pipelines.recipe.folder import RecipeFolder, log
from pipelines.recipe.models import check_adapters, encoding_speed, find_models
from pipelines.recipe.plan import Machine
from pipelines.recipe.reuse import OtherRecipe
from utils.errors import UserError

if TYPE_CHECKING:
    from dataset_utils.corpus import Corpus


def load_corpus(args: Namespace, **options: Any) -> Corpus:
    """The corpus of the command. options: further fields of DataOptions."""
    from dataset_utils import registry
    from dataset_utils.options import DataOptions

    return registry.load(DataOptions(**{name: getattr(args, name) for name in CORPUS_FLAGS}, **options))


def choose(folder: RecipeFolder, other: OtherRecipe | None) -> None:
    """Fill the record of a new folder: what was typed and found, and every choice. other: of --reuse.

    The folder is made once what was typed is known to be possible.
    """
    from pipelines.recipe.corpus_facts import measure, own_tokenizer
    from utils.distributed import pick_device

    args, given = folder.args, folder.given
    names = {name: getattr(args, name) for name in CORPUS_FLAGS}
    models = find_models(given, log)
    check_adapters(models, given)
    corpus = load_corpus(args)
    for note in corpus.notes:
        log(f"note: {note}")
    if args.condition == "class":
        corpus.require_classes("--condition class")
    if args.condition == "source" and corpus.train.sources is None:
        raise UserError(f"--condition source: the texts of {corpus.name} have no sources: leave it out")
    if args.way not in (None, *plan.TRAINED_HERE) and models["language_model"] is None:
        raise UserError(f"--way {args.way} needs a language model: name one with --language_model")
    if args.way == plan.PRETRAINED_WAY and models["encoder_model"] is None:
        raise UserError("--way pretrained needs an encoder: name one with --encoder_model, or give --way states")
    folder.claim()
    way = args.way or plan.way_of(**models)[0]
    encoder, layer = plan.encoder_of(way, **models)  # of other ways: tokens of an encoder count nothing there
    speed, tokenizer = (0.0, None) if encoder is None else encoding_speed(encoder, corpus.train.texts, layer)
    if other is not None:
        # another number of texts would be another decoder
        speed = other.encoding_speed(encoder, layer) or speed
    if tokenizer is None:  # of a model that is trained here
        tokenizer = own_tokenizer(corpus, args.vocab_size or plan.vocabulary(len(corpus.train)))
    facts = measure(corpus, tokenizer)
    log(f"{corpus.name}: {facts.describe()}")
    machine = Machine(**models, texts_per_second=speed, has_gpu=pick_device().type == "cuda")
    choices = plan.choose(facts, machine, 60 * args.minutes, given)
    flags = " ".join(f"--{name} {shlex.quote(value)}" for name, value in names.items() if value is not None)
    folder.state = {
        "given": given,
        "minutes": args.minutes,
        "corpus_flags": flags,
        "corpus": asdict(facts),
        "models": models,
        "encoder_texts_per_second": round(speed, 1),
        "choices": {name: asdict(choice) for name, choice in choices.items()},
        "stages": {},
    }
