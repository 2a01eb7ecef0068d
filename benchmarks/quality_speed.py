"""Quality of the samples of a run against network calls and seconds, for every sampler and time grid.

    python benchmarks/quality_speed.py runs/quickstart/diffusion --output_dir runs/quality_speed
        [--data_dir runs/quickstart/corpus] [--steps 10,25,50] [--seeds 5] [--num_samples 1000] [--settings ...]
        [--students runs/few ...]

It evaluates every sampler on every grid at every number of steps, and the presets, with the same seeds; the baseline is
DDPM with 250 steps on the uniform grid. Texts are decoded greedily, so that only sampling differs. --settings replaces
the sweep by words such as sampler=dpmpp,time_grid=karras,sampling_timesteps=25. --students adds runs that were
distilled from this one. For embedded stories the metrics of their grammar are included. A setting equals the baseline
if every metric differs by less than the larger of two pooled standard deviations and one point (MAUVE: 0.02). All rows
are printed. A second call continues an interrupted one; rows of other weights, another scorer or another number of
texts stay in rows.jsonl but are not used. Writes rows.jsonl, result.json, table.txt and quality_speed.png. How long:
one row and seed is an evaluation of the run; 1,000 texts of the quickstart's size take about a minute at 50 steps on 2
CPU cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from evaluation.report import nan_to_none
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.progress import ProgressBar
from utils.run_folder import write_json, write_text

if TYPE_CHECKING:
    from pipelines.sampling.generator import TextGenerator

BASELINE = {"sampler": "ddpm", "time_grid": "uniform", "sampling_timesteps": 250}
SAMPLING = ("sampler", "time_grid", "sampling_timesteps", "grid_shift", "ddim_sampling_eta", "posterior_variance")
# metric -> largest difference that counts as equal
METRICS = {"mauve": 0.02, "diversity": 0.01, "grammatical": 0.01, "agreement": 0.01, "novel": 0.01}
SHOWN = (*METRICS, "perplexity", "memorization")


def sweep(steps: Sequence[int]) -> list[dict[str, Any]]:
    """Settings of the sweep: the baseline, the presets, then every sampler on every grid."""
    from diffusion.options import SAMPLERS, TIMESTEP_GRIDS
    from pipelines.cli.presets import PRESETS

    presets = [{name: row[name] for name in SAMPLING if row.get(name) is not None} for row in PRESETS.values()]
    combinations = [
        {"sampler": sampler, "time_grid": grid, "sampling_timesteps": n}
        for n in steps
        for sampler in SAMPLERS
        for grid in TIMESTEP_GRIDS
    ]
    return unique_settings([BASELINE, *presets, *combinations])


def read_settings(words: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for word in words:
        setting: dict[str, Any] = {}
        for part in word.split(","):
            name, equals, value = part.partition("=")
            if not equals or name not in SAMPLING:
                raise UserError(f"{part!r} is not a setting of a sampler: write flag=value with {', '.join(SAMPLING)}")
            if name == "sampling_timesteps" and not value.isdecimal():
                raise UserError(f"{part!r}: sampling_timesteps is a number of steps")
            setting[name] = int(value) if name == "sampling_timesteps" else value
        found.append(BASELINE | setting)
    return [BASELINE, *found]


def read_students(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """A setting for each distilled run, with the number of steps that it was trained for."""
    from utils.cli.args_io import read_args

    found = []
    for run in runs:
        saved = read_args(run)
        if saved.get("distill_run") is None:
            raise UserError(f"--students {run} was not trained with --distill_run: evaluate such a run by itself")
        found.append({**{name: saved[name] for name in BASELINE}, "student": str(run)})
    return found


def unique_settings(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings without duplicates. UserError if two students have the same name."""
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        same = found.setdefault(title(setting), setting)
        if same.get("student") != setting.get("student"):
            raise UserError(
                f"--students {same['student']} and {setting['student']} have the same name: rename a folder"
            )
    return list(found.values())


def title(setting: dict[str, Any]) -> str:
    if "student" in setting:
        return f"student {Path(setting['student']).name} {setting['sampling_timesteps']}"
    rest = "".join(f" {name}={value}" for name, value in sorted(setting.items()) if name not in BASELINE)
    return f"{setting['sampler']} {setting['time_grid']} {setting['sampling_timesteps']}{rest}"


class RunEvaluator:
    """Samples a run with any sampler setting, and evaluates the texts against its corpus."""

    def __init__(self, run: Path, data: list[str], samples: int, scorer: str | None, device: str) -> None:
        import torch

        from dataset_utils import registry, synthetic_stories
        from evaluation import scorers
        from evaluation.memorization import NgramIndex
        from pipelines.cli.programs import DIFFUSION
        from pipelines.sampling.classes import TrainingClassPrior
        from pipelines.text_diffusion import TextDiffusionPipeline
        from utils.cli.parse import parse

        self.argv = ["--eval", "--resume_dir", str(run), "--device", device, *data]
        settings = parse(DIFFUSION, self.argv)
        corpus = registry.load(settings.config.data)
        if settings.checkpoint_args.get("seq2seq"):
            raise UserError(
                f"{run} samples from source texts: use --eval, which scores its candidates against references"
            )
        self.training, held_out = corpus.train.texts, corpus.valid.texts
        # class labels are sampled with their frequency in training, as in an evaluation
        self.class_prior = (
            TrainingClassPrior(torch.tensor(corpus.train.labels))
            if settings.config.denoiser.class_conditional
            else None
        )
        self.n = min(samples, len(held_out))
        self.references = held_out[: self.n]
        folder = run / "scorer"
        self.scorer = scorers.load(scorer, texts=self.training, folder=folder, device=device)
        self.scorer.cache_dir = run / "evaluation" / "references"
        self.memory = NgramIndex(self.training, self.scorer.cache_dir)
        self.training_texts = set(self.training)
        self.is_embedded_corpus = all(synthetic_stories.parse(text) is not None for text in self.training[:50])
        self.generator = TextDiffusionPipeline.from_pretrained(run, device=device, eval_batch_size=250).generator
        self.students: dict[str, TextGenerator] = {}
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        """Hash of the inputs that all rows share: weights of the run, reference texts, scorer, number of texts."""
        from utils.checkpoints import fingerprint

        weights = fingerprint(self.generator.denoiser)
        parts = [weights, self.scorer.fingerprint, str(self.n), *self.training, *self.references]
        return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def key(self, setting: dict[str, Any]) -> str:
        """The fingerprint of the rows of a setting, which includes the weights of a student."""
        from utils.checkpoints import fingerprint

        own = fingerprint(self._generator(setting).denoiser)[:16] if "student" in setting else ""
        return self.fingerprint + own

    def evaluate(self, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        """One row: metrics, network calls and seconds of n texts of a seed."""
        from dataset_utils import synthetic_stories
        from diffusion.samplers import nfe
        from evaluation.protocols import evaluate_texts

        generator = self._generator(setting)
        began = time.monotonic()
        sampled = generator.sample(self.n, seed, ["greedy"], self.class_prior, quiet=True)
        seconds, texts = time.monotonic() - began, sampled.texts["greedy"]
        found = evaluate_texts(texts, {"val": self.references}, self.memory, self.scorer)
        guided = 2 if self.class_prior is not None and generator.guidance != 1 else 1
        row = {
            "setting": title(setting),
            "seed": seed,
            "texts": self.n,
            "of": self.key(setting),
            "calls": guided * nfe(setting["sampler"], generator.steps),
            "seconds": seconds,
            "denoise_seconds": sampled.speed.seconds["denoise"],
            "decode_seconds": sampled.speed.seconds["decode"],
            "mauve": found[f"{self.scorer.name}_val_mauve"],
            **{name: found[name] for name in ("perplexity", "diversity", "memorization")},
        }
        if self.is_embedded_corpus:
            grammar = synthetic_stories.grammar_metrics(texts, self.training_texts)
            row |= {name: grammar[name] for name in ("grammatical", "agreement", "novel")}
        return row

    def _generator(self, setting: dict[str, Any]) -> TextGenerator:
        """The generator of a setting: that of a student, or that of the run with this sampler."""
        from pipelines.builders.diffusion_process import make_process
        from pipelines.cli.programs import DIFFUSION
        from pipelines.text_diffusion import TextDiffusionPipeline
        from utils.cli.parse import parse

        if "student" in setting:
            run = setting["student"]
            if run not in self.students:
                device = self.generator.device.type
                self.students[run] = TextDiffusionPipeline.from_pretrained(
                    run, device=device, eval_batch_size=250
                ).generator
            return self.students[run]
        typed = [word for name, value in setting.items() for word in (f"--{name}", str(value))]
        settings = parse(DIFFUSION, [*self.argv, *typed])
        self.generator.process = make_process(
            settings.config.process,
            settings.config.sampling,
            settings.config.denoiser.denoiser_variant,
            settings.checkpoint_args.get("scale"),
        )
        self.generator.steps = settings.config.sampling.sampling_timesteps
        return self.generator


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every setting mean and deviation over seeds, network calls, and the metrics that differ from the baseline."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_setting.setdefault(row["setting"], []).append(row)
    base = by_setting.get(title(BASELINE), [])
    found = []
    for name, own in by_setting.items():
        entry: dict[str, Any] = {"setting": name, "seeds": len(own), "calls": own[0]["calls"]}
        for key in (*SHOWN, "seconds", "denoise_seconds", "decode_seconds"):
            values = [row[key] for row in own if key in row and row[key] is not None]
            if values:
                entry[key] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if values[1:] else 0.0}
        entry["misses"] = [key for key, point in METRICS.items() if differs(own, base, key, point)] if base else None
        found.append(entry)
    return found


def differs(own: list[dict[str, Any]], base: list[dict[str, Any]], key: str, point: float) -> bool:
    """Whether the means differ by at least the larger of two pooled standard deviations and `point`."""
    a, b = ([row[key] for row in rows if row.get(key) is not None] for rows in (own, base))
    if not a or not b:
        return bool(b)  # only the baseline has the metric: counted as a difference
    spread = [statistics.variance(values) if values[1:] else 0.0 for values in (a, b)]
    return abs(statistics.fmean(a) - statistics.fmean(b)) >= max(2 * math.sqrt(sum(spread) / 2), point)


def table(summary: list[dict[str, Any]]) -> str:
    keys = [key for key in SHOWN if any(key in entry for entry in summary)]
    lines = [
        f"{'setting':<34}{'calls':>6}{'seconds':>9}" + "".join(f"{key:>20}" for key in keys) + "   equals baseline"
    ]
    for entry in sorted(summary, key=lambda entry: entry["calls"]):
        means = [f"{entry[key]['mean']:.4f} +- {entry[key]['std']:.4f}" if key in entry else "" for key in keys]
        cells = [cell.rjust(20) for cell in means]
        misses = entry["misses"]
        equal = "" if misses is None else "yes" if not misses else "no: " + ", ".join(misses)
        seconds = f"{entry['seconds']['mean']:>9.1f}"
        lines.append(f"{entry['setting']:<34}{entry['calls']:>6}{seconds}{''.join(cells)}   {equal}")
    return "\n".join(lines) + "\n"


def count_network_calls(settings: Sequence[dict[str, Any]]) -> int:
    """Network calls for one text in each of the settings."""
    from diffusion.samplers import nfe

    return sum(nfe(setting["sampler"], setting["sampling_timesteps"]) for setting in settings)


SECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # ticks of the axis
MARKERS = "osv^DP*X"  # markers of grids, in order; colors are of samplers


def plot(summary: list[dict[str, Any]], path: Path) -> None:
    """Each metric against network calls and against seconds: mean and deviation over seeds of every sampler (color)
    and grid (marker), with a band around the baseline in which differences do not count."""
    from evaluation.optional import optional_import

    optional_import("matplotlib", "matplotlib", "the plot").use("Agg")
    from matplotlib import pyplot

    keys = [key for key in ("mauve", "grammatical", "agreement", "perplexity", "diversity") if key in summary[0]]
    figure, axes = pyplot.subplots(2, len(keys), figsize=(3.6 * len(keys), 7), squeeze=False, layout="constrained")
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in summary:
        sampler, grid, *_ = entry["setting"].split()
        lines.setdefault((sampler, grid), []).append(entry)
    styles = _styles(list(lines))
    base = next((entry for entry in summary if entry["setting"] == title(BASELINE)), None)
    for row, unit in enumerate(("network calls", "seconds")):
        for column, key in enumerate(keys):
            axis = axes[row][column]
            for i, (line, own) in enumerate(lines.items()):
                own = sorted(own, key=lambda e: e["calls"])
                # shifted a little, so that points of equal calls do not overlap
                across = [e["seconds"]["mean"] if row else e["calls"] * 1.01 ** (i - len(lines) / 2) for e in own]
                means, spreads = [e[key]["mean"] for e in own], [e[key]["std"] for e in own]
                axis.errorbar(
                    across, means, spreads, markersize=4, linewidth=0.8, capsize=2, label=" ".join(line), **styles[line]
                )
            if base and key in METRICS:  # clipped to the range of the points
                low, high = axis.get_ylim()
                middle, point = base[key]["mean"], METRICS[key]
                axis.axhspan(max(middle - point, low), min(middle + point, high), color="0.9", zorder=0)
                axis.set_ylim(low, high)
            _set_ticks(
                axis, sorted({e["calls"] for e in summary}) if row == 0 else [5, 10, 20, 50, 100, 200, 500, 1000, 2000]
            )
            axis.set_xlabel(unit)
            axis.set_title(key, fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=min(7, len(lines)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _styles(lines: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, str]]:
    """A color for each sampler and a marker for each grid; students are black."""
    samplers = [name for name in dict.fromkeys(sampler for sampler, _ in lines) if name != "student"]
    grids = list(dict.fromkeys(grid for _, grid in lines))
    return {
        (sampler, grid): {
            "color": "black" if sampler == "student" else f"C{samplers.index(sampler)}",
            "marker": MARKERS[grids.index(grid) % len(MARKERS)],
        }
        for sampler, grid in lines
    }


def _set_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Make the axis logarithmic, with the ticks that are in its range and do not overlap."""
    from matplotlib import ticker

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    shown: list[float] = []
    for tick in ticks:
        if low <= tick <= high and (not shown or math.log(tick / shown[-1]) > 0.08 * math.log(high / low)):
            shown.append(tick)
    axis.xaxis.set_major_locator(ticker.FixedLocator(shown))
    axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data_dir", default=None, help="default: that of the run")
    parser.add_argument("--steps", default="10,25,50")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--scorer", default=None, help="default: that of the run")
    parser.add_argument("--settings", nargs="+", default=None)
    parser.add_argument("--students", nargs="+", type=Path, default=[], help="runs that were distilled from it")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    settings = read_settings(args.settings) if args.settings else sweep([int(n) for n in args.steps.split(",")])
    settings = unique_settings([*settings, *read_students(args.students)])
    data = ["--data_dir", args.data_dir] if args.data_dir else []
    evaluator = RunEvaluator(args.run, data, args.num_samples, args.scorer, _device(args.device))
    path = args.output_dir / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    keys = {title(setting): evaluator.key(setting) for setting in settings}
    rows = [row for row in rows if row.get("of", "").startswith(keys.get(row["setting"], evaluator.fingerprint))]
    done = {(row["setting"], row["seed"]) for row in rows}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    # seed by seed, so that every setting has a first result early
    todo = [(seed, setting) for seed in range(42, 42 + args.seeds) for setting in settings]
    todo = [(seed, setting) for seed, setting in todo if (title(setting), seed) not in done]
    texts = evaluator.n * count_network_calls([setting for _, setting in todo])
    with ProgressBar("quality against speed", texts, unit="call of a text") as bar:
        for seed, setting in todo:
            row = nan_to_none(evaluator.evaluate(setting, seed))
            rows.append(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            bar.log(f"{row['setting']}, seed {seed}: MAUVE {row['mauve']:.4f}, {row['seconds']:.1f} s")
            bar.advance(evaluator.n * row["calls"])
    summary = summarize(rows)
    write_json(args.output_dir / "result.json", {"run": str(args.run), "texts": evaluator.n, "settings": summary})
    text = table(summary)
    write_text(args.output_dir / "table.txt", text)
    plot(summary, args.output_dir / "quality_speed.png")
    print(text)
    return 0


def _device(flag: str) -> str:
    from utils.distributed import pick_device

    return pick_device(flag).type


if __name__ == "__main__":
    raise SystemExit(main())
