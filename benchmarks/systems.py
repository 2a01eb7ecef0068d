"""The systems of benchmarks/compare_systems.py: each gives n texts for a seed.

A run folder of a diffusion model or of a causal language model is sampled with the settings of its args.json. An
n-gram model, training texts and held-out texts are the rows between which a system should lie.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from dataset_utils.corpus import Corpus
from dataset_utils.digest import digest_corpus
from evaluation.ngram_lm import NgramLM
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.run_folder import write_json

NGRAM, TRAINING, HELD_OUT = "n-gram", "training texts", "held-out texts"
BASELINES = (NGRAM, TRAINING, HELD_OUT)
ORDER = 3  # of the n-gram model
DIFFUSION, CAUSAL = "train_text_diffusion.py", "python -m pipelines.train_causal_lm"
FLAGS_SHOWN = (  # of args.json, in scores.json
    "latent_space", "sampler", "sampling_timesteps", "decoding", "top_p", "top_k", "temperature", "repetition_penalty",
    "no_repeat_ngram_size", "min_new_tokens", "num_train_steps", "train_batch_size", "max_seq_len", "model",
    "lora_rank",
)  # fmt: skip
Sample = Callable[[int, int], list[str]]  # (number of texts, seed) -> texts


@dataclass(frozen=True)
class System:
    """A source of texts. identity: everything that its texts depend on but number and seed."""

    name: str
    kind: str
    load: Callable[[], Sample]
    identity: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def run_system(name: str, folder: Path, corpus: Corpus, device: str) -> System:
    """The system of a run folder. UserError if it is none, of another corpus, or needs a class or a source."""
    if not folder.is_dir():
        raise UserError(f"--runs {name}={folder}: there is no such folder: name a run folder")
    args = read_args(folder)
    program = args.get("program")
    if program not in (DIFFUSION, CAUSAL):
        raise UserError(
            f"--runs {name}={folder} is a run of {program}: name one of {DIFFUSION} or of {CAUSAL}, which sample texts"
        )
    if args.get("seq2seq") or args.get("class_conditional"):
        what = "sources" if args.get("seq2seq") else "classes"
        raise UserError(
            f"--runs {name}={folder} needs {what}, and systems without a condition are compared: leave it out"
        )
    _check_corpus(name, folder, args, corpus)
    load = _load_diffusion if program == DIFFUSION else _load_causal
    facts = {flag: args[flag] for flag in FLAGS_SHOWN if args.get(flag) is not None}
    facts |= {"trained_parameters": args.get("trainable_params"), "run": folder.name, "step": _newest_step(folder)}
    identity = _digest([{k: v for k, v in args.items() if k != "models_relative"}, facts["step"]])
    kind = "causal language model" if program == CAUSAL else f"diffusion, {args.get('latent_space')}"
    return System(name, kind, lambda: load(folder, device), identity, facts)


def baseline_system(name: str, corpus: Corpus, references: str) -> System:
    """The system of a name in BASELINES. references: the split that texts are compared with, which it does not show."""
    split = {NGRAM: "train", TRAINING: "train", HELD_OUT: "valid" if references == "test" else "test"}[name]
    texts = corpus.splits[split].texts
    digest = digest_corpus(corpus)[split].texts
    if name == NGRAM:
        facts = {"order": ORDER, "texts": len(texts)}
        return System(name, "n-gram model", lambda: NgramLM.fit(texts, ORDER).sample, f"{ORDER}-gram {digest}", facts)

    def draw(n: int, seed: int) -> list[str]:
        if len(texts) < n:
            raise UserError(
                f"the {split} split holds {len(texts)} texts, fewer than --num_samples {n}, which the row '{name}' "
                f"needs: lower it, or leave the row out with --baselines"
            )
        return random.Random(f"{seed}, {name}").sample(texts, n)

    return System(name, f"real texts of the {split} split", lambda: draw, f"{split} {digest}", {"texts": len(texts)})


def texts_of(system: System, n: int, seeds: list[int], folder: Path, log: Callable[[str], None]) -> list[list[str]]:
    """n texts for each seed, kept in folder/{name}.json: a system that has not changed is not sampled again."""
    path, record = folder / f"{file_name(system.name)}.json", {"identity": system.identity, "n": n, "seeds": seeds}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and {key: kept.get(key) for key in record} == record:
            log(f"{system.name}: {len(seeds)} x {n} texts are in {path}")
            return kept["texts"]
    except (OSError, ValueError):
        pass
    log(f"{system.name}: sampling {len(seeds)} x {n} texts ({system.kind})")
    sample = system.load()
    texts = [sample(n, seed) for seed in seeds]
    write_json(path, record | {"texts": texts})
    return texts


def file_name(name: str) -> str:
    """The name of a system as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _load_diffusion(folder: Path, device: str) -> Sample:
    from latent_models.generation.decoding import strategies
    from pipelines.components import make_generator
    from pipelines.load_run import load_run
    from utils.distributed import autocast

    run = load_run(folder, device=device)
    config = run.settings.config
    generator = make_generator(
        run.settings, run.components, run.device, autocast(run.device, config.loop.mixed_precision)
    )
    strategy = next(iter(strategies(config.evaluation.decoding)))
    return lambda n, seed: generator.sample(n, seed, (strategy,)).texts[strategy]


def _load_causal(folder: Path, device: str) -> Sample:
    from pipelines.cli.programs import CAUSAL_LM
    from pipelines.data.prompts import Prompts
    from pipelines.sampling.causal import CausalGenerator
    from pipelines.train_causal_lm import load_lm
    from utils.cli.parse import parse
    from utils.distributed import pick_device

    settings = parse(CAUSAL_LM, ["--eval", "--resume_dir", str(folder), "--device", device])
    config, where = settings.config, pick_device(device)
    generator = CausalGenerator(
        load_lm(settings, folder).to(where),
        Prompts(),
        config.sampling,
        max_length=config.model.max_seq_len,
        max_prompt=0,
        batch_size=config.evaluation.eval_batch_size,
        device=where,
    )
    strategy = config.evaluation.decoding.split(",")[0].strip()
    return lambda n, seed: generator.sample(n, seed, (strategy,)).texts[strategy]


def _check_corpus(name: str, folder: Path, args: Mapping[str, Any], corpus: Corpus) -> None:
    """UserError unless a run was trained on these texts: numbers of two corpora do not belong in one table."""
    recorded = args.get("corpus", {})
    splits = recorded.get("splits", {}) if isinstance(recorded, dict) else {}
    for split, digest in digest_corpus(corpus).items():
        if splits.get(split, {}).get("texts") != digest.texts:
            raise UserError(
                f"--runs {name}={folder} was trained on other {split} texts than those of {corpus.name}: name the "
                "corpus of the run, with the same splits, or leave it out"
            )


def _newest_step(folder: Path) -> int:
    from utils import checkpoints

    newest = checkpoints.newest(folder)
    if newest is None:
        raise UserError(f"{folder} holds no checkpoint: train the run first")
    return newest["step"]


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
