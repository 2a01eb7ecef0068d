"""A baseline on pairs: train an encoder-decoder from sources to texts, and evaluate it as a diffusion run is evaluated.

    python -m pipelines.train_seq2seq --train_file pairs.jsonl --output_dir runs/seq2seq
    python -m pipelines.train_seq2seq --train_file pairs.jsonl --model models/bart-base --output_dir runs/bart
    python -m pipelines.train_seq2seq --eval --resume_dir runs/seq2seq --decoding nucleus,greedy,beam --num_samples 1000

Corpus, splits, evaluators, judges and files are those of train_text_diffusion.py. With --class_conditional the name of
the class stands before the source.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli.programs import SEQ2SEQ
from utils.cli.parse import parse
from utils.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from dataset_utils.corpus import Corpus
    from latent_models.seq2seq import Seq2SeqLM
    from pipelines.cli.configs import Seq2SeqConfig
    from pipelines.data.prompts import Prompts
    from pipelines.sampling.seq2seq import Seq2SeqGenerator
    from utils.checkpoints import Checkpoint
    from utils.cli.settings import Settings
    from utils.distributed import DistContext

PART = "encoder-decoder"


def train(settings: Settings[Seq2SeqConfig]) -> int:
    """Train; with --eval or --eval_test, evaluate a trained run. Returns the exit code."""
    started = time.monotonic()
    config = settings.config
    if config.run.dry_run:
        return _dry_run(settings)

    from pipelines.baselines import check_prompts, evaluate, fit, new_tokenizer, open_run
    from pipelines.builders.seq2seq import new_seq2seq, saved_seq2seq
    from pipelines.data.pairs import encode_pairs
    from pipelines.summary import log_corpus_stats

    run = open_run(settings, "seq2seq", "seq2seq", check_sources)
    context, corpus, prompts, max_source = run.context, run.corpus, run.prompts, run.max_prompt
    if context.is_eval:
        return evaluate(
            run,
            lambda checkpoint: load_lm(settings, settings.path("resume_dir"), checkpoint),
            lambda lm: make_generator(settings, lm, prompts, max_source, context.dist),
        )
    if config.run.resume_training:
        lm = saved_seq2seq(settings, context.folder)
    else:
        lm = new_seq2seq(settings, new_tokenizer(run), max_source)
    lm = lm.to(context.device)
    check_prompts(lm, prompts)
    max_source = min(max_source, lm.max_length or max_source)  # the limit of the corpus may be larger
    log_corpus_stats(context, corpus, lm.tokenizer, lm.source_tokenizer, max_source)
    tokens = {
        name: encode_pairs(lm, split.texts, prompts.of_split(split) or [], config.model.max_seq_len, max_source)
        for name, split in (("train", corpus.train), ("valid", corpus.valid))
    }
    generator = make_generator(settings, lm, prompts, max_source, context.dist)
    languages = [lm.language_model.language, lm.source_language]
    run = replace(run, max_prompt=max_source)
    return fit(run, lm, tokens, generator, part=PART, started=started, languages=languages)


def check_sources(corpus: Corpus) -> None:
    """UserError for a corpus that is not one of pairs."""
    lacking = next((name for name, split in corpus.splits.items() if split.sources is None), None)
    if lacking is not None:
        raise UserError(
            f"{corpus.name} has no sources in its {lacking} split, and an encoder-decoder is trained on pairs: name a "
            "corpus of pairs (docs/pairs.md), or train a language model with python -m pipelines.train_causal_lm"
        )


def load_lm(settings: Settings[Seq2SeqConfig], folder: Path, checkpoint: Checkpoint | None = None) -> Seq2SeqLM:
    """The model of a run folder with the weights of a checkpoint, in evaluation mode; None: that of --checkpoint."""
    from pipelines.best_checkpoint import checkpoint_of
    from pipelines.builders.seq2seq import saved_seq2seq
    from utils.pretrained import load_into

    lm = saved_seq2seq(settings, folder)
    load_into(lm, checkpoint or checkpoint_of(folder, settings, default=True))
    return lm.eval()


def make_generator(
    settings: Settings[Seq2SeqConfig], lm: Seq2SeqLM, prompts: Prompts, max_source: int, dist: DistContext
) -> Seq2SeqGenerator:
    """max_source: longest source in tokens. dist: device and processes."""
    from pipelines.baselines import generation_sizes
    from pipelines.sampling.seq2seq import Seq2SeqGenerator

    return Seq2SeqGenerator(lm, prompts, settings.config.sampling, **generation_sizes(settings, max_source, dist))


def _dry_run(settings: Settings[Seq2SeqConfig]) -> int:
    from pipelines.baselines import dry_run_baseline
    from pipelines.builders.seq2seq import meta_seq2seq

    folder = None if settings.mode is None else settings.path("resume_dir")
    lm = meta_seq2seq(settings, folder, settings.config.prompts.max_source_len or 64)
    return dry_run_baseline(settings, lm, PART, check_sources)


@exit_on_user_error
def main() -> int:
    settings = parse(SEQ2SEQ)
    code = train(settings)
    from utils.distributed import cleanup

    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
