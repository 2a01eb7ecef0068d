"""A baseline: train a causal language model on a corpus, and evaluate it as a diffusion run is evaluated.

    python -m pipelines.train_causal_lm --train_file stories.jsonl --output_dir runs/gpt2
    python -m pipelines.train_causal_lm --train_file stories.jsonl --model models/smollm2-135m --lora_rank 16 ...
    python -m pipelines.train_causal_lm --eval --resume_dir runs/gpt2 --num_samples 1000

Corpus, splits, evaluators, judges and files are those of train_text_diffusion.py. Of pairs, the source is a prompt and
the loss is that of the target; with --class_conditional the name of the class is the prompt.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli.programs import CAUSAL_LM
from utils.cli.parse import parse
from utils.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from dataset_utils.splits import Split
    from latent_models.causal.model import CausalLM
    from latent_models.causal.sequences import Sequences
    from pipelines.cli.configs import CausalLMConfig
    from pipelines.data.prompts import Prompts
    from pipelines.sampling.causal import CausalGenerator
    from utils.checkpoints import Checkpoint
    from utils.cli.settings import Settings
    from utils.distributed import DistContext

PART = "causal language model"


def train(settings: Settings[CausalLMConfig]) -> int:
    """Train; with --eval or --eval_test, evaluate a trained run. Returns the exit code."""
    started = time.monotonic()
    config = settings.config
    if config.run.dry_run:
        return _dry_run(settings)

    from pipelines.baselines import check_prompts, evaluate, fit, new_tokenizer, open_run
    from pipelines.builders.causal_lm import FINGERPRINT, base_fingerprint, new_causal_lm, saved_causal_lm
    from pipelines.summary import log_corpus_stats

    run = open_run(settings, "causal_language_model", "causal LM")
    context, corpus, prompts, max_prompt = run.context, run.corpus, run.prompts, run.max_prompt
    seed = config.loop.random_seed
    if context.is_eval:
        return evaluate(
            run,
            lambda checkpoint: load_lm(settings, settings.path("resume_dir"), checkpoint),
            lambda lm: make_generator(settings, lm, prompts, max_prompt, context.dist),
        )
    if config.run.resume_training:
        lm = saved_causal_lm(config.model, context.folder, seed)
    else:
        lm = new_causal_lm(config.model, new_tokenizer(run), max_prompt, seed)
    lm = lm.to(context.device)
    check_prompts(lm, prompts)
    log_corpus_stats(context, corpus, lm.tokenizer)
    tokens = {name: encode_split(lm, corpus.splits[name], prompts, config, max_prompt) for name in ("train", "valid")}
    generator = make_generator(settings, lm, prompts, max_prompt, context.dist)
    base = base_fingerprint(lm)
    facts = {} if base is None else {FINGERPRINT: base}
    return fit(run, lm, tokens, generator, part=PART, started=started, **facts)


def load_lm(settings: Settings[CausalLMConfig], folder: Path, checkpoint: Checkpoint | None = None) -> CausalLM:
    """The model of a run folder with the weights of a checkpoint, in evaluation mode; None: that of --checkpoint."""
    from pipelines.best_checkpoint import checkpoint_of
    from pipelines.builders.causal_lm import saved_causal_lm
    from utils.pretrained import load_into

    config = settings.config
    lm = saved_causal_lm(config.model, folder, config.loop.random_seed)
    load_into(lm, checkpoint or checkpoint_of(folder, settings, default=True))
    return lm.eval()


def make_generator(
    settings: Settings[CausalLMConfig], lm: CausalLM, prompts: Prompts, max_prompt: int, dist: DistContext
) -> CausalGenerator:
    """max_prompt: longest prompt in tokens. dist: device and processes."""
    from pipelines.baselines import generation_sizes
    from pipelines.sampling.causal import CausalGenerator

    return CausalGenerator(lm, prompts, settings.config.sampling, **generation_sizes(settings, max_prompt, dist))


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


def _dry_run(settings: Settings[CausalLMConfig]) -> int:
    from pipelines.baselines import dry_run_baseline
    from pipelines.builders.causal_lm import meta_causal_lm

    config = settings.config
    folder = None if settings.mode is None else settings.path("resume_dir")
    lm = meta_causal_lm(config.model, folder, config.prompts.max_source_len or 64)
    return dry_run_baseline(settings, lm, PART)


@exit_on_user_error
def main() -> int:
    settings = parse(CAUSAL_LM)
    code = train(settings)
    from utils.distributed import cleanup

    cleanup()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
