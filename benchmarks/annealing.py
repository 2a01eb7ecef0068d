"""Compare schedules of the range of noise levels (--T_schedule): steps and seconds to the same loss and quality.

    python benchmarks/annealing.py --output_dir runs/annealing [--schedules normal,linear,...] [--seeds 1]
        -- FLAGS of train_text_diffusion.py that name corpus, latents, network and length of training

It trains one run for each schedule and seed. All other flags are equal, and so are data, noise and initial weights. The
validation loss and the samples always use the whole range of noise levels, so they compare. The range that training
uses at a step is logged as T. Seconds are of the whole run with validation and sampling, which cost the same for every
schedule. A schedule has reached the loss or the MAUVE of the normal run at its first evaluation that is as good as the
last one of the normal run. A second call continues an interrupted one. Writes result.json, table.txt and annealing.png.
How long: as many trainings as schedules times seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text

SCHEDULES = ("normal", "linear", "polynomial", "cosine", "unsmooth")
LOSS = "val_ema_loss"


def train_scorer(root: Path, flags: list[str]) -> Path | None:
    """Train a small scorer before any run is timed. Returns its folder; None if the flags name a scorer."""
    from dataset_utils import registry
    from evaluation import scorers
    from pipelines.cli.programs import DIFFUSION
    from utils.cli.parse import parse
    from utils.distributed import pick_device

    settings = parse(DIFFUSION, flags)
    if settings.config.evaluation.scorer is not None:
        return None
    texts = registry.load(settings.config.data).train.texts
    scorers.load(None, texts=texts, folder=root / "scorer", device=pick_device(settings.config.loop.device))
    return root / "scorer"


def train(root: Path, schedule: str, seed: int, flags: list[str], scorer: Path | None) -> Path:
    """Train a run, or the rest of it; return its folder. scorer: result of train_scorer."""
    from pipelines.cli.programs import DIFFUSION
    from pipelines.stages import run_program
    from utils import checkpoints

    folder = root / f"{schedule}-{seed}"
    if checkpoints.has_checkpoint(folder):
        argv = ["--resume_training", "--resume_dir", str(folder)]
    else:
        own = ["--T_schedule", schedule, "--random_seed", str(seed), "--latent_cache_dir", str(root / "latent_cache")]
        if scorer is not None:
            own += ["--scorer", str(scorer)]
        argv = [*flags, *own, "--output_dir", str(folder)]
    print(f"== {schedule}, seed {seed}: train_text_diffusion.py {' '.join(argv)}", flush=True)
    code = run_program(DIFFUSION, argv)
    if code:
        raise UserError(f"{folder}: training ended with exit code {code}")
    return folder


def curve(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Validation loss and MAUVE as (step, seconds of training, value)."""
    from utils.trackers import read_metrics

    seconds: dict[int, float] = {}
    found: dict[str, list[tuple[int, float, float]]] = {"loss": [], "mauve": []}
    clock, before = 0.0, 0.0
    for line in read_metrics(folder):
        if "seconds" in line:  # of one call: a resumed run starts again at 0
            clock += line["seconds"] - (before if line["seconds"] >= before else 0.0)
            before = line["seconds"]
            seconds[line["step"]] = clock
        time = seconds.get(line["step"], clock)
        if LOSS in line:
            found["loss"].append((line["step"], time, line[LOSS]))
        mauve = next((value for key, value in line.items() if key.endswith("val_mauve") and "cond" not in key), None)
        if mauve is not None:
            found["mauve"].append((line["step"], time, mauve))
    for points in found.values():
        points.sort()
    return found


def smooth(points: list[tuple[int, float, float]], width: int = 5) -> list[tuple[int, float, float]]:
    """Running means over `width` evaluations, since a single validation batch is noisy."""
    return [
        (step, seconds, statistics.fmean(value for _, _, value in points[max(0, i - width + 1) : i + 1]))
        for i, (step, seconds, _) in enumerate(points)
    ]


def reached(points: list[tuple[int, float, float]], target: float, *, falls: bool) -> tuple[int, float] | None:
    """Step and seconds of the first point as good as the target."""
    good = ((step, seconds) for step, seconds, value in points if (value <= target if falls else value >= target))
    return next(good, None)


def compare(curves: dict[str, list[dict[str, list[tuple[int, float, float]]]]]) -> list[dict[str, Any]]:
    """For each schedule the last values, and the step and seconds at which it reaches the last value of the normal run;
    means over seeds."""
    found = []
    for schedule, runs in curves.items():
        row: dict[str, Any] = {"schedule": schedule, "seeds": len(runs)}
        for key, falls in (("loss", True), ("mauve", False)):
            ends, steps, seconds = [], [], []
            for run, normal in zip(runs, curves["normal"], strict=True):
                if not run[key] or not normal[key]:
                    continue
                own, base = (smooth(points) if falls else points for points in (run[key], normal[key]))
                ends.append(own[-1][2])
                first = reached(own, base[-1][2], falls=falls)
                if first is not None:
                    steps.append(first[0])
                    seconds.append(first[1])
            row[f"last_{key}"] = statistics.fmean(ends) if ends else None
            row[f"reached_{key}"] = f"{len(steps)} of {len(runs)}"
            row[f"steps_to_{key}"] = statistics.fmean(steps) if steps else None
            row[f"seconds_to_{key}"] = statistics.fmean(seconds) if seconds else None
        found.append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    keys = [key for key in rows[0] if key != "schedule"]
    lines = [f"{'schedule':<12}" + "".join(f"{key:>18}" for key in keys)]
    for row in rows:
        cells = ("never" if row[k] is None else f"{row[k]:.5g}" if isinstance(row[k], float) else row[k] for k in keys)
        lines.append(f"{row['schedule']:<12}" + "".join(f"{cell:>18}" for cell in cells))
    note = "Validation loss (averaged weights) and samples use the whole range of noise levels, whatever T is."
    return "\n".join([*lines, "", note]) + "\n"


def plot(curves: dict[str, list[dict[str, list[tuple[int, float, float]]]]], path: Path) -> None:
    from evaluation.optional import optional_import

    optional_import("matplotlib", "matplotlib", "the plot").use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for row, key in enumerate(("loss", "mauve")):
        for column, unit in enumerate(("steps", "seconds")):
            axis = axes[row][column]
            for schedule, runs in curves.items():
                for number, run in enumerate(runs):
                    points = smooth(run[key]) if key == "loss" else run[key]
                    color = f"C{list(curves).index(schedule)}"
                    label = schedule if not number else None
                    xs, values = [p[column] for p in points], [p[2] for p in points]
                    axis.plot(xs, values, ".-", color=color, label=label, linewidth=1, markersize=4)
            axis.set_xlabel(unit)
            axis.set_ylabel("validation loss, whole range" if key == "loss" else "MAUVE")
            if key == "loss":
                axis.set_yscale("log")
                axis.yaxis.set_minor_formatter(ScalarFormatter())
    axes[0][0].legend()
    figure.savefig(path, dpi=150)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(argv[:cut])
    schedules = ["normal", *(name for name in args.schedules.split(",") if name != "normal")]
    unknown = next((name for name in schedules if name not in SCHEDULES), None)
    if unknown is not None:
        raise UserError(f"--schedules {unknown!r} is unknown: use some of {', '.join(SCHEDULES)}")
    flags = argv[cut + 1 :]
    if not flags:
        raise UserError("name the corpus, the latents and the training flags after --, as for train_text_diffusion.py")
    curves: dict[str, list[dict[str, list[tuple[int, float, float]]]]] = {name: [] for name in schedules}
    scorer = train_scorer(args.output_dir, flags)
    for seed in range(41, 41 + args.seeds):
        for schedule in schedules:
            curves[schedule].append(curve(train(args.output_dir, schedule, seed, flags, scorer)))
    rows = compare(curves)
    write_json(
        args.output_dir / "result.json", {"flags": flags, "evaluated_range": "whole", "rows": rows, "curves": curves}
    )
    write_text(args.output_dir / "table.txt", table(rows))
    plot(curves, args.output_dir / "annealing.png")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
