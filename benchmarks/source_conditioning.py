"""Sequence to sequence on the embedded stories: how many paraphrases keep the content of their source.

    python benchmarks/source_conditioning.py --output_dir runs/tales_seq2seq [--diffusion_steps N]

A story of the grammar has 13 content slots (who, where, what, ...), and its paraphrase has the same slots, so the share
of samples that keep all slots is exact: the sample parses, and its slots equal those of the source. It reports this
share for one sample, for the candidate that agrees best with the others (MBR), for the best of all (oracle) and by
chance, with a paired bootstrap of MBR minus one sample. It trains a language model, an autoencoder and a denoiser; the
same frozen language model encodes the sources. A second call continues an interrupted one. Writes the runs, and
record.json, samples.txt and curves for benchmarks/records/. The denoiser trains for few steps (--diffusion_steps):
after a longer training it keeps all slots, and MBR has no effect. How long: about 9 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from pipelines.cli.programs import DIFFUSION
from pipelines.quickstart import DENOISER, stages_before_diffusion
from pipelines.stages import Stage, StageTimer, banner, fill, run_program, run_stage
from utils.argparse_utils import OneLineParser
from utils.errors import exit_on_user_error
from utils.run_folder import write_json, write_text

NUM_SOURCES, CANDIDATES, STEPS = 200, 5, 25  # of each seed of the evaluation; steps of the sampler
STORIES_AND_PAIRS = "--dataset_name tales+tales-pairs --data_dir {root}/corpus --max_seq_len 32 --log_every 20"
STAGES = (
    *stages_before_diffusion(STORIES_AND_PAIRS),
    Stage(
        "diffusion", DIFFUSION, "the denoiser with source texts", "metrics.json",
        "--dataset_name tales-pairs --data_dir {root}/corpus --max_seq_len 32 --log_every 50"
        " --context_encoder {root}/lm --latent_model_path {root}/autoencoder --num_train_steps 400"
        " --save_and_sample_every 200 --save_every 200 --num_samples 50 --sampling_timesteps 25 --seq2seq_candidates 2"
        + DENOISER,
    ),
)  # fmt: skip
EVALUATION = (
    f"--eval_test --resume_dir {{root}}/diffusion --data_dir {{root}}/corpus --num_samples {NUM_SOURCES} "
    f"--seq2seq_candidates {CANDIDATES} --sampling_timesteps {STEPS} --eval_batch_size 500 "
    "--scorer {root}/diffusion/scorer"
)


def run(root: Path, diffusion_steps: int | None) -> int:
    """Run all stages and the evaluation, write the record. Returns the exit code of the first that failed, or 0."""
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
    argv = fill(EVALUATION, root=root)
    banner("evaluation", f"{CANDIDATES} candidates of {NUM_SOURCES} test sources, five seeds", DIFFUSION, argv)
    code = clock.time("evaluation", lambda: run_program(DIFFUSION, argv))
    if code:
        return code
    record(root, clock.with_total())
    return 0


def keeps_slots(source: str, text: str) -> bool:
    """Whether a text parses and all its content slots equal those of its source."""
    from dataset_utils import synthetic_stories

    story, other = synthetic_stories.parse(source), synthetic_stories.parse(text)
    return story is not None and other is not None and synthetic_stories.slots(story) == synthetic_stories.slots(other)


def slot_accuracy(records: Sequence[dict[str, Any]]) -> dict[str, list[bool]]:
    """For each source whether all slots are kept by one sample, MBR, any candidate, or the sample of another source."""
    from evaluation import mbr

    chance = mbr.shuffle_predictions([record["sample"] for record in records], 42)
    return {
        "one sample": [keeps_slots(r["source"], r["sample"]) for r in records],
        "MBR": [keeps_slots(r["source"], r["chosen"]) for r in records],
        "oracle": [any(keeps_slots(r["source"], text) for text in r["candidates"]) for r in records],
        "chance": [keeps_slots(r["source"], text) for r, text in zip(records, chance, strict=True)],
        "grammatical": [grammatical(r["sample"]) for r in records],
    }


def grammatical(text: str) -> bool:
    from dataset_utils import synthetic_stories

    return synthetic_stories.parse(text) is not None


def record(root: Path, seconds: dict[str, float]) -> None:
    """Write record.json, samples.txt and the curves."""
    from evaluation import bootstrap, plots

    folder = root / "diffusion/evaluation"
    evaluation = json.loads((folder / "eval-test.json").read_text())
    args = json.loads((root / "diffusion/args.json").read_text())
    seeds = range(42, 47)
    runs = [json.loads((folder / f"eval-test-seed{seed}-greedy-pairs.json").read_text()) for seed in seeds]
    per_seed = [slot_accuracy(records) for records in runs]
    shares = {kind: [sum(found[kind]) / len(found[kind]) for found in per_seed] for kind in per_seed[0]}
    pooled = {kind: [value for found in per_seed for value in found[kind]] for kind in per_seed[0]}
    low, high = bootstrap.paired_bootstrap_ci(pooled["one sample"], pooled["MBR"])
    metadata = {
        "kept_all_slots": {kind: {"mean": sum(v) / len(v), "by_seed": v} for kind, v in shares.items()},
        "mbr_minus_one_sample": {"mean": mbr_gain(pooled), "interval_95": [low, high],
                                 "resamples": bootstrap.RESAMPLES},
        "metrics": {key: value["mean"] for key, value in evaluation.items()
                    if isinstance(value, dict) and "mean" in value and "reference" not in key},
        "protocol": evaluation["protocol"]["runs"][0],
        "setting": {"sources_per_seed": NUM_SOURCES, "seeds": list(seeds), "num_train_steps": args["num_train_steps"],
                    "train_batch_size": args["train_batch_size"], "best": best_checkpoint(root)},
        "seconds": seconds,
        "package_versions": args["package_versions"],
        "git_commit": args["git_commit"],
    }  # fmt: skip
    write_json(root / "record.json", metadata)
    lines = [f"{name:<10}{r[name]}\n" for r in runs[0][:20] for name in ("source", "reference", "sample", "chosen")]
    write_text(root / "samples.txt", "".join(lines))
    plots.plot_run(root / "diffusion")
    print(f"\nshare of {NUM_SOURCES} x {len(seeds)} test sources whose {CANDIDATES} candidates keep every content slot")
    for kind, values in shares.items():
        print(f"  {kind:<14}{sum(values) / len(values):.4f}   by seed " + ", ".join(f"{v:.3f}" for v in values))
    print(f"  MBR minus one sample {mbr_gain(pooled):+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}]")
    print(f"figures in {root / 'record.json'}")


def mbr_gain(pooled: dict[str, list[bool]]) -> float:
    return (sum(pooled["MBR"]) - sum(pooled["one sample"])) / len(pooled["MBR"])


def best_checkpoint(root: Path) -> dict[str, Any]:
    """The score and step of the evaluated checkpoint."""
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
