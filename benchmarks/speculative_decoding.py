"""Speculative decoding of a diffusion run: texts per second with and without drafts, and whether the texts are equal.

    python benchmarks/speculative_decoding.py --run RUN --output_dir runs/speculative_decoding [--draft_model FOLDER]
        [--latent_model_path RUN] [--data_dir DIR] [--enc_dec_model DIR] [--batches 1,32,250] [--texts 1000]
        [--rounds 5] [--sampling_timesteps 25] [--threads N] [--device auto] [--end_to_end_only]

In each round both methods, greedy decoding token by token and speculative decoding, decode latents of held-out texts
and sampled latents; times are of decoding alone, with the draft model. Then both methods sample texts from noise. A
round decodes at least eight batches and 32 texts, as far as there are so many. Medians and ranges are over rounds. A
run of --distill_run samples with its own steps. Writes speculative_decoding.json and table.txt.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.cli.args_io import read_args
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

MIN_BATCHES, MIN_TEXTS = 8, 32  # of a round
METHODS = ("token by token", "drafted")
HEADING = (
    f"{'latents':<16}{'batch':>6}{'tokens':>8}{'right':>8}{'texts right':>13}{'passes':>8}"
    f"{'texts/s before':>16}{'after':>8}{'times as fast':>15}{'range':>14}{'same texts':>13}"
)


def decoder_memories(run: Any, generator: Any, count: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Memories (n, L, d_lm) of the decoder, of held-out texts and of samples; and the speed of denoising."""
    import torch

    from dataset_utils import registry
    from pipelines.data.tokens import tokenize_for

    space, held_out = generator.space.space, registry.load(run.settings.config.data).valid
    data = tokenize_for(
        space, held_out.select(range(min(count, len(held_out)))), run.settings.config.language_model.max_seq_len
    )
    encoded = [space.encode(data.batch(rows).to(run.device)).x0 for rows in torch.arange(len(data)).split(250)]
    began = time.perf_counter()
    blocks = [generator.sample_latents(42, b).x0 for b in range(-(-count // generator.block_size))]
    seconds = time.perf_counter() - began
    sampled = generator.space.denormalize(torch.cat(blocks))
    latents = {"held-out texts": torch.cat(encoded), "samples": sampled[:count]}
    return {name: space.autoencoder.decode(x0) for name, x0 in latents.items()}, {
        "denoise_texts_per_second": len(sampled) / seconds
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from latent_models.spaces.compressed import CompressedSpace
    from pipelines.components import make_generator
    from pipelines.load_run import load_run
    from utils import distributed

    student = read_args(Path(args.run)).get("distill_run") is not None  # a student has a fixed number of steps
    flags = {"eval_batch_size": 250} | ({} if student else {"sampling_timesteps": args.sampling_timesteps})
    folders = {name: getattr(args, name) for name in ("draft_model", "data_dir", "enc_dec_model", "latent_model_path")}
    run = load_run(args.run, device=args.device, **flags, **{k: v for k, v in folders.items() if v is not None})
    space = run.components.space.space
    if not isinstance(space, CompressedSpace) or space.greedy_loop is None:
        raise UserError(
            f"{args.run} has no draft model: train one (python -m pipelines.train_draft_model) or pass --draft_model"
        )
    autocast = distributed.autocast(run.device, run.settings.config.loop.mixed_precision)
    generator = make_generator(run.settings, run.components, run.device, autocast)
    rows = []
    metadata: dict[str, Any] = {}
    if not args.end_to_end_only:
        with torch.no_grad(), autocast():
            sets, metadata = decoder_memories(run, generator, args.texts)
            for name, memory in sets.items():
                for size in args.batches:
                    row = compare(run, memory, size, args.rounds)
                    rows.append({"latents": name, "batch": size, **row})
                    print(f"{name}, batches of {size}: {row['faster']:.2f} times as fast", file=sys.stderr, flush=True)
    end_to_end_rows = []
    for size in args.batches:
        row = end_to_end(generator, space, size, min(args.texts, max(MIN_BATCHES * size, MIN_TEXTS)), args.rounds)
        end_to_end_rows.append({"batch": size, **row})
        print(f"end to end, batches of {size}: {row['faster']:.2f} times as fast", file=sys.stderr, flush=True)
    steps = run.settings.config.sampling.sampling_timesteps
    return {
        "rows": rows,
        "end_to_end": end_to_end_rows,
        **metadata,
        "sampling_timesteps": steps,
        "device": str(run.device),
    }


def end_to_end(generator: Any, space: Any, size: int, texts: int, rounds: int) -> dict[str, Any]:
    """Seconds of both methods from noise to texts in batches of `size`, and the share of decoding in them."""
    loop, generator.batch_size = space.greedy_loop, size
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    decoding: dict[str, list[float]] = {method: [] for method in METHODS}
    outputs: dict[str, list[str]] = {}
    passes = 0.0
    for number in range(-1, rounds):  # the first is a warm-up
        for method in METHODS if number % 2 else METHODS[::-1]:
            space.greedy_loop = loop if method == "drafted" else None
            began = time.perf_counter()
            sampled = generator.sample(texts, 42, ["greedy"], quiet=True)
            total, stopwatch = time.perf_counter() - began, sampled.speed
            outputs[method] = sampled.texts["greedy"]
            seconds[method] += [total] * (number >= 0)
            decoding[method] += [stopwatch.seconds["decode"] / total] * (number >= 0)
            passes = stopwatch.draft_passes / stopwatch.drafted_texts if stopwatch.drafted_texts else passes
    space.greedy_loop = loop
    before, after = (outputs[method] for method in METHODS)
    return {
        "texts": texts,
        "seconds": seconds,
        "decoding": {method: statistics.median(shares) for method, shares in decoding.items()},
        "faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "passes": passes,
        "same_texts": sum(a == b for a, b in zip(before, after, strict=True)),
    }


def compare(run: Any, memory: Any, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both methods in batches of `size` rows of memory (n, L, d_lm), and the accuracy of the drafts."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from latent_models.generation.decoding import DECODING
    from latent_models.speculative.verification import pop_draft_stats

    space = run.components.space.space
    model, loop = space.language_model, space.greedy_loop
    draft = partial(loop.draft_model.draft_ids, model.model)
    batches = memory.split(size)
    batches = batches[: max(MIN_BATCHES, MIN_TEXTS // size)]
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    outputs: dict[str, list[Any]] = {}
    passes = 0.0
    for number in range(-1, rounds):  # the first is a warm-up
        for method in METHODS if number % 2 else METHODS[::-1]:
            options = {**DECODING["greedy"], "greedy_loop": loop if method == "drafted" else None}
            began = time.perf_counter()
            outputs[method] = [
                ids
                for batch in batches
                for ids in model.generate_ids(batch, None, run.settings.config.language_model.max_seq_len, **options)
            ]
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[method] += [time.perf_counter() - began] * (number >= 0)
            num_passes, texts = pop_draft_stats(loop)
            passes = num_passes / texts if texts else passes
    greedy, verified = (pad_sequence(outputs[method], True, model.pad_id)[:, 1:].cpu() for method in METHODS)
    drafted = torch.cat([draft(batch) for batch in batches]).cpu()
    width = min(greedy.shape[1], verified.shape[1], drafted.shape[1])  # the rest is padding
    mask = greedy[:, :width] != model.pad_id
    correct = (drafted[:, :width] == greedy[:, :width]) & mask
    return {
        "texts": len(greedy),
        "seconds": seconds,
        "faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "passes": passes,
        "tokens": float(mask.sum(1).float().mean()),
        "tokens_right": float(correct.sum() / mask.sum()),
        "texts_right": float((correct | ~mask).all(1).float().mean()),
        "same_texts": int((greedy[:, :width] == verified[:, :width]).all(1).sum()),
    }


def table(found: dict[str, Any]) -> str:
    rows, end_to_end_rows = found["rows"], found["end_to_end"]
    rate = found.get("denoise_texts_per_second")
    lines = [
        f"medians of {len(end_to_end_rows[0]['seconds'][METHODS[0]])} interleaved rounds on {found['device']}; "
        f"denoising in {found['sampling_timesteps']} steps"
        + (f": {rate:.0f} texts/s in batches of 250" if rate else "")
    ]
    lines += ["", HEADING] if rows else []
    for row in rows:
        before, after = (row["texts"] / statistics.median(row["seconds"][method]) for method in METHODS)
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
    for row in end_to_end_rows:
        before, after = (row["texts"] / statistics.median(row["seconds"][method]) for method in METHODS)
        shares, same = row["decoding"], f"{row['same_texts']} of {row['texts']}"
        ratios = [a / b for a, b in zip(*row["seconds"].values(), strict=True)]
        lines.append(
            f"{'':<16}{row['batch']:>6}{row['passes']:>8.2f}{shares[METHODS[0]]:>17.0%}{shares[METHODS[1]]:>8.0%}{before:>16.1f}"
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
    parser.add_argument("--draft_model", help="folder of a draft model; unset: that of the run")
    parser.add_argument("--data_dir", help="folder of the corpus, if it was moved")
    parser.add_argument("--enc_dec_model", help="folder of the language model, if it was moved")
    parser.add_argument("--latent_model_path", help="an autoencoder run with another decoder for the same latents")
    parser.add_argument("--batches", type=sizes, default=[1, 32, 250])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sampling_timesteps", type=int, default=25)
    parser.add_argument("--end_to_end_only", action="store_true", help="skip the measurement of decoding alone")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    args = parser.parse_args(argv)

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    found = measure(args)
    write_json(
        args.output_dir / "speculative_decoding.json",
        {**found, "versions": dict(package_versions()), "git_commit": git_commit()},
    )
    text = table(found)
    write_text(args.output_dir / "table.txt", text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
