"""What drafts are worth to a diffusion run: texts a second with and without, and whether the texts stay the same.

    python benchmarks/drafting.py --run RUN --output_dir runs/drafting [--draft_model FOLDER] [--latent_model_path RUN]
        [--data_dir DIR] [--enc_dec_model DIR] [--batches 1,32,250] [--texts 1000] [--rounds 5]
        [--sampling_timesteps 25] [--threads N] [--device auto] [--end_to_end_only]

Greedy decoding token by token and from drafts take turns, in each round once each, on latents of held-out texts and on
sampled ones; times are of decoding alone, the drafter's included. Then both ways sample texts, from noise on, in turn.
A round writes eight batches and 32 texts at least, if there are so many. Medians and ranges are over rounds. A
run of --distill_run samples in its own steps. Writes drafting.json and table.txt.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the rooms, from any directory

from utils.argparse_utils import OneLineParser
from utils.cli.args_io import read_args
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

BATCHES, TEXTS = 8, 32  # of a round, at least, if there are so many
WAYS = ("token by token", "drafted")
HEADING = (
    f"{'latents':<16}{'batch':>6}{'tokens':>8}{'right':>8}{'texts right':>13}{'passes':>8}"
    f"{'texts/s before':>16}{'after':>8}{'times as fast':>15}{'range':>14}{'same texts':>13}"
)


def memories(run: Any, generator: Any, count: int) -> tuple[dict[str, Any], dict[str, float]]:
    """What the language model's decoder attends to (n, L, d_lm), of held-out texts and samples; how fast it samples."""
    import torch

    from dataset_utils import registry
    from dataset_utils.options import DataOptions
    from pipelines.data.tokens import tokenize_for

    space, held_out = generator.space.space, registry.load(run.settings.config.data).valid
    data = tokenize_for(
        space, held_out.select(range(min(count, len(held_out)))), run.settings.config.language_model.max_seq_len
    )
    encoded = [space.encode(data.batch(rows).to(run.device)).x0 for rows in torch.arange(len(data)).split(250)]
    began = time.perf_counter()
    blocks = [generator.sample_latents(42, b).x0 for b in range(-(-count // generator.batch_size))]
    seconds = time.perf_counter() - began
    sampled = generator.space.restore(torch.cat(blocks))
    found = {"held-out texts": torch.cat(encoded), "samples": sampled[:count]}
    return {name: space.autoencoder.decode(x0) for name, x0 in found.items()}, {
        "denoise_texts_per_second": len(sampled) / seconds
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from latent_models.spaces.compressed import CompressedSpace
    from pipelines.components import make_generator
    from pipelines.load_run import load_run
    from utils import distributed

    student = read_args(Path(args.run)).get("distill_run") is not None  # which has steps of its own
    named = {"eval_batch_size": 250} | ({} if student else {"sampling_timesteps": args.sampling_timesteps})
    given = {name: getattr(args, name) for name in ("draft_model", "data_dir", "enc_dec_model", "latent_model_path")}
    run = load_run(args.run, device=args.device, **named, **{k: v for k, v in given.items() if v is not None})
    space = run.components.space.space
    if not isinstance(space, CompressedSpace) or space.greedy_loop is None:
        raise UserError(
            f"{args.run} has no drafter: train one with python -m pipelines.train_draft_model, or give --draft_model"
        )
    autocast = distributed.autocast(run.device, run.settings.config.loop.mixed_precision)
    generator = make_generator(run.settings, run.components, run.device, autocast)
    rows = []
    metadata: dict[str, Any] = {}
    if not args.end_to_end_only:
        with torch.no_grad(), autocast():
            sets, metadata = memories(run, generator, args.texts)
            for name, memory in sets.items():
                for size in args.batches:
                    row = compare(run, memory, size, args.rounds)
                    rows.append({"latents": name, "batch": size, **row})
                    print(f"{name}, batches of {size}: {row['faster']:.2f} times as fast", file=sys.stderr, flush=True)
    whole = []
    for size in args.batches:
        row = end_to_end(generator, space, size, min(args.texts, max(BATCHES * size, TEXTS)), args.rounds)
        whole.append({"batch": size, **row})
        print(f"end to end, batches of {size}: {row['faster']:.2f} times as fast", file=sys.stderr, flush=True)
    steps = run.settings.config.sampling.sampling_timesteps
    return {"rows": rows, "end_to_end": whole, **metadata, "sampling_timesteps": steps, "device": str(run.device)}


def end_to_end(generator: Any, space: Any, size: int, texts: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways from noise to texts, in batches of so many, and of these the share that is decoding."""
    loop, generator.batch_size = space.greedy_loop, size
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    decoding: dict[str, list[float]] = {way: [] for way in WAYS}
    written: dict[str, list[str]] = {}
    passes = 0.0
    for number in range(-1, rounds):  # the first is a warm-up
        for way in WAYS if number % 2 else WAYS[::-1]:
            space.greedy_loop = loop if way == "drafted" else None
            began = time.perf_counter()
            sampled = generator.sample(texts, 42, ["greedy"], quiet=True)
            spent, watch = time.perf_counter() - began, sampled.speed
            written[way] = sampled.texts["greedy"]
            seconds[way] += [spent] * (number >= 0)
            decoding[way] += [watch.seconds["decode"] / spent] * (number >= 0)
            passes = watch.draft_passes / watch.drafted_texts if watch.drafted_texts else passes
    space.greedy_loop = loop
    before, after = (written[way] for way in WAYS)
    return {
        "texts": texts,
        "seconds": seconds,
        "decoding": {way: statistics.median(shares) for way, shares in decoding.items()},
        "faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "passes": passes,
        "same_texts": sum(a == b for a, b in zip(before, after, strict=True)),
    }


def compare(run: Any, memory: Any, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways in batches of so many rows of memory (n, L, d_lm), and how good the drafts are."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from latent_models.generation.decoding import DECODING
    from latent_models.speculative.verification import pop_draft_stats

    space = run.components.space.space
    model, loop = space.language_model, space.greedy_loop
    draft = partial(loop.draft_model.draft_ids, model.model)
    components = memory.split(size)
    components = components[: max(BATCHES, TEXTS // size)]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    written: dict[str, list[Any]] = {}
    passes = 0.0
    for number in range(-1, rounds):  # the first is a warm-up
        for way in WAYS if number % 2 else WAYS[::-1]:
            how = {**DECODING["greedy"], "greedy_loop": loop if way == "drafted" else None}
            began = time.perf_counter()
            written[way] = [
                ids
                for part in components
                for ids in model.generate_ids(part, None, run.settings.config.language_model.max_seq_len, **how)
            ]
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[way] += [time.perf_counter() - began] * (number >= 0)
            looked, texts = pop_draft_stats(loop)
            passes = looked / texts if texts else passes
    wanted, found = (pad_sequence(written[way], True, model.pad_id)[:, 1:].cpu() for way in WAYS)
    guessed = torch.cat([draft(part) for part in components]).cpu()
    width = min(wanted.shape[1], found.shape[1], guessed.shape[1])  # what is beyond is padding
    real = wanted[:, :width] != model.pad_id
    right = (guessed[:, :width] == wanted[:, :width]) & real
    return {
        "texts": len(wanted),
        "seconds": seconds,
        "faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "passes": passes,
        "tokens": float(real.sum(1).float().mean()),
        "tokens_right": float(right.sum() / real.sum()),
        "texts_right": float((right | ~real).all(1).float().mean()),
        "same_texts": int((wanted[:, :width] == found[:, :width]).all(1).sum()),
    }


def table(found: dict[str, Any]) -> str:
    rows, whole = found["rows"], found["end_to_end"]
    rate = found.get("denoise_texts_per_second")
    lines = [
        f"medians of {len(whole[0]['seconds'][WAYS[0]])} interleaved rounds on {found['device']}; denoising in "
        f"{found['sampling_timesteps']} steps" + (f": {rate:.0f} texts/s in batches of 250" if rate else "")
    ]
    lines += ["", HEADING] if rows else []
    for row in rows:
        before, after = (row["texts"] / statistics.median(row["seconds"][way]) for way in WAYS)
        same = f"{row['same_texts']} of {row['texts']}"
        ratios = [a / b for a, b in zip(*row["seconds"].values(), strict=True)]
        lines.append(
            f"{row['latents']:<16}{row['batch']:>6}{row['tokens']:>8.1f}{row['tokens_right']:>8.1%}"
            f"{row['texts_right']:>13.1%}{row['passes']:>8.2f}{before:>16.0f}{after:>8.0f}{row['faster']:>15.2f}"
            f"{f'{min(ratios):.2f} - {max(ratios):.2f}':>14}{same:>13}"
        )
    lines += [
        "",
        f"{'end to end':<16}{'batch':>6}{'passes':>8}{'decoding before':>17}{'after':>8}{'texts/s before':>16}"
        f"{'after':>8}{'times as fast':>15}{'range':>14}{'same texts':>15}",
    ]
    for row in whole:
        before, after = (row["texts"] / statistics.median(row["seconds"][way]) for way in WAYS)
        shares, same = row["decoding"], f"{row['same_texts']} of {row['texts']}"
        ratios = [a / b for a, b in zip(*row["seconds"].values(), strict=True)]
        lines.append(
            f"{'':<16}{row['batch']:>6}{row['passes']:>8.2f}{shares[WAYS[0]]:>17.0%}{shares[WAYS[1]]:>8.0%}{before:>16.1f}"
            f"{after:>8.1f}{row['faster']:>15.2f}{f'{min(ratios):.2f} - {max(ratios):.2f}':>14}{same:>15}"
        )
    return "\n".join(lines) + "\n"


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a diffusion run")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--draft_model", help="its folder; unset: the run's own")
    parser.add_argument("--data_dir", help="where the corpus is now")
    parser.add_argument("--enc_dec_model", help="where the language model is now")
    parser.add_argument("--latent_model_path", help="an autoencoder run with another decoder for the same latents")
    parser.add_argument("--batches", type=sizes, default=[1, 32, 250])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sampling_timesteps", type=int, default=25)
    parser.add_argument(
        "--end_to_end_only", action="store_true", help="leave out what drafts are worth to decoding alone"
    )
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    args = parser.parse_args(argv)

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    found = measure(args)
    write_json(
        args.output_dir / "drafting.json",
        {**found, "versions": dict(package_versions()), "git_commit": git_commit()},
    )
    text = table(found)
    write_text(args.output_dir / "table.txt", text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
