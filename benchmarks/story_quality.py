"""Quality of samples of embedded stories by sampler setting. The grammar of the stories gives exact metrics.

    python benchmarks/story_quality.py runs/quickstart/diffusion sampling_timesteps=50 \\
        sampler=dpmpp,sampling_timesteps=25 [--corpus runs/quickstart/corpus] [--samples 500]

Each word after the run is one setting: flags of the sampler and seed=N, joined by commas. It prints one line for each.
How long: about half a minute a setting on 2 cores (50 steps, 500 samples of the quickstart's size).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error

METRICS = ("grammatical", "agreement", "coherent", "novel", "distinct")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("settings", nargs="+")
    parser.add_argument(
        "--corpus", type=Path, default=None, help="folder of the embedded stories (default: corpus/ beside the run)"
    )
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args(argv)
    corpus = (args.corpus or args.run.parent / "corpus") / "train.jsonl"
    if not corpus.is_file():
        raise UserError(f"{corpus} does not exist: name the folder of the embedded stories with --corpus")
    training = {json.loads(line)["text"] for line in corpus.open(encoding="utf-8")}

    from dataset_utils import synthetic_stories
    from pipelines.text_diffusion import TextDiffusionPipeline

    for setting in args.settings:
        if not all("=" in word for word in setting.split(",")):
            raise UserError(f"{setting!r} is not a setting: write flag=value, joined by commas")
        flags = dict(word.split("=", 1) for word in setting.split(","))
        seed = int(flags.pop("seed", 42))
        pipeline = TextDiffusionPipeline.from_pretrained(args.run, eval_batch_size=250, **flags)
        began = time.monotonic()
        grammar = synthetic_stories.grammar_metrics(pipeline(args.samples, seed=seed, decoding="greedy"), training)
        figures = "  ".join(f"{name} {grammar[name]:.4f}" for name in METRICS)
        print(f"{setting:<50} {figures}  {time.monotonic() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
