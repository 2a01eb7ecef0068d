"""Stage 0: train a tokenizer and a small BART on the texts of a corpus, by denoising. Writes a Hugging Face folder."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dataset_utils.splits import Split
from evaluation import report
from evaluation.protocols import evaluate_reconstruction
from latent_models.language_models import LanguageModel
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.tokenizers.training import train_tokenizer
from pipelines.best_checkpoint import best_score, check_best_metric, load_best_score, save_if_best
from pipelines.cli.configs import PretrainConfig
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.evaluators.reconstruction import reconstruct, via_encoder
from pipelines.evaluators.spelling import Spelling
from pipelines.finish import finish
from pipelines.run_context import RunContext, load_corpus, make_train_state, save_args, setup_run
from pipelines.steps.denoising_lm import DenoisingLMStep
from pipelines.summary import dry_run, log_corpus_stats
from pipelines.training import resume, run_training
from utils import checkpoints
from utils.cli.settings import Settings
from utils.distributed import wrap
from utils.errors import UserError
from utils.hooks import PeriodicHook
from utils.pretrained import load_into
from utils.seeding import derive_seed
from utils.shared import make_on_main
from utils.state import State
from utils.train_eval import eval_mode

STRATEGY = "greedy"  # a copied text has one right answer, so a search gains nothing
BEST_METRICS = ("bleu", "exact_match", "rouge1", "rouge2", "rougeL")  # for --best_metric


def train(settings: Settings[PretrainConfig]) -> int:
    """Train, validate, save. Returns the exit code."""
    started = time.monotonic()
    options = settings.config.model
    if settings.config.run.dry_run:
        return dry_run(settings, _meta_model, lambda corpus: _train_tokenizer(corpus.train.all_texts(), options))

    check_best_metric(settings, BEST_METRICS)
    run = setup_run(settings, "language_model_pretraining", "pretrain")
    corpus = load_corpus(run)
    train_texts = Split(corpus.train.all_texts())  # sources are texts of the language, too
    valid_texts = Split(corpus.valid.all_texts())
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    resumed = settings.config.run.resume_training
    if resumed:
        tokenizer = _load_tokenizer(run.folder)
    else:
        tokenizer = make_on_main(run.dist, partial(_train_tokenizer, train_texts.texts, options))
    model = build_language_model(options, tokenizer, str(run.folder)).to(run.device)
    log_corpus_stats(run, corpus, tokenizer, max_source_length=options.max_seq_len)
    model.chunked_loss = not settings.config.loss.whole_logits
    train_tokens = tokenize_split(train_texts, model, options.max_seq_len)
    valid_tokens = tokenize_split(valid_texts, model, options.max_seq_len)
    num_parameters = sum(p.numel() for p in model.parameters())
    run.log(
        f"{len(train_texts):,} texts, {len(tokenizer):,} tokens, {num_parameters:,} parameters, "
        f"{100 * train_tokens.table.truncated:.1f} % of the texts truncated to {options.max_seq_len} tokens"
    )

    state = make_train_state(run, model)
    state.wrapped = wrap(model, run.dist)
    if resume(run, state):
        state.best = load_best_score(run.folder, state.best)
    run.write_files(lambda: tokenizer.save_pretrained(run.folder), now=not resumed)  # now: a resumed run loads it
    save_args(run, parts={"language model": model}, vocabulary=len(tokenizer), trainable_params=num_parameters)
    step = DenoisingLMStep(
        state.wrapped,
        train_tokens,
        options,
        run.batch_sampler(),
        run.device,
        tokenizer.mask_token_id,
        len(tokenizer),
    )

    def validate(state: State) -> None:
        result = evaluate_copying(run, model, valid_tokens)
        metrics = {f"lm/{STRATEGY}/{k}": v for k, v in result.items() if isinstance(v, float)}
        run.logger.record(metrics, state.step)
        save_if_best(run, state, best_score(run, metrics, None))
        run.logger.print(
            f"copies {100 * result['exact_match']:.1f} % of held-out texts exactly"
            + (" (in the spelling of the tokenizer)" if result["protocol"]["spelling"] == "tokenizer" else "")
            + f", BLEU {result['bleu']:.1f}"
        )

    eval_every = settings.config.validation.eval_every
    code = run_training(
        run,
        state,
        step,
        started=started,
        evaluation=PeriodicHook(eval_every, validate, name="validate"),
        evaluate_last=False,  # below, into a file
        save_every=settings.config.loop.save_every or eval_every,
    )
    if code:
        if run.dist.is_main:
            model.save_pretrained(run.folder)
        run.log(f"{run.folder} holds the language model of step {state.step}, which stage 1 can use as it is")
        return code
    if state.best and settings.config.best.best_metric:
        load_into(model, checkpoints.load_best(run.folder))
        run.log(f"the model is that of the best checkpoint, of step {state.best['step']}")
    result = evaluate_copying(run, model, valid_tokens)
    if run.dist.is_main:
        model.save_pretrained(run.folder)
        report.write(run.folder, "validation", result)
        run.log(report.table(result, f"{run.folder}: copying held-out texts ({STRATEGY})"))
    run.dist.barrier()
    finish(run, state.step)
    return 0


def build_language_model(options: PretrainingOptions, tokenizer: Any, name: str) -> LanguageModel:
    """A small BART with fresh weights, on the default device of torch. name: shown in messages."""
    return LanguageModel(small_bart(options, tokenizer), tokenizer, name, frozen=False)


def _meta_model(settings: Settings[PretrainConfig]) -> dict[str, torch.nn.Module]:
    """The model on the meta device, for a dry run; it has the largest vocabulary, since the corpus is not read."""
    options = settings.config.model
    words = [f"word{i}" for i in range(options.vocab_size)]
    tokenizer = train_tokenizer(words, "word", options.vocab_size, options.max_seq_len)
    with torch.device("meta"):
        return {"language model": build_language_model(options, tokenizer, "the new model")}


def _train_tokenizer(texts: list[str], options: PretrainingOptions) -> Any:
    return train_tokenizer(texts, options.tokenizer, options.vocab_size, options.max_seq_len)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no tokenizer, so this run of stage 0 cannot be resumed: start anew") from error


def evaluate_copying(run: RunContext[PretrainConfig], model: LanguageModel, data: TokenSplit) -> dict[str, Any]:
    """Reconstruction metrics of held-out texts that the encoder sees uncorrupted. Every rank must call it."""
    rows = torch.arange(min(run.settings.config.validation.eval_texts, len(data)))
    decode = via_encoder(model, run.settings.config.model.max_seq_len)
    with eval_mode(model):
        texts = reconstruct(decode, data, rows, 128, STRATEGY, run.device, run.autocast, "copy", True, run.dist)
    spelling = Spelling.of(model.tokenizer, {"valid": data.split.texts})
    result = evaluate_reconstruction(texts, spelling.respell([data.split.texts[row] for row in rows.tolist()]))
    result["protocol"] |= spelling.metadata()
    return result
