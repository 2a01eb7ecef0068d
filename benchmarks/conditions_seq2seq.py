"""Sequence to sequence on the embedded corpus: does a paraphrase keep what its source says?

    python benchmarks/conditions_seq2seq.py --output_dir runs/tales_seq2seq [--diffusion_steps N]

A story of the grammar has 13 content slots (who, where, what, ...), and its paraphrase keeps them all, so "kept" is
exact: the sample parses, and its slots are those of its source. Reported are the share kept by one sample, by the
candidate that agrees best with the others (MBR), by the best of all (oracle) and by chance, with a paired bootstrap of
MBR minus one sample. Trains a language model, an autoencoder and a denoiser whose source is read by the same frozen
language model; run again, it goes on. Writes the runs, and record.json, samples.txt and curves for benchmarks/records/.
The denoiser is stopped early (--diffusion_steps): trained on, it keeps everything, and there is nothing to choose from.
How long: about 9 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the rooms, from any directory

from pipelines.cli.programs import DIFFUSION
from pipelines.quickstart import DENOISER, stages_before_diffusion
from pipelines.stages import StageTimer, Stage, banner, run_program, run_stage
from utils.argparse_utils import OneLineParser
from utils.errors import exit_on_user_error
from utils.run_folder import write_json, write_text

SOURCES, CANDIDATES, STEPS = 200, 5, 25  # of each seed of the evaluation; steps of the sampler
BOTH = "--dataset_name tales+tales-pairs --data_dir {root}/corpus --max_seq_len 32 --log_every 20"
STAGES = (
    *stages_before_diffusion(BOTH),
    Stage(
        "diffusion", DIFFUSION, "the denoiser, told the source", "metrics.json",
        "--dataset_name tales-pairs --data_dir {root}/corpus --max_seq_len 32 --log_every 50"
        " --context_encoder {root}/lm --latent_model_path {root}/autoencoder --num_train_steps 400"
        " --save_and_sample_every 200 --save_every 200 --num_samples 50 --sampling_timesteps 25 --seq2seq_candidates 2"
        + DENOISER,
    ),
)  # fmt: skip
EVALUATION = (
    f"--eval_test --resume_dir {{root}}/diffusion --data_dir {{root}}/corpus --num_samples {SOURCES} "
    f"--seq2seq_candidates {CANDIDATES} --sampling_timesteps {STEPS} --eval_batch_size 500 "
    "--scorer {root}/diffusion/scorer"
)


def run(root: Path, diffusion_steps: int | None) -> int:
    """All stages into root, the evaluation, the record. Returns the exit code of the stage that stopped, or 0."""
    from dataset_utils import synthetic_stories

    root.mkdir(parents=True, exist_ok=True)
    clock = StageTimer(root / "seconds.json")
    if not (root / "corpus" / "pairs_test.jsonl").is_file():
        clock.time("corpus", lambda: int(not synthetic_stories.write(root / "corpus")))
    for stage in STAGES:
        extra = ["--num_train_steps", str(diffusion_steps)] if diffusion_steps and stage.name == "diffusion" else []
        code = clock.time(stage.name, partial(run_stage, stage, root, extra))
        if code:
            return code
    argv = EVALUATION.format(root=root).split()
    banner("evaluation", f"{CANDIDATES} candidates of {SOURCES} test sources, five seeds", DIFFUSION, argv)
    code = clock.time("evaluation", lambda: run_program(DIFFUSION, argv))
    if code:
        return code
    record(root, clock.with_total())
    return 0


def keeps(source: str, text: str) -> bool:
    """Whether a text is of the grammar and says, slot by slot, what its source says."""
    from dataset_utils import synthetic_stories

    story, other = synthetic_stories.parse(source), synthetic_stories.parse(text)
    return story is not None and other is not None and synthetic_stories.slots(story) == synthetic_stories.slots(other)


def judge(records: Sequence[dict[str, Any]]) -> dict[str, list[bool]]:
    """Of each source whether its content was kept: by one sample, the chosen one, any candidate, another's sample."""
    from evaluation import mbr

    chance = mbr.shuffle_predictions([record["sample"] for record in records], 42)
    return {
        "one sample": [keeps(r["source"], r["sample"]) for r in records],
        "MBR": [keeps(r["source"], r["chosen"]) for r in records],
        "oracle": [any(keeps(r["source"], text) for text in r["candidates"]) for r in records],
        "chance": [keeps(r["source"], text) for r, text in zip(records, chance, strict=True)],
        "grammatical": [grammatical(r["sample"]) for r in records],
    }


def grammatical(text: str) -> bool:
    from dataset_utils import synthetic_stories

    return synthetic_stories.parse(text) is not None


def record(root: Path, seconds: dict[str, float]) -> None:
    """The figures of the whole run in one small file, beside samples and curves."""
    from evaluation import bootstrap, plots

    folder = root / "diffusion/evaluation"
    evaluation = json.loads((folder / "eval-test.json").read_text())
    args = json.loads((root / "diffusion/args.json").read_text())
    seeds = range(42, 47)
    runs = [json.loads((folder / f"eval-test-seed{seed}-greedy-pairs.json").read_text()) for seed in seeds]
    judged = [judge(records) for records in runs]
    shares = {kind: [sum(found[kind]) / len(found[kind]) for found in judged] for kind in judged[0]}
    together = {kind: [kept for found in judged for kept in found[kind]] for kind in judged[0]}
    low, high = bootstrap.paired_bootstrap_ci(together["one sample"], together["MBR"])
    metadata = {
        "kept_all_slots": {kind: {"mean": sum(v) / len(v), "by_seed": v} for kind, v in shares.items()},
        "mbr_minus_one_sample": {"mean": shares_mean(together), "interval_95": [low, high],
                                 "resamples": bootstrap.RESAMPLES},
        "metrics": {key: value["mean"] for key, value in evaluation.items()
                    if isinstance(value, dict) and "mean" in value and "reference" not in key},
        "protocol": evaluation["protocol"]["runs"][0],
        "setting": {"sources_per_seed": SOURCES, "seeds": list(seeds), "num_train_steps": args["num_train_steps"],
                    "train_batch_size": args["train_batch_size"], "best": json_best(root)},
        "seconds": seconds,
        "package_versions": args["package_versions"],
        "git_commit": args["git_commit"],
    }  # fmt: skip
    write_json(root / "record.json", metadata)
    lines = [f"{name:<10}{r[name]}\n" for r in runs[0][:20] for name in ("source", "reference", "sample", "chosen")]
    write_text(root / "samples.txt", "".join(lines))
    plots.plot_run(root / "diffusion")
    print(f"\nshare of {SOURCES} x {len(seeds)} test sources whose {CANDIDATES} candidates keep every content slot")
    for kind, values in shares.items():
        print(f"  {kind:<14}{sum(values) / len(values):.4f}   by seed " + ", ".join(f"{v:.3f}" for v in values))
    print(f"  MBR minus one sample {shares_mean(together):+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}]")
    print(f"figures in {root / 'record.json'}")


def shares_mean(together: dict[str, list[bool]]) -> float:
    return (sum(together["MBR"]) - sum(together["one sample"])) / len(together["MBR"])


def json_best(root: Path) -> dict[str, Any]:
    """Which checkpoint was judged."""
    return json.loads((root / "diffusion/best/state.json").read_text())["facts"]["best"]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--diffusion_steps", type=int, default=None, help="training steps of the denoiser")
    args = parser.parse_args(argv)
    return run(args.output_dir, args.diffusion_steps)


if __name__ == "__main__":
    raise SystemExit(main())
