"""Throughput of training, sampling and decoding on this machine, with and without each optimization of speed.

    python benchmarks/throughput.py --output_dir runs/throughput [--size small|paper] [--device auto] [--rounds 5]
        [--seconds 3] [--parts denoiser,autoencoder,sampling,guidance] [--cases TEXT,TEXT] [--threads N] [--profile]
        [--steps K] [--batch B] [--freed_memory keep|return] [--dropout recipe|on|off] [--compile auto|on|off]

It times the real training loops and samplers, with random weights, at the sizes of recipes (throughput_sizes). Every
case runs once in each round, so that a busy moment of the machine affects all cases; medians and ranges are over
rounds, and a ratio is the median of the ratios within the rounds. "all on" is what the programs do by default, with
--mixed_precision bf16 where the device has it fast; that of the autoencoder adds --cache_encoder_states float16, which
is off by default ("without cache" is the recipe). "everything off" is float32 with --reference_kernels and --compile
off, the encoder of the language model at every step, and the decoding of transformers itself.
A switch whose "all on / without X" is below .97 makes that case slower: the program prints these at the end, and
"slower" of throughput.json holds them. Likewise with "beyond_precision": cases whose first losses differ by more than
rounding explains (throughput_report.PRECISION).
Writes throughput.json and table.txt, after each case or, with several rounds, after each round; with --profile also
profile_PART.txt of each part, the time by kernel of its first case that runs in this process.
--compile auto is that of a training of the published number of steps, and of an evaluation by itself.
How long: small about 15 minutes on 2 CPU cores. Two cases in half a minute:
    --parts denoiser --cases "all on,everything off" --rounds 5 --seconds 1
A text of --cases may have several parts that must all be in the name of a case: "beam+all on,beam+everything off".
paper is meant for a GPU; give --seconds 12 for a minute a case. To check on any machine that every case works:
--size paper --rounds 1 --steps 1 --batch 2 takes minutes and holds one case in memory at a time; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from benchmarks.throughput_sizes import NUM_LOSSES, PARTS, PROJECTED, SIZES, Maker, Size
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

PROFILED = {True: 10, False: 1}  # steps in a profile, by whether the part trains: a step of sampling is many calls


def measure(
    makers: list[Maker],
    machine: Any,
    rounds: int,
    seconds: float,
    steps: int | None = None,
    save: Callable[[list[Any]], Any] = lambda measured: None,
) -> list[Any]:
    """Measure every case; returns them in order, as throughput_report.Measured.

    seconds: approximate time of a case in a round. steps: number of steps of a case in a round and of its warm-up, used
    instead of seconds. save: called after each case, or after each round where there are several.
    With a single round, each case is freed before the next one is made. Every second round runs backwards, so that a
    machine that becomes slower or faster favors no case.
    """
    found: list[Any] = []
    if rounds == 1:
        machine.measure()
        for maker in makers:
            measured = _ready(maker, machine.device, seconds, steps)
            measured.take(machine.device)
            measured.case.run = _freed
            found.append(measured)
            save(found)
        return found
    found = [_ready(maker, machine.device, seconds, steps) for maker in makers]
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        machine.measure()
        for measured in found[:: -1 if number % 2 else 1]:
            measured.take(machine.device)
        save(found)
    return found


def _freed(k: int) -> None:
    raise AssertionError("the networks of this case are freed")


def _ready(maker: Maker, device: Any, seconds: float, steps: int | None) -> Any:
    """Make a case, run its warm-up (which compiles it), and count its operations."""
    from benchmarks.throughput_machine import allocated_bytes, count_flops, synchronize, timed
    from benchmarks.throughput_report import Measured

    print(f"warm-up: {maker.part}, {maker.name}", file=sys.stderr, flush=True)
    before = allocated_bytes(device)
    case = maker.make()
    warm_up = NUM_LOSSES if case.part in PROJECTED else 2
    case.run(warm_up if steps is None else min(steps, warm_up))
    synchronize(device)
    count = max(1, round(seconds / max(timed(case, 1, device), 1e-6))) if steps is None else steps
    # the counter cannot look into a compiled network, and would count the matrix products of Muon
    if not case.switches.compile and case.switches.optimizer != "muon" and case.part != "guidance":
        case.flops = count_flops(case)
    case.bytes_held = allocated_bytes(device) - before  # of a GPU
    return Measured(case, count)


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--size", choices=tuple(SIZES), default=None, help="default: paper on CUDA, else small")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a case in a round")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cases", help="only cases whose name contains one of these texts")
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, help="of a case in a round, in place of --seconds, and of its warm-up")
    parser.add_argument("--batch", type=int, help="texts of every batch, in place of those of the size")
    parser.add_argument(
        "--freed_memory", default="keep", choices=("keep", "return"), help="of every case: a process chooses once"
    )
    parser.add_argument(
        "--dropout", default="recipe", choices=("recipe", "on", "off"), help="of the denoiser while it trains"
    )
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"), help="as of the programs")
    return parser


def layout_of(args: argparse.Namespace, size: str) -> Size:
    """The sizes of the networks and batches by the flags."""
    layout = SIZES[size] if args.batch is None else SIZES[size].with_batch(args.batch)
    return layout if args.dropout == "recipe" else replace(layout, dropout=args.dropout == "on")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    for flag in ("rounds", "steps", "batch"):
        number = getattr(args, flag)
        if number is not None and number < 1:
            raise UserError(f"--{flag} {number}: give 1 or more")
    parts = args.parts.split(",")
    unknown = next((part for part in parts if part not in PARTS), None)
    if unknown is not None:
        raise UserError(f"--parts {unknown!r} is not a part: choose from {', '.join(PARTS)}")

    import torch

    from benchmarks.throughput_cases import cases
    from benchmarks.throughput_machine import Machine, processor, profile
    from benchmarks.throughput_networks import Networks
    from benchmarks.throughput_report import Measured, report, table
    from benchmarks.throughput_worker import Worker
    from utils.distributed import pick_device

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    size = args.size or ("paper" if device.type == "cuda" else "small")
    layout = layout_of(args, size)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        returned = args.freed_memory == "return"
        networks = Networks(
            layout, device, Path(folder), args.freed_memory, in_every_case=returned, compile_flag=args.compile
        )
        makers = [m for m in cases(networks, parts) if args.cases is None or m.matches(args.cases)]
        other = Worker(layout, torch.get_num_threads(), keep_cases=args.rounds > 1, compile_flag=args.compile)
        makers = [m if m.freed_memory in (None, args.freed_memory) else other.maker(m) for m in makers]
        if not makers:
            names = ", ".join(repr(m.name) for m in cases(networks, parts))
            raise UserError(f"--cases {args.cases!r} names no case of --parts {args.parts}: they are {names}")
        here = {
            "bf16 instructions": networks.bf16,
            "compile in training": networks.compiles_training,
            "compile in sampling": networks.compiles_sampling,
        }
        dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if networks.bf16 else {})
        machine = Machine(device, dtypes)
        metadata: dict[str, Any] = {
            "size": size,
            "layout": vars(layout),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "freed_memory": args.freed_memory,
            "not_here": [name for name, there in here.items() if not there],
            "memory": "of a case alone, at its peak" if device.type == "cuda" else "of the process at the case's peak",
            "versions": dict(package_versions()),
            "git_commit": git_commit(),
        }

        def save(measured: list[Measured]) -> dict[str, Any]:
            peaks = {"matmul_flops_per_second": machine.products, "copy_bytes_per_second": machine.copies}
            result = report(measured, metadata | peaks)
            result |= {"rounds": len(measured[0].seconds), "seconds": round(time.monotonic() - began, 1)}
            write_json(args.output_dir / "throughput.json", result)
            write_text(args.output_dir / "table.txt", table(result))
            return result

        found = measure(makers, machine, args.rounds, args.seconds, args.steps, save)
        result = save(found)
        for part in parts if args.profile else ():
            number = next((i for i, one in enumerate(found) if one.case.part == part and one.case.pid is None), None)
            if number is None:
                print(f"note: no case of {part} runs in this process, so none is profiled", file=sys.stderr)
                continue
            case = found[number].case if args.rounds > 1 else makers[number].make()
            steps = PROFILED[part in PROJECTED]
            case.run(min(2, steps))
            write_text(args.output_dir / f"profile_{part}.txt", profile(case, device, steps))
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
