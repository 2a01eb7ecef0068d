"""The texts of a row of benchmarks/real_text.py: n for each seed, kept in its folder.

Runs of a corpus with classes are asked for classes as often as the references have them, those of pairs for the
references' sources. Human texts are a row, too.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.real_text_corpus import CLASS, SOURCE, Parts
from benchmarks.real_text_judges import SPLIT, examples_of
from benchmarks.real_text_rows import BASELINES
from dataset_utils.splits import Examples
from utils.cli.args_io import read_args
from utils.cli.settings import Program
from utils.errors import UserError
from utils.run_folder import write_json, write_text

Draw = Callable[[int], list[str]]  # seed -> texts
HUMAN = "human"


@dataclass(frozen=True)
class Asked:
    """What every system is asked for: n texts, with these classes or for these sources."""

    n: int
    labels: list[int] | None = None  # indices into class_names
    examples: Examples | None = None
    class_names: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str] | None:
        """The name of each class that is asked for: a run may number its classes in another order."""
        return None if self.labels is None else [self.class_names[label] for label in self.labels]

    def write(self, path: Path) -> None:
        """Write one line for each text, with the class or the source that it is asked for; nothing without either."""
        for key, values in (("class", self.classes), ("source", self.sources)):
            if values is not None:
                write_text(path, "".join(json.dumps({key: one}, ensure_ascii=False) + "\n" for one in values))

    @property
    def sources(self) -> list[str] | None:
        return None if self.examples is None else self.examples.sources


def what_is_asked(parts: Parts, n: int) -> Asked:
    """The classes of n references drawn at random, or the first n sources; the same for all systems and seeds."""
    if parts.condition == CLASS:
        labels = parts[SPLIT].labels or []
        return Asked(n, random.Random("classes").sample(labels, n), class_names=parts.class_names)
    return Asked(n, examples=examples_of(parts, n))


def human_texts(parts: Parts, asked: Asked, seeds: int) -> tuple[list[list[str]], Asked]:
    """Other human texts as a row: of sources, a reference each, drawn at random, which is compared with the others."""
    human = parts["human"]
    if parts.condition == SOURCE:
        assert asked.examples is not None
        several = [i for i, texts in enumerate(asked.examples.references) if len(texts) > 1]
        if len(several) < 2:
            raise UserError("no source has two references, so there is no row of human texts: leave it out")
        found = [asked.examples.references[i] for i in several]
        drawn = [random.Random(f"{i}, human").randrange(len(texts)) for i, texts in zip(several, found, strict=True)]
        others = [texts[:j] + texts[j + 1 :] for j, texts in zip(drawn, found, strict=True)]
        rest = Examples([asked.examples.sources[i] for i in several], others)
        return [[texts[j] for j, texts in zip(drawn, found, strict=True)]], Asked(len(several), examples=rest)
    if parts.condition == CLASS:
        assert asked.labels is not None
        return [_with_labels(human.texts, human.labels or [], asked.labels, seed) for seed in range(seeds)], asked
    if len(human) < asked.n:
        raise UserError(f"{len(human)} human texts are fewer than --num_samples {asked.n}: lower it")
    return [random.Random(f"{seed}, human").sample(human.texts, asked.n) for seed in range(seeds)], asked


def _with_labels(texts: Sequence[str], labels: Sequence[int], wanted: Sequence[int], seed: int) -> list[str]:
    """For each wanted label another text that has it; the texts of a label begin again when they are used up."""
    pools: dict[int, list[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        pools.setdefault(label, []).append(text)
    for label, pool in sorted(pools.items()):
        random.Random(f"{seed}, {label}").shuffle(pool)
    used = dict.fromkeys(pools, 0)
    found = []
    for label in wanted:
        if label not in pools:
            raise UserError("the human texts lack a class of the references: give a larger corpus")
        found.append(pools[label][used[label] % len(pools[label])])
        used[label] += 1
    return found


def texts_of_run(
    folder: Path, asked: Asked, seeds: Sequence[int], keep: Path, log: Callable[[str], None], flags: Sequence[str] = ()
) -> list[list[str]]:
    """The texts of a run for each seed; those of the same run that are in the file `keep` are not sampled again.

    flags: of the sampling, such as --decoder_candidates 4.
    """
    # relative: a study that is moved keeps its texts
    run = Path(os.path.relpath(folder.resolve(), keep.parent.resolve())).as_posix()
    what = {"run": run, "checkpoint": newest_checkpoint(folder), "n": asked.n, "flags": list(flags)}
    kept: dict[str, Any] = {}
    if keep.is_file():
        kept = json.loads(keep.read_text(encoding="utf-8"))
        if kept | what != kept:
            kept = {}
    found: dict[str, list[str]] = kept.get("texts", {})
    missing = [seed for seed in seeds if str(seed) not in found]
    draw = load_run(folder, asked, flags) if missing else None
    for seed in missing:
        assert draw is not None
        log(f"  seed {seed}: {asked.n} texts")
        found[str(seed)] = draw(seed)
        write_json(keep, {**what, "texts": found})
    return [found[str(seed)] for seed in seeds]


def newest_checkpoint(folder: Path) -> str:
    """Step and hash of the newest checkpoint: a run that was trained anew has others, even of the same step."""
    from utils import checkpoints

    newest = checkpoints.newest(folder)
    if newest is None:
        raise UserError(f"{folder} holds no checkpoint: train it first")
    state = folder / "checkpoints" / f"step_{newest['step']:08d}" / "state.json"  # with the checksums of the tensors
    return f"{newest['step']} {sha256(state.read_bytes()).hexdigest()[:12]}"


def load_run(folder: Path, asked: Asked, flags: Sequence[str] = ()) -> Draw:
    """The sampler of a run folder, of a denoiser or of a language model without latents. flags: of the sampling."""
    trained_by = str(read_args(folder).get("program"))
    program = next((program for program in BASELINES.values() if program.name == trained_by), None)
    return _diffusion(folder, asked, flags) if program is None else _baseline(program, folder, asked, flags)


def _diffusion(folder: Path, asked: Asked, flags: Sequence[str]) -> Draw:
    from pipelines.text_diffusion import TextDiffusionPipeline

    words, adapted = ["--eval_batch_size", "250"], folder.parent / "adapted"
    if (folder.parent / "recipe.json").is_file() and adapted.is_dir():
        words += ["--latent_model_path", str(adapted)]
    pipe = TextDiffusionPipeline.from_pretrained(folder, argv=[*words, *flags])
    decoding = pipe.decoding or str(read_args(folder).get("decoding", "greedy")).split(",")[0]

    def draw(seed: int) -> list[str]:
        if asked.sources is not None:
            return list(pipe(source=asked.sources, generator=seed, decoding=decoding).texts)
        return list(pipe(asked.n, generator=seed, decoding=decoding, class_id=asked.classes).texts)

    return draw


def _baseline(program: Program, folder: Path, asked: Asked, flags: Sequence[str]) -> Draw:
    from pipelines.baselines import prompts_of_run
    from pipelines.stages import MODULES
    from utils.cli.parse import parse
    from utils.distributed import DistContext, pick_device

    settings = parse(program, ["--eval", "--resume_dir", str(folder), *flags])
    module, dist = import_module(MODULES[program.name]), DistContext(device=pick_device("auto"))
    prompts, max_prompt = prompts_of_run(settings.checkpoint_args)
    lm = module.load_lm(settings, folder).to(dist.device)
    generator = module.make_generator(settings, lm, prompts, max_prompt, dist)
    strategy = str(settings.get("decoding")).split(",")[0].strip()

    def draw(seed: int) -> list[str]:
        if asked.sources is None and asked.labels is None:
            return list(generator.sample(asked.n, seed, (strategy,), quiet=True).texts[strategy])
        wanted = asked.classes
        numbers = None if wanted is None else [prompts.class_names.index(name) for name in wanted]
        rows = prompts.texts(asked.sources, numbers) or []
        found = generator.candidates(len(rows), 1, seed, (strategy,), lambda a, b: rows[a:b], quiet=True)
        return [texts[0] for texts in found[strategy]]

    return draw
