"""A baseline: train a causal language model on a corpus, and evaluate it as a diffusion run is evaluated.

    python -m pipelines.train_causal_lm --train_file stories.jsonl --output_dir runs/gpt2
    python -m pipelines.train_causal_lm --train_file stories.jsonl --model models/smollm2-135m --lora_rank 16 ...
    python -m pipelines.train_causal_lm --eval --resume_dir runs/gpt2 --num_samples 1000

Corpus, splits, evaluators, judges and files are those of train_text_diffusion.py. Of pairs, the source is a prompt and
the loss is that of the target; with --class_conditional the name of the class is the prompt.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.cli.programs import CAUSAL_LM
from utils.cli.parse import parse
from utils.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from torch import nn

    from dataset_utils.corpus import Corpus
    from dataset_utils.splits import Split
    from latent_models.causal.model import CausalLM
    from latent_models.causal.sequences import Sequences
    from pipelines.cli.configs import CausalLMConfig
    from pipelines.data.prompts import Prompts
    from pipelines.run_context import RunContext
    from pipelines.sampling.causal import CausalGenerator
    from utils.checkpoints import Checkpoint
    from utils.cli.settings import Settings
    from utils.state import State

MODEL = "model"  # folder in a run folder: the trained model as an ordinary Hugging Face folder
NUM_SHOWN = 5  # samples in the log after a validation


def train(settings: Settings[CausalLMConfig]) -> int:
    """Train; with --eval or --eval_test, evaluate a trained run. Returns the exit code."""
    started = time.monotonic()
    config = settings.config
    if config.run.dry_run:
        return _dry_run(settings)

    from pipelines.best_checkpoint import LOSSES, best_score, check_best_metric, load_best_score, save_if_best
    from pipelines.builders.causal_lm import make_tokenizer, new_causal_lm, save_base, saved_causal_lm
    from pipelines.data.prompts import Prompts
    from pipelines.run_context import load_corpus, make_train_state, save_args, setup_run
    from pipelines.steps.causal_lm import CausalLMStep
    from pipelines.summary import log_corpus_stats
    from pipelines.training import progress_metrics, resume, run_training
    from utils.distributed import wrap
    from utils.hooks import PeriodicHook
    from utils.pretrained import best_or_newest, load_into
    from utils.shared import make_on_main

    def check(corpus: Corpus) -> None:
        Prompts.of(corpus, config.prompts.class_conditional, config.prompts.ignore_sources)
        check_classes(settings, corpus)

    check_best_metric(settings, LOSSES[1:], "val_loss")
    run = setup_run(settings, "causal_language_model", "causal LM", check_corpus=check)
    corpus = load_corpus(run)
    prompts = Prompts.of(corpus, config.prompts.class_conditional, config.prompts.ignore_sources)
    max_prompt = longest_prompt(settings, corpus, prompts)
    seed, resumed = config.loop.random_seed, config.run.resume_training
    if run.is_eval:
        return evaluate(run, corpus, prompts, max_prompt)
    if resumed:
        lm = saved_causal_lm(config.model, run.folder, seed)
    else:
        texts = corpus.train.all_texts() if prompts.with_sources else corpus.train.texts
        tokenizer = None
        if config.model.model is None:
            tokenizer = make_on_main(run.dist, partial(make_tokenizer, config.model, texts, prompts.class_names))
        lm = new_causal_lm(config.model, tokenizer, max_prompt, seed)
    lm = lm.to(run.device)
    check_prompts(lm, prompts)
    log_corpus_stats(run, corpus, lm.tokenizer)
    tokens = {name: encode_split(lm, corpus.splits[name], prompts, config, max_prompt) for name in ("train", "valid")}
    trained = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    run.log(
        f"{len(tokens['train']):,} texts, {len(lm.tokenizer):,} tokens, {trained:,} trained parameters of "
        f"{sum(p.numel() for p in lm.parameters()):,}, {100 * tokens['train'].truncated:.1f} % of the texts truncated "
        f"to {config.model.max_seq_len} tokens"
    )

    state = make_train_state(run, lm)
    if resume(run, state):
        state.best = load_best_score(run.folder, state.best)
    run.write_files(lambda: save_base(lm, run.folder), now=not resumed)
    save_args(
        run,
        parts={"causal language model": lm},
        vocabulary=len(lm.tokenizer),
        max_prompt_tokens=max_prompt,
        class_names=list(prompts.class_names),
        seq2seq=prompts.with_sources,
        trainable_params=trained,
    )
    state.wrapped = network = wrap(lm, run.dist)
    step = CausalLMStep(network, tokens["train"], run.batch_sampler(), run.device, tokens["train"].mean_targets)
    validation_sampler = run.validation_sampler(len(corpus.valid))
    validation_step = CausalLMStep(lm, tokens["valid"], validation_sampler, run.device, 1.0)
    generator = make_generator(run, lm, prompts, max_prompt)

    def validate(state: State) -> None:
        loss = validation_loss(run, lm, validation_step)
        run.logger.record({"val_loss": loss}, state.step)
        run.logger.print(f"validation loss {loss:.4f} nats per token")
        save_if_best(run, state, best_score(run, {"val_loss": loss}, "val_loss"))
        _show_samples(run, generator, corpus, state)

    progress = progress_metrics(run, len(tokens["train"]))
    run.logger.extra = progress
    eval_every = config.validation.eval_every
    code = run_training(
        run,
        state,
        step,
        started=started,
        evaluation=PeriodicHook(eval_every, validate, name="validate"),
        save_every=config.loop.save_every or eval_every,
    )
    has_ended = state.step >= config.loop.num_train_steps or state.ended_by is not None
    if code == 0 and run.dist.is_main and has_ended:
        load_into(lm, best_or_newest(run.folder))
        lm.save_pretrained(run.folder / MODEL)
        run.log(f"the model of the best checkpoint is in {run.folder / MODEL}, a Hugging Face folder")
    run.dist.barrier()
    return code


def evaluate(run: RunContext[CausalLMConfig], corpus: Corpus, prompts: Prompts, max_prompt: int) -> int:
    """Evaluate a trained run with the evaluators of diffusion runs. Returns the exit code."""
    from pipelines.best_checkpoint import checkpoint_of
    from pipelines.evaluators.evaluator import make_evaluator
    from pipelines.sampling.causal import PromptSources
    from utils.pretrained import WeightsRead

    config, folder = cast(Any, run.settings.config), run.settings.path("resume_dir")
    checkpoint = checkpoint_of(folder, run.settings, default=True)
    run.weights = WeightsRead.of(checkpoint)
    lm = load_lm(run.settings, folder, checkpoint).to(run.device)
    del checkpoint  # it may hold the state of an optimizer
    generator = make_generator(run, lm, prompts, max_prompt)
    sources: Any = PromptSources(generator) if prompts.with_sources else None
    context: Any = run
    evaluator = make_evaluator(context, generator, corpus, sources)
    if config.evaluation.scorer or config.mauve.mauve_encoder:
        evaluator.load_models()
    return evaluator.evaluate_run()


def load_lm(settings: Settings[CausalLMConfig], folder: Path, checkpoint: Checkpoint | None = None) -> CausalLM:
    """The model of a run folder with the weights of a checkpoint, in evaluation mode; None: that of --checkpoint."""
    from pipelines.best_checkpoint import checkpoint_of
    from pipelines.builders.causal_lm import saved_causal_lm
    from utils.pretrained import load_into

    config = settings.config
    lm = saved_causal_lm(config.model, folder, config.loop.random_seed)
    load_into(lm, checkpoint or checkpoint_of(folder, settings, default=True))
    return lm.eval()


def make_generator(run: RunContext[CausalLMConfig], lm: CausalLM, prompts: Prompts, max_prompt: int) -> CausalGenerator:
    from pipelines.sampling.causal import CausalGenerator

    config = run.settings.config
    return CausalGenerator(
        lm,
        prompts,
        config.sampling,
        max_length=config.model.max_seq_len,
        max_prompt=max_prompt,
        batch_size=config.evaluation.eval_batch_size,
        device=run.device,
        dist=run.dist,
    )


def longest_prompt(settings: Settings[CausalLMConfig], corpus: Corpus, prompts: Prompts) -> int:
    """The largest number of tokens of a prompt: that of the run, --max_source_len, or the limit of the corpus."""
    saved = settings.checkpoint_args.get("max_prompt_tokens")
    if saved is not None:
        return saved
    if prompts.with_sources:
        return settings.config.prompts.max_source_len or corpus.spec.max_source_tokens
    return 16 if prompts.class_names else 0


def check_classes(settings: Settings[CausalLMConfig], corpus: Corpus) -> None:
    """UserError if the classes of a corpus are not those of the run that is evaluated."""
    trained = settings.checkpoint_args.get("class_names")
    if trained and list(corpus.class_names) != list(trained):
        raise UserError(
            f"{settings.config.run.resume_dir} was trained on the classes {', '.join(trained)}, and {corpus.name} has "
            f"{', '.join(corpus.class_names) or 'none'}: name texts with the same classes"
        )


def check_prompts(lm: CausalLM, prompts: Prompts) -> None:
    """UserError if two classes have the same prompt: a vocabulary of words may lack their names."""
    from latent_models.causal.sequences import prompt_ids

    names = list(prompts.class_names)
    ids = [tuple(p.ids) for p in prompt_ids(lm.tokenizer, lm.boundaries, names, len(names), 16)] if names else []
    if len(set(ids)) < len(ids):
        raise UserError(
            f"the tokenizer of {lm.name} does not tell the classes {', '.join(names[:5])} apart: use --tokenizer bpe"
        )


def encode_split(lm: CausalLM, split: Split, prompts: Prompts, config: CausalLMConfig, max_prompt: int) -> Sequences:
    """Token ids of a split. UserError if a prompt and a text together are longer than the model allows."""
    from latent_models.causal.sequences import encode

    made = encode(
        lm.tokenizer, lm.boundaries, split.texts, prompts.of_split(split), config.model.max_seq_len, max_prompt
    )
    longest, limit = int(made.lengths().max()), lm.max_length
    if limit is not None and longest > limit:
        raise UserError(
            f"a text with its prompt has {longest} tokens, more than the {limit} of {lm.name}: lower --max_source_len "
            "or --max_seq_len"
        )
    return made


def validation_loss(run: RunContext[CausalLMConfig], lm: CausalLM, step: Any) -> float:
    """Nats per token of held-out texts. Every rank must call it."""
    from pipelines.validation import mean_losses
    from utils.train_eval import eval_mode

    with eval_mode(lm), run.autocast():
        means = mean_losses(run.dist, step.batch_sampler, ("nll", "tokens"), step.totals)
    return means["nll"] / means["tokens"]


def _show_samples(run: RunContext[CausalLMConfig], generator: CausalGenerator, corpus: Corpus, state: State) -> None:
    """Log a few texts: for held-out sources or classes where the run has prompts."""
    from evaluation import report

    prompts = generator.prompts.of_split(corpus.valid.select(range(min(NUM_SHOWN, len(corpus.valid)))))
    if prompts is None:
        texts = generator.sample(NUM_SHOWN, 42, quiet=True).texts["nucleus"]
        rows = [[text] for text in texts]
    else:
        found = generator.candidates(len(prompts), 1, 42, ("nucleus",), lambda a, b: prompts[a:b], quiet=True)
        texts = [row[0] for row in found["nucleus"]]
        rows = [[f"{prompt} -> {text}"] for prompt, text in zip(prompts, texts, strict=True)]
    if run.dist.is_main:
        run.logger.table("samples", ["text"], rows, state.step)
        run.log(f"step {state.step}:\n{report.format_samples([row[0] for row in rows], NUM_SHOWN)}")


def _dry_run(settings: Settings[CausalLMConfig]) -> int:
    from pipelines.builders.causal_lm import TRAINED, make_tokenizer, meta_causal_lm
    from pipelines.summary import dry_run

    config = settings.config

    def build(settings: Settings[CausalLMConfig]) -> dict[str, nn.Module]:
        source = config.prompts.max_source_len or 64
        folder = None if settings.mode is None else settings.path("resume_dir")
        return {"causal language model": meta_causal_lm(config.model, folder, source)}

    def tokenizer(corpus: Corpus) -> Any:
        return make_tokenizer(config.model, corpus.train.all_texts(), ())

    is_trained = config.model.model is None and config.model.tokenizer in TRAINED and settings.mode is None
    return dry_run(settings, build, tokenizer if is_trained else None)


@exit_on_user_error
def main() -> int:
    settings = parse(CAUSAL_LM)
    code = train(settings)
    from utils.distributed import cleanup

    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
