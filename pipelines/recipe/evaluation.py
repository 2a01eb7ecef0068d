"""The evaluation that ends a recipe: how many texts, by which judges, and the page that shows them."""

from __future__ import annotations

import shlex
from functools import partial

from pipelines.cli.class_rules import why_not_each_class
from pipelines.cli.programs import DIFFUSION
from pipelines.recipe import plan
from pipelines.recipe.first_choices import load_corpus
from pipelines.recipe.folder import RECORD, RecipeFolder, log
from pipelines.recipe.models import find_judges, parts_that_judge
from pipelines.recipe.sample_count import WANTED, affordable, seconds_of_a_text, texts_of_a_class
from pipelines.recipe.stages import STAGE_ROWS, evaluation_flags
from pipelines.stages import banner, fill, run_program, show_page


def evaluate(folder: RecipeFolder) -> int:
    """Sample and judge texts of the denoiser, unless that is done, and write report.html. Returns the exit code."""
    setting, state, root = folder.setting, folder.state, folder.root
    sampled = root / setting.denoiser
    result = sampled / "evaluation" / "eval-valid.json"
    judges = find_judges(vars(folder.args), state["models"])
    number = _num_samples(folder, judges["scorer"])
    flags = evaluation_flags(setting, number, judges)
    parts = parts_that_judge(judges, setting.parts)
    if result.is_file() and state.get("evaluation", {}).get("flags") == flags:
        log("evaluation: already done")
    else:
        (root / "report.html").unlink(missing_ok=True)
        argv = fill(flags, root=root)
        banner("evaluation", f"{number} samples against held-out texts", DIFFUSION, argv)
        for line in parts:
            log(f"note: {line}")
        code = folder.clock.time("evaluation", partial(run_program, DIFFUSION, argv))
        if code:
            return code
        state["evaluation"] = {
            "flags": flags,
            "judges": judges,
            "notes": parts,
            "file": str(result.relative_to(root)),
        }
    state["seconds"] = folder.clock.with_total()
    folder.write()
    show_page(root, [root / name for name in reversed(folder.stages) if STAGE_ROWS[name].program is DIFFUSION])
    seconds = state["seconds"]
    took = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if name != "total")
    log(f"{seconds['total']:.0f} seconds in all: {took}")
    words = ["python", "-m", "pipelines.sample", str(sampled), "-n", "10"]
    words += ["--source", "TEXT"] if setting.value("condition") == "source" else []
    words += ["--decoding", setting.decoding] if setting.autoencoder_decodes else []  # its default is greedy
    log(f"more texts: {shlex.join(words)}\nthe choices: {root / RECORD}")
    return 0


def _num_samples(folder: RecipeFolder, scorer: str | None) -> int:
    """The texts to sample: the number that was typed, else as many as take their part of the time."""
    if folder.args.num_samples is not None:
        return int(folder.args.num_samples)
    if "num_samples" not in folder.state:
        folder.state["num_samples"] = folder.clock.time("evaluation", partial(_affordable_samples, folder, scorer))
        folder.write()
    return int(folder.state["num_samples"])


def _affordable_samples(folder: RecipeFolder, scorer: str | None) -> int:
    if "evaluation" in folder.state:  # of an earlier release
        return WANTED
    setting, args = folder.setting, folder.args
    condition, classes = setting.value("condition"), (0, 0)
    sources = None
    if condition == "source":
        sources = load_corpus(args).valid.sources
    elif condition == "class":
        corpus = load_corpus(args, max_train_texts=setting.value("max_train_texts"))
        if why_not_each_class(corpus, ("valid", "train")) is None:
            classes = (corpus.num_classes, texts_of_a_class(corpus))
    seconds = seconds_of_a_text(folder.root / setting.denoiser, setting.decoding, sources, scorer)
    share = plan.EVALUATION_SHARE if args.count_evaluation else plan.MOST_EVALUATION
    number = affordable(seconds, 60 * args.minutes * share, *classes)
    if number < WANTED:
        what, more = "a text", f"; MAUVE needs {WANTED:,}"
        if sources is not None:
            what, more = "a source, with all its texts,", ""
        log(
            f"note: {what} takes {seconds:.2g} s to sample and judge, so that {number} are sampled{more}: give "
            f"--num_samples {WANTED}, or more --minutes"
        )
    return number
