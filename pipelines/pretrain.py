"""Stage 0, whole: corpora -> tokenizer -> a small BART, trained by denoising into an ordinary Hugging Face folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dataset_utils.splits import Split
from evaluation import report
from evaluation.protocols import evaluate_reconstruction
from latent_models.language_models import LanguageModel
from latent_models.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.tokenizers.training import train_tokenizer
from pipelines.cli.configs import PretrainConfig
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.summary import dry_run, log_corpus_stats
from pipelines.evaluators.reconstruction import reconstruct, via_encoder
from pipelines.run_context import RunContext, fit, load_corpus, make_train_state, setup_run, save_args
from pipelines.steps.denoising_lm import DenoisingLMStep
from utils import checkpoints
from utils.cli.settings import Settings
from utils.distributed import wrap
from utils.errors import UserError
from utils.hooks import PeriodicHook
from utils.preemption import EXIT_CODES
from utils.seeding import derive_seed
from utils.state import State
from utils.train_eval import eval_mode

STRATEGY = "greedy"  # copying leaves nothing to search for


def run(settings: Settings[PretrainConfig]) -> int:
    """Train, validate, save. Returns the exit code."""
    started = time.monotonic()
    if settings.config.run.dry_run:
        return dry_run(settings, _parts, lambda corpus: _new_tokenizer(corpus.train.all_texts(), settings))
    options = settings.config.model
    job = setup_run(settings, "language_model_pretraining", "pretrain")
    corpus = load_corpus(job)
    train = Split(corpus.train.all_texts())  # sources are texts of the language, too
    valid = Split(corpus.valid.all_texts())
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    model = _model(job, train, options)
    log_corpus_stats(job, corpus, model.tokenizer, max_source_length=options.max_seq_len)
    model.chunked_loss = not settings.config.loss.whole_logits
    data = tokenize_split(train, model, options.max_seq_len)
    held_out = tokenize_split(valid, model, options.max_seq_len)
    job.log(
        f"{len(train):,} texts, {len(model.tokenizer):,} tokens, {sum(p.numel() for p in model.parameters()):,} "
        "parameters, "
        f"{100 * data.table.truncated:.1f} % of the texts cut at {options.max_seq_len} tokens"
    )

    state = make_train_state(job, model)
    state.wrapped = wrap(model, job.dist)
    if settings.config.run.resume_training:
        state.restore(checkpoints.load(job.folder))
    elif job.dist.is_main:
        model.tokenizer.save_pretrained(job.folder)  # at once: resuming must not depend on training it again
    save_args(job, vocabulary=len(model.tokenizer), trainable_params=sum(p.numel() for p in model.parameters()))
    step = DenoisingLMStep(
        state.wrapped,
        data,
        options,
        job.batch_sampler(),
        job.device,
        model.tokenizer.mask_token_id,
        len(model.tokenizer),
    )

    def validate(state: State) -> None:
        result = _copying(job, model, held_out, options)
        job.logger.record({f"lm/{STRATEGY}/{k}": v for k, v in result.items() if isinstance(v, float)}, state.step)
        job.logger.print(
            f"copies {100 * result['exact_match']:.1f} % of held-out texts exactly, BLEU {result['bleu']:.1f}"
        )

    hooks = [
        PeriodicHook(settings.config.validation.eval_every, validate, name="validate"),
        PeriodicHook(
            settings.config.loop.save_every or settings.config.validation.eval_every,
            lambda state: state.save(job.folder),
        ),
    ]
    reason = fit(job, state, step, hooks, started)
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    result = _copying(job, model, held_out, options)
    if job.dist.is_main:
        model.save_pretrained(job.folder)
        report.write(job.folder, "validation", result)
        job.log(report.table(result, f"{job.folder}: copying held-out texts ({STRATEGY})"))
    job.dist.barrier()
    return 0


def _model(job: RunContext[PretrainConfig], train: Split, options: PretrainingOptions) -> LanguageModel:
    """A fresh model with its tokenizer, or the run's own when it is resumed."""
    if job.settings.config.run.resume_training:
        return LanguageModel(
            small_bart(options, _tokenizer(job.folder)), _tokenizer(job.folder), str(job.folder), False
        ).to(job.device)
    tokenizer = _new_tokenizer(train.texts, job.settings)
    return LanguageModel(small_bart(options, tokenizer), tokenizer, str(job.folder), frozen=False).to(job.device)


def _new_tokenizer(texts: list[str], settings: Settings[PretrainConfig]) -> Any:
    return train_tokenizer(
        texts, settings.config.model.tokenizer, settings.config.model.vocab_size, settings.config.model.max_seq_len
    )


def _parts(settings: Settings[PretrainConfig]) -> dict[str, torch.nn.Module]:
    """What a dry run builds: the corpus is not read, so the vocabulary is taken to be as large as allowed."""
    options = settings.config.model
    words = [f"word{i}" for i in range(options.vocab_size)]
    tokenizer = train_tokenizer(words, "word", options.vocab_size, options.max_seq_len)
    with torch.device("meta"):
        return {"language model": LanguageModel(small_bart(options, tokenizer), tokenizer, "the new model", False)}


def _tokenizer(folder: Path):
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no tokenizer: it is not a run of stage 0 that can be resumed") from error


def _copying(job: RunContext[PretrainConfig], model: LanguageModel, held_out: TokenSplit, options: PretrainingOptions) -> dict:
    """How exactly the model writes out held-out texts that it sees whole."""
    rows = torch.arange(min(job.settings.config.validation.eval_texts, len(held_out)))
    decode = via_encoder(model, options.max_seq_len)
    with eval_mode(model):
        written = reconstruct(decode, held_out, rows, 128, STRATEGY, job.device, job.autocast, "copy", True, job.dist)
    return evaluate_reconstruction(written, [held_out.split.texts[row] for row in rows.tolist()])
