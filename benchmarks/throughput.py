"""Throughput of training, sampling and decoding on this machine, with and without each optimization of speed.

    python benchmarks/throughput.py --output_dir runs/throughput [--size small|paper] [--device auto] [--rounds 5]
        [--seconds 3] [--parts denoiser,autoencoder,sampling,guidance] [--threads N] [--profile] [--steps K] [--batch B]
        [--freed_memory keep|return]

It times the real training loops and samplers, with random weights. Every case runs once in each round, so that a busy
moment of the machine affects all cases; medians and ranges are over rounds. "everything off" runs the encoder at every
step, in float32, with plain attention, an unfused optimizer, the logits of a whole batch and no compilation.
Writes throughput.json and table.txt; with --profile also profile.txt, the time of a denoiser step by kernel.
How long: small about 8 minutes on 2 CPU cores. paper is meant for a GPU; give --seconds 12 for a minute a case.
To check on any machine that every case works: --size paper --rounds 1 --steps 1 --batch 2 takes minutes and holds one
case in memory at a time; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that our packages are importable from any directory

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import git_commit, package_versions, write_json, write_text

PARTS = ("denoiser", "autoencoder", "sampling", "guidance")
PROJECTED = {"denoiser": 250_000, "autoencoder": 50_000}  # steps of the published runs


class Machine:
    """Peak speed of matrix products and copies: the best of several tries, since other processes may slow down one."""

    def __init__(self, device: Any, dtypes: dict[str, Any]) -> None:
        self.device, self.dtypes = device, dtypes
        self.products, self.copies = dict.fromkeys(dtypes, 0.0), 0.0

    def measure(self) -> None:
        from benchmarks.throughput_cases import bytes_per_second, products_per_second

        for name, dtype in self.dtypes.items():
            self.products[name] = max(self.products[name], products_per_second(self.device, dtype))
        self.copies = max(self.copies, bytes_per_second(self.device))


@dataclass
class Measured:
    """A case and its measurements."""

    case: Any
    count: int  # steps in a round
    seconds: list[float] = field(default_factory=list)  # of a step, by round
    memory: int = 0  # peak bytes of the case alone

    def take(self, device: Any) -> None:
        """Time one round."""
        before = _allocated(device)
        self.seconds.append(_timed(self.case, self.count, device) / self.count)
        # without the memory of the other cases
        self.memory = max(self.memory, _peak(device) - before + self.case.bytes_held)


def measure(
    makers: list[Any], machine: Machine, rounds: int, seconds: float, steps: int | None = None
) -> list[Measured]:
    """Measure every case, in order.

    seconds: approximate time of a case in a round. steps: number of steps of a case in a round and of its warm-up, used
    instead of seconds.
    With a single round, each case is freed before the next one is made.
    """
    if rounds == 1:
        machine.measure()
        found = []
        for make in makers:
            measured = _ready(make, machine.device, seconds, steps)
            measured.take(machine.device)
            measured.case.run = None  # frees its networks
            found.append(measured)
        return found
    found = [_ready(make, machine.device, seconds, steps) for make in makers]
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        machine.measure()
        for measured in found:
            measured.take(machine.device)
    return found


def _ready(make: Any, device: Any, seconds: float, steps: int | None) -> Measured:
    """Make a case, run its warm-up (which compiles it), and count its operations."""
    from benchmarks.throughput_cases import NUM_LOSSES, count_flops, synchronize

    before = _allocated(device)
    case = make()
    print(f"warm-up: {case.part}, {case.name}", file=sys.stderr, flush=True)
    warm_up = NUM_LOSSES if case.part in PROJECTED else 2
    case.run(warm_up if steps is None else min(steps, warm_up))
    synchronize(device)
    count = max(1, round(seconds / max(_timed(case, 1, device), 1e-6))) if steps is None else steps
    # the counter cannot look into a compiled network, and would count the matrix products of Muon
    if not case.switches.compile and case.switches.optimizer != "muon" and case.part != "guidance":
        case.flops = count_flops(case)
    case.bytes_held = _allocated(device) - before
    return Measured(case, count)


def _allocated(device: Any) -> int:
    """Bytes allocated on a GPU, 0 on a CPU. Also resets the peak that _peak returns.

    On a CPU only the memory of the whole process is known.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # Linux only: without it the peak is since the start of the process
        Path("/proc/self/clear_refs").write_text("5")
    return 0


def _peak(device: Any) -> int:
    """Peak of the memory in bytes since the last call of _allocated; 0 where it is not known."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _timed(case: Any, count: int, device: Any) -> float:
    from benchmarks.throughput_cases import synchronize

    synchronize(device)
    began = time.perf_counter()
    case.run(count)
    synchronize(device)
    return time.perf_counter() - began


def row_of(measured: Measured) -> dict[str, Any]:
    case, count, seconds, memory = measured.case, measured.count, measured.seconds, measured.memory
    rates = [1 / s for s in seconds]
    median = statistics.median(rates)
    row: dict[str, Any] = {
        "part": case.part,
        "case": case.name,
        "steps_per_round": count,
        "steps_per_second": {"median": median, "lowest": min(rates), "highest": max(rates), "rounds": rates},
        "texts_per_second": median * case.texts,
        "tokens_per_second": median * case.tokens or None,
        "peak_memory_bytes": memory or None,
        "switches": vars(case.switches),
    }
    if case.part in PROJECTED:
        steps, taken = PROJECTED[case.part], count * len(seconds)
        row["projection"] = f"{steps:,} steps in {steps / median / 60:.1f} min, projected from {taken:,} measured steps"
        row["first_losses"] = case.losses
        row["parameters_trained"] = case.parameters
    return row


def bounds(rows: list[dict[str, Any]], cases: list[Any], metadata: dict[str, Any]) -> None:
    """Add to each row the speed that peak arithmetic and memory bandwidth would allow (a roofline)."""
    for row, case in zip(rows, cases, strict=True):
        if case.part == "sampling" and case.flops is not None:
            peak = metadata["matmul_flops_per_second"]["bfloat16" if case.switches.bf16 else "float32"]
            flops = case.flops
            row |= {
                "model_flops_per_step": flops,
                "flop_utilisation": row["steps_per_second"]["median"] * flops / peak,
                "steps_per_second_allowed": 1 / max(flops / peak, case.bytes_read / metadata["copy_bytes_per_second"]),
            }
    for part in PROJECTED:
        own = [(row, case) for row, case in zip(rows, cases, strict=True) if row["part"] == part]
        for row, case in own:
            # a compiled case has the operations of another case with the same caching
            twins = (c.flops for _, c in own if c.flops is not None and c.switches.cache == case.switches.cache)
            flops = case.flops or next(twins, None)
            if flops is None:
                continue
            peak = metadata["matmul_flops_per_second"]["bfloat16" if case.switches.bf16 else "float32"]
            # gradients for clipping; weights, gradients and two moments; the average: what a step reads and writes
            moved = 4 * case.parameters * (3 + 7 + (3 if part == "denoiser" else 0))
            fastest = 1 / max(flops / peak, moved / metadata["copy_bytes_per_second"])
            rate = row["steps_per_second"]["median"]
            row |= {
                "model_flops_per_step": flops,
                "flop_utilisation": rate * flops / peak,
                "steps_per_second_allowed": fastest,
            }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of speeds that the README of a record quotes."""
    rate = {(row["part"], row["case"]): row["steps_per_second"]["median"] for row in rows}
    found = {}
    for part in PROJECTED:
        if (part, "all on") in rate:
            for (other, case), value in rate.items():
                if other == part and case != "all on":
                    found[f"{part}: all on / {case}"] = rate[part, "all on"] / value
        without, nothing = (rate.get((part, name)) for name in ("without bf16", "everything off"))
        if without and nothing:
            found[f"{part}: without bf16 / everything off"] = without / nothing
    for (part, case), value in rate.items():
        name, _, batch = case.partition(", batch ")
        if part == "guidance" and name == "guided":
            against = "unguided" if batch == "1" else "two calls"
            found[f"guidance: seconds of a guided step / {against}, batch {batch}"] = (
                rate[part, f"{against}, batch {batch}"] / value
            )
    return found


def differences(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Largest relative difference of the first losses from those of the case "everything off"."""
    found = {}
    for part in PROJECTED:
        own = {row["case"]: row["first_losses"] for row in rows if row["part"] == part}
        base = own.get("everything off", [])
        for case, losses in own.items():
            if base and case not in ("everything off", "muon"):
                found[f"{part}: {case}"] = max(abs(a - b) / abs(b) for a, b in zip(losses, base, strict=False))
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['device']}, {result['threads']} threads, size {result['size']}; medians of {result['rounds']} rounds"
    ]
    peaks = ", ".join(f"{k} {v / 1e12:.3g} TFLOP/s" for k, v in result["matmul_flops_per_second"].items())
    lines.append(f"matrix products {peaks}; copies {result['copy_bytes_per_second'] / 1e9:.3g} GB/s")
    lines += [f"not on this machine: {', '.join(result['not_here'])}"] if result["not_here"] else []
    lines += [f"memory: {result['memory']}"]
    lines.append("")
    lines.append(
        f"{'part':<12}{'case':<38}{'steps/s':>9}{'range':>18}{'texts/s':>10}{'tokens/s':>11}{'util.':>7}{'allowed':>9}{'memory':>9}"
    )
    for row in result["rows"]:
        s = row["steps_per_second"]
        cells = [
            f"{s['median']:>9.4g}",
            f"{s['lowest']:.4g} - {s['highest']:.4g}".rjust(18),
            f"{row['texts_per_second']:>10.4g}",
            f"{row['tokens_per_second']:>11.4g}" if row["tokens_per_second"] else " " * 11,
            f"{row['flop_utilisation']:>7.0%}" if "flop_utilisation" in row else " " * 7,
            f"{row['steps_per_second_allowed']:>9.4g}" if "steps_per_second_allowed" in row else " " * 9,
            f"{row['peak_memory_bytes'] / 1e9:>6.2f} GB" if row["peak_memory_bytes"] else " " * 9,
        ]
        lines.append(f"{row['part']:<12}{row['case']:<38}" + "".join(cells))
    lines += ["", *(f"{name:<70}{value:.3f}" for name, value in result["ratios"].items())]
    lines += ["", "largest relative difference of the first losses from those with everything off:"]
    lines += [f"{name:<70}{value:.1e}" for name, value in result["loss_differences"].items()]
    lines += [
        "",
        *(f"{row['part']}, {row['case']}: {row['projection']}" for row in result["rows"] if "projection" in row),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def profile(case: Any, device: Any) -> str:
    """Time of a step by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profiled(activities=activities) as found:
        case.run(10)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=30)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--size", choices=("small", "paper"), default=None, help="default: paper on CUDA, else small")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a case in a round")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, help="of a case in a round, in place of --seconds, and of its warm-up")
    parser.add_argument("--batch", type=int, help="texts of every batch, in place of those of the size")
    parser.add_argument(
        "--freed_memory", default="keep", choices=("keep", "return"), help="of every case: a process chooses once"
    )
    args = parser.parse_args(argv)
    for flag in ("rounds", "steps", "batch"):
        number = getattr(args, flag)
        if number is not None and number < 1:
            raise UserError(f"--{flag} {number}: give 1 or more")
    parts = args.parts.split(",")
    unknown = next((part for part in parts if part not in PARTS), None)
    if unknown is not None:
        raise UserError(f"--parts {unknown!r} is not a part: choose from {', '.join(PARTS)}")

    import torch

    from benchmarks.throughput_cases import SIZES, Bench
    from utils.distributed import pick_device

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    size = args.size or ("paper" if device.type == "cuda" else "small")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        layout = SIZES[size] if args.batch is None else SIZES[size].with_batch(args.batch)
        bench = Bench(layout, device, Path(folder), args.freed_memory)
        not_here = [n for n, there in (("bf16 instructions", bench.bf16), ("compile", bench.compiles)) if not there]
        dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if bench.bf16 else {})
        result: dict[str, Any] = {
            "size": size,
            "layout": vars(layout),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "freed_memory": args.freed_memory,
            "not_here": not_here,
            "memory": "of a case alone, at its peak" if device.type == "cuda" else "of the process at the case's peak",
            "versions": dict(package_versions()),
            "git_commit": git_commit(),
        }
        machine = Machine(device, dtypes)
        makers = bench.cases(parts)
        found = measure(makers, machine, args.rounds, args.seconds, args.steps)
        rows = [row_of(measured) for measured in found]
        result |= {"matmul_flops_per_second": machine.products, "copy_bytes_per_second": machine.copies}
        bounds(rows, [measured.case for measured in found], result)
        if args.profile and "denoiser" in parts:
            case = found[0].case if args.rounds > 1 else makers[0]()
            case.run(2)
            write_text(args.output_dir / "profile.txt", profile(case, device))
    result |= {"ratios": ratios(rows), "loss_differences": differences(rows), "rows": rows}
    result["seconds"] = round(time.monotonic() - began, 1)
    write_json(args.output_dir / "throughput.json", result)
    text = table(result)
    write_text(args.output_dir / "table.txt", text)
    print(text)
    return 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


if __name__ == "__main__":
    raise SystemExit(main())
