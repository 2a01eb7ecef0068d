"""What the programs of the baselines share: language models that are trained without latents, and evaluated as
diffusion runs are. A program adds its model, the token ids of a corpus, and a generator of texts.

    run = open_run(...)                    # corpus, prompts, folder
    evaluate(run, load, generator)         # with --eval or --eval_test
    fit(run, lm, tokens, generator, ...)   # else: train, validate, keep the best checkpoint as an ordinary model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

from torch import nn

from dataset_utils.corpus import Corpus
from latent_models.causal.sequences import plain_ids
from pipelines.best_checkpoint import (
    LOSSES,
    best_score,
    check_best_metric,
    checkpoint_of,
    load_best_score,
    save_if_best,
)
from pipelines.builders.baselines import TRAINED, make_tokenizer, save_base
from pipelines.cli.configs import BaselineConfig
from pipelines.data.length_buckets import LengthBuckets
from pipelines.data.prompts import Prompts
from pipelines.finish import finish
from pipelines.run_context import RunContext, load_corpus, make_train_state, save_args, setup_run
from pipelines.sampling.causal import CausalGenerator
from pipelines.sampling.language_model import LanguageModelGenerator, PromptSources
from pipelines.steps.language_model import LanguageModelStep, TrainingTexts
from pipelines.summary import dry_run
from pipelines.training import progress_metrics, resume, run_training
from pipelines.validation import mean_losses
from utils.checkpoints import Checkpoint
from utils.cli.settings import Settings
from utils.distributed import DistContext, wrap
from utils.errors import UserError
from utils.hooks import PeriodicHook
from utils.pretrained import WeightsRead, best_or_newest, load_into
from utils.shared import make_on_main
from utils.state import State
from utils.train_eval import eval_mode

MODEL = "model"  # folder in a run folder: the trained model as an ordinary Hugging Face folder
NUM_SHOWN = 5  # samples in the log after a validation
MOST_NAME_TOKENS = 16  # of the name of a class that is a prompt

C = TypeVar("C", bound=BaselineConfig, covariant=True)
Check = Callable[[Corpus], None]


@dataclass(frozen=True)
class BaselineRun(Generic[C]):
    """One invocation: its context, its corpus, and what precedes the texts, max_prompt tokens at most."""

    context: RunContext[C]
    corpus: Corpus
    prompts: Prompts
    max_prompt: int


def open_run(
    settings: Settings[C], project: str, title: str, check_corpus: Check = lambda corpus: None
) -> BaselineRun[C]:
    """Read and check the corpus, then set up the run; see setup_run. UserError for what flags and corpus contradict."""
    options = settings.config.prompts

    def prompts_of(corpus: Corpus) -> Prompts:
        return Prompts.of(corpus, options.class_conditional, bool(settings.values.get("ignore_sources")))

    def check(corpus: Corpus) -> None:
        check_corpus(corpus)
        prompts_of(corpus)
        _check_classes(settings, corpus)

    check_best_metric(settings, LOSSES[1:], "val_loss")
    context = setup_run(settings, project, title, check_corpus=check)
    corpus = load_corpus(context)
    prompts = prompts_of(corpus)
    return BaselineRun(context, corpus, prompts, _longest_prompt(settings, corpus, prompts))


def new_tokenizer(run: BaselineRun[BaselineConfig]) -> Any:
    """The tokenizer of a model from scratch, made by rank 0; None for a pretrained model."""
    options, corpus = run.context.settings.config.model, run.corpus
    if options.model is not None:
        return None
    texts = corpus.train.all_texts() if run.prompts.with_sources else corpus.train.texts
    return make_on_main(run.context.dist, partial(make_tokenizer, options, texts, run.prompts.class_names))


def fit(
    run: BaselineRun[BaselineConfig],
    lm: Any,
    tokens: Mapping[str, TrainingTexts],
    generator: LanguageModelGenerator,
    *,
    part: str,
    started: float,
    **facts: Any,
) -> int:
    """Train a model, with validations; write the best one as a Hugging Face folder. Returns the exit code.

    lm: gives the negative log-likelihood (B,) of a batch of tokens. tokens: train and valid. part: what the model is
    called in tables. started: see run_training. facts: further entries of args.json.
    """
    context, corpus, prompts = run.context, run.corpus, run.prompts
    config, resumed = context.settings.config, context.settings.config.run.resume_training
    trained = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    context.log(
        f"{len(tokens['train']):,} texts, {len(lm.tokenizer):,} tokens, {trained:,} trained parameters of "
        f"{sum(p.numel() for p in lm.parameters()):,}, {100 * tokens['train'].truncated:.1f} % of the texts truncated "
        f"to {config.model.max_seq_len} tokens"
    )
    state = make_train_state(context, lm)
    if resume(context, state):
        state.best = load_best_score(context.folder, state.best)
    context.write_files(partial(save_base, lm.model, lm.tokenizer, context.folder), now=not resumed)
    save_args(
        context,
        parts={part: lm},
        vocabulary=len(lm.tokenizer),
        max_prompt_tokens=run.max_prompt,
        class_names=list(prompts.class_names),
        seq2seq=prompts.with_sources,
        trainable_params=trained,
        **facts,
    )
    state.wrapped = network = wrap(lm, context.dist)
    buckets = LengthBuckets(context.batch_sampler(), tokens["train"].lengths())
    step = LanguageModelStep(network, tokens["train"], buckets, context.device)
    validation_sampler = context.validation_sampler(len(corpus.valid))
    validation_step = LanguageModelStep(lm, tokens["valid"], validation_sampler, context.device)

    def validate(state: State) -> None:
        loss = validation_loss(context, lm, validation_step)
        context.logger.record({"val_loss": loss}, state.step)
        context.logger.print(f"validation loss {loss:.4f} nats per token")
        save_if_best(context, state, best_score(context, {"val_loss": loss}, "val_loss"))
        _show_samples(run, generator, state)

    context.logger.extra = progress_metrics(context, len(tokens["train"]))
    eval_every = config.validation.eval_every
    code = run_training(
        context,
        state,
        step,
        started=started,
        evaluation=PeriodicHook(eval_every, validate, name="validate"),
        save_every=config.loop.save_every or eval_every,
    )
    if code == 0 and context.dist.is_main:  # also where --max_seconds ended it: another training may read the model
        load_into(lm, best_or_newest(context.folder))
        lm.save_pretrained(context.folder / MODEL)
        context.log(f"the model of the best checkpoint is in {context.folder / MODEL}, a Hugging Face folder")
    context.dist.barrier()
    return code


def evaluate(
    run: BaselineRun[BaselineConfig],
    load: Callable[[Checkpoint], nn.Module],
    generator_of: Callable[[Any], LanguageModelGenerator],
) -> int:
    """Evaluate a trained run with the evaluators of diffusion runs. Returns the exit code.

    load: checkpoint -> model; generator_of: model, on the device -> generator.
    """
    from pipelines.evaluators.evaluator import make_evaluator

    context, settings = run.context, run.context.settings
    checkpoint = checkpoint_of(settings.path("resume_dir"), settings, default=True)
    context.weights = WeightsRead.of(checkpoint)
    lm = load(checkpoint).to(context.device)
    del checkpoint  # it may hold the state of an optimizer
    generator = generator_of(lm)
    sources: Any = PromptSources(generator) if run.prompts.with_sources else None
    evaluator = make_evaluator(cast(Any, context), generator, run.corpus, sources)
    config: Any = settings.config
    if config.evaluation.scorer or config.mauve.mauve_encoder:
        evaluator.load_models()
    code = evaluator.evaluate_run()
    finish(cast(Any, context), 0)
    return code


def generation_sizes(settings: Settings[BaselineConfig], max_prompt: int, dist: DistContext) -> dict[str, Any]:
    """The arguments of a LanguageModelGenerator that flags and processes decide."""
    config = settings.config
    return {
        "max_length": config.model.max_seq_len,
        "max_prompt": max_prompt,
        "batch_size": config.evaluation.eval_batch_size,
        "device": dist.device,
        "dist": dist,
    }


def prompts_of_run(args: Mapping[str, Any]) -> tuple[Prompts, int]:
    """The prompts of a trained run, and their longest in tokens. args: its args.json."""
    names: Sequence[str] = args.get("class_names") or ()
    return Prompts(tuple(names), bool(args.get("seq2seq"))), int(args.get("max_prompt_tokens") or 0)


def check_prompts(lm: Any, prompts: Prompts) -> None:
    """UserError if two classes have the same prompt: a vocabulary of words may lack their names."""
    names = list(prompts.class_names)
    ids = [tuple(row[:MOST_NAME_TOKENS]) for row in plain_ids(lm.tokenizer, names)] if names else []
    if len(set(ids)) < len(ids):
        raise UserError(
            f"the tokenizer of {lm.name} does not tell the classes {', '.join(names[:5])} apart: use --tokenizer bpe"
        )


def validation_loss(context: RunContext[BaselineConfig], lm: nn.Module, step: LanguageModelStep) -> float:
    """Nats per token of held-out texts. Every rank must call it."""
    with eval_mode(lm), context.autocast():
        sampler: Any = step.batch_sampler
        means = mean_losses(context.dist, sampler, ("nll", "tokens"), step.totals)
    return means["nll"] / means["tokens"]


def dry_run_baseline(
    settings: Settings[BaselineConfig], lm: Any, part: str, check_corpus: Check = lambda corpus: None
) -> int:
    """Print configuration, modules and statistics; see pipelines.summary. lm: on the meta device."""
    options = settings.config.model
    is_trained = options.model is None and options.tokenizer in TRAINED and settings.mode is None

    def tokenizer_of(corpus: Corpus) -> Any:
        check_corpus(corpus)
        return make_tokenizer(options, corpus.train.all_texts(), ()) if is_trained else lm.tokenizer

    return dry_run(settings, lambda _: {part: lm}, tokenizer_of)


def _longest_prompt(settings: Settings[BaselineConfig], corpus: Corpus, prompts: Prompts) -> int:
    """The largest number of tokens of a prompt: that of the run, --max_source_len, or the limit of the corpus."""
    saved = settings.checkpoint_args.get("max_prompt_tokens")
    if saved is not None:
        return int(saved)
    if prompts.with_sources:
        return settings.config.prompts.max_source_len or corpus.spec.max_source_tokens
    return MOST_NAME_TOKENS if prompts.class_names else 0


def _check_classes(settings: Settings[BaselineConfig], corpus: Corpus) -> None:
    """UserError if the classes of a corpus are not those of the run that is evaluated."""
    trained = settings.checkpoint_args.get("class_names")
    if trained and list(corpus.class_names) != list(trained):
        raise UserError(
            f"{settings.config.run.resume_dir} was trained on the classes {', '.join(trained)}, and {corpus.name} has "
            f"{', '.join(corpus.class_names) or 'none'}: name texts with the same classes"
        )


def _show_samples(run: BaselineRun[BaselineConfig], generator: LanguageModelGenerator, state: State) -> None:
    """Log a few texts: for held-out sources or classes where the run has prompts."""
    from evaluation import report

    context, valid = run.context, run.corpus.valid
    prompts = generator.prompts.of_split(valid.select(range(min(NUM_SHOWN, len(valid)))))
    if prompts is None:
        assert isinstance(generator, CausalGenerator)
        texts = generator.sample(NUM_SHOWN, 42, quiet=True).texts["nucleus"]
        rows = [[text] for text in texts]
    else:
        found = generator.candidates(len(prompts), 1, 42, ("nucleus",), lambda a, b: prompts[a:b], quiet=True)
        texts = [row[0] for row in found["nucleus"]]
        rows = [[f"{prompt} -> {text}"] for prompt, text in zip(prompts, texts, strict=True)]
    if context.dist.is_main:
        context.logger.table("samples", ["text"], rows, state.step)
        context.log(f"step {state.step}:\n{report.format_samples([row[0] for row in rows], NUM_SHOWN)}")
