"""Speed of the options of decoding with a language model: seconds per batch, and whether the texts are equal.

    python benchmarks/decoding.py --enc_dec_model DIR --texts FILE --output_dir runs/decoding [--batch 128]
        [--max_seq_len 64] [--strategies greedy,beam,nucleus] [--rounds 5] [--threads N] [--device auto]

FILE has one text per line. The texts are encoded once and decoded from their states: with known lengths, as in the
space of encoder states, and with unknown lengths, as from compressed latents (the last state is repeated instead of
being masked). Every option runs once in each round; medians and ranges are over rounds. Writes decoding.json,
table.txt.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.errors import exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

METHODS: dict[str, dict[str, Any]] = {
    "whole batches": {"whole_batches": True},
    "default": {},
    "static cache": {"kv_cache": "static"},
    "bf16, whole batches": {"generation_dtype": "bf16", "whole_batches": True},
    "bf16": {"generation_dtype": "bf16"},
}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    from latent_models.generation.decoding import strategies
    from latent_models.generation.generator import TokenGenerator
    from latent_models.generation.options import GenerationOptions
    from latent_models.language_models import LanguageModel
    from utils.distributed import pick_device

    device = pick_device(args.device)
    model = LanguageModel.from_pretrained(args.enc_dec_model).to(device)
    lines = [line for line in Path(args.texts).read_text().splitlines() if line.strip()]
    tokens = model.tokenize(lines[: args.batch], args.max_seq_len).to(device)
    mask = tokens.attention_mask.bool()
    states = model.encode(tokens.input_ids, mask)
    lengths = mask.sum(1)
    last = states[torch.arange(len(states)), lengths - 1][:, None]
    memories = {"known": (states, mask), "unknown": (torch.where(mask[..., None], states, last), None)}
    cases = [
        (length_kind, strategy, way)
        for length_kind in memories
        for strategy in strategies(args.strategies)
        for way in METHODS
    ]
    generators = {way: TokenGenerator(GenerationOptions(**options)) for way, options in METHODS.items()}
    seconds: dict[tuple[str, str, str], list[float]] = {case: [] for case in cases}
    texts: dict[tuple[str, str, str], list[str]] = {}
    for number in range(-1, args.rounds):  # the first is a warm-up
        for case in cases:
            length_kind, strategy, way = case
            model.token_generator = generators[way]
            torch.manual_seed(0)
            began = time.perf_counter()
            texts[case] = model.generate(
                *memories[length_kind], max_length=args.max_seq_len, **strategies(args.strategies)[strategy]
            )
            seconds[case] += [time.perf_counter() - began] * (number >= 0)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    rows = []
    for case in cases:
        length_kind, strategy, way = case
        plain = (length_kind, strategy, next(iter(METHODS)))
        same = sum(a == b for a, b in zip(texts[case], texts[plain], strict=True))
        ratio = statistics.median(a / b for a, b in zip(seconds[plain], seconds[case], strict=True))
        rows.append(
            {"lengths": length_kind, "strategy": strategy, "way": way, "seconds": seconds[case], "faster": ratio}
            | {"same_texts": same, "texts": len(states), "mean_tokens": float(lengths.float().mean())}
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = rows[0]
    lines = [
        f"{head['texts']} texts of {head['mean_tokens']:.1f} tokens on average; medians of {len(head['seconds'])} "
        "interleaved rounds",
        "",
        f"{'lengths':<9}{'decoding':<10}{'way':<22}{'seconds':>9}{'range':>18}{'times as fast':>15}{'same texts':>13}",
    ]
    for row in rows:
        s = row["seconds"]
        lines.append(
            f"{row['lengths']:<9}{row['strategy']:<10}{row['way']:<22}{statistics.median(s):>9.3f}"
            f"{f'{min(s):.3f} - {max(s):.3f}':>18}{row['faster']:>15.2f}{row['same_texts']:>13}"
        )
    return "\n".join(lines) + "\n"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enc_dec_model", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--max_seq_len", type=int, default=64)
    parser.add_argument("--strategies", default="greedy,beam,nucleus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    args = parser.parse_args(argv)

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure(args)
    write_json(
        args.output_dir / "decoding.json",
        {"rows": rows, "versions": dict(package_versions()), "git_commit": git_commit()},
    )
    text = table(rows)
    write_text(args.output_dir / "table.txt", text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
