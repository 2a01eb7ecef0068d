"""How fast this machine trains, samples and decodes, and what each way of being fast is worth here.

    python benchmarks/throughput.py --output_dir runs/throughput [--size small|paper] [--device auto] [--rounds 5]
        [--seconds 3] [--parts denoiser,autoencoder,sampling,guidance] [--threads N] [--profile]

The real loops, steps and generators at random weights. Every case runs once in each round, one after another, so that a
busy moment of the machine meets all of them; medians and ranges are over rounds. "everything off" runs the encoder at
every step, in float32, with plain attention, an unfused optimizer, whole logits and no compilation.
Writes throughput.json and table.txt; with --profile also profile.txt, where the time of a denoiser step goes.
How long: small about 8 minutes on 2 CPU cores. paper is meant for a GPU; give --seconds 12 for a minute a case.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the rooms, from any directory

from utils.errors import UserError, one_line
from utils.runs import git_commit, package_versions, write_json, write_text

PARTS = ("denoiser", "autoencoder", "sampling", "guidance")
PROJECTED = {"denoiser": 250_000, "autoencoder": 50_000}  # steps of the published runs


class Machine:
    """What arithmetic and memory can do at best, of several tries: beside other work a single one may be slow."""

    def __init__(self, device: Any, dtypes: dict[str, Any]) -> None:
        self.device, self.dtypes = device, dtypes
        self.products, self.copies = dict.fromkeys(dtypes, 0.0), 0.0

    def measure(self) -> None:
        from benchmarks.throughput_cases import bytes_per_second, products_per_second

        for name, dtype in self.dtypes.items():
            self.products[name] = max(self.products[name], products_per_second(self.device, dtype))
        self.copies = max(self.copies, bytes_per_second(self.device))


def measure(cases: list[Any], machine: Machine, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of the table, in the order of cases. seconds: of one case in one round, about."""
    import torch

    from benchmarks.throughput_cases import LOSSES, wait

    device = machine.device

    counts: list[int] = []
    for case in cases:
        print(f"warm-up: {case.part}, {case.name}", file=sys.stderr, flush=True)
        case.run(LOSSES if case.part in PROJECTED else 2)
        wait(device)
        once = _timed(case, 1, device)
        counts.append(max(1, round(seconds / max(once, 1e-6))))
    times: list[list[float]] = [[] for _ in cases]
    memory = [0] * len(cases)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        machine.measure()
        for i, (case, count) in enumerate(zip(cases, counts, strict=True)):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            times[i].append(_timed(case, count, device) / count)
            if device.type == "cuda":
                memory[i] = max(memory[i], torch.cuda.max_memory_allocated(device))
    return [
        _row(case, count, spent, held) for case, count, spent, held in zip(cases, counts, times, memory, strict=True)
    ]


def _timed(case: Any, count: int, device: Any) -> float:
    from benchmarks.throughput_cases import wait

    wait(device)
    began = time.perf_counter()
    case.run(count)
    wait(device)
    return time.perf_counter() - began


def _row(case: Any, count: int, seconds: list[float], memory: int) -> dict[str, Any]:
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
        steps, measured = PROJECTED[case.part], count * len(seconds)
        row["projection"] = (
            f"{steps:,} steps in {steps / median / 60:.1f} min, projected from {measured:,} measured steps"
        )
        row["first_losses"] = case.losses
        row["parameters_trained"] = case.parameters
    return row


def bounds(rows: list[dict[str, Any]], cases: list[Any], facts: dict[str, Any]) -> None:
    """What arithmetic and memory would allow beside what was measured; counts operations with everything off."""
    from benchmarks.throughput_cases import operations

    for row, case in zip(rows, cases, strict=True):
        if case.part == "sampling" and not case.switches.compile:
            peak = facts["matmul_flops_per_second"]["bfloat16" if case.switches.bf16 else "float32"]
            flops = operations(case)
            row |= {
                "model_flops_per_step": flops,
                "flop_utilisation": row["steps_per_second"]["median"] * flops / peak,
                "steps_per_second_allowed": 1 / max(flops / peak, case.bytes_read / facts["copy_bytes_per_second"]),
            }
    for part in PROJECTED:
        own = [(row, case) for row, case in zip(rows, cases, strict=True) if row["part"] == part]
        for row, case in own:
            if case.switches.compile:  # a compiled network is opaque to the counter; its cache-only twin is not
                twin = next((c for r, c in own if c.switches.cache and not c.switches.compile), own[-1][1])
            else:
                twin = case
            flops = operations(twin)
            peak = facts["matmul_flops_per_second"]["bfloat16" if case.switches.bf16 else "float32"]
            # gradients for clipping; weights, gradients and two moments; the average: what a step reads and writes
            moved = 4 * case.parameters * (3 + 7 + (3 if part == "denoiser" else 0))
            fastest = 1 / max(flops / peak, moved / facts["copy_bytes_per_second"])
            rate = row["steps_per_second"]["median"]
            row |= {
                "model_flops_per_step": flops,
                "flop_utilisation": rate * flops / peak,
                "steps_per_second_allowed": fastest,
            }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The comparisons that the text of a record quotes."""
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
    for batch, against in ((128, "two calls"), (1, "unguided")):
        if ("guidance", f"guided, batch {batch}") in rate:
            guided, other = (rate["guidance", f"{name}, batch {batch}"] for name in ("guided", against))
            found[f"guidance: seconds of a guided step / {against}, batch {batch}"] = other / guided
    return found


def differences(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Largest relative difference of the first losses from those with everything off."""
    found = {}
    for part in PROJECTED:
        own = {row["case"]: row["first_losses"] for row in rows if row["part"] == part}
        base = own.get("everything off", [])
        for case, losses in own.items():
            if base and case not in ("everything off", "muon"):
                found[f"{part}: {case}"] = max(abs(a - b) / abs(b) for a, b in zip(losses, base, strict=True))
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['device']}, {result['threads']} threads, size {result['size']}; medians of {result['rounds']} rounds"
    ]
    peaks = ", ".join(f"{k} {v / 1e12:.3g} TFLOP/s" for k, v in result["matmul_flops_per_second"].items())
    lines.append(f"matrix products {peaks}; copies {result['copy_bytes_per_second'] / 1e9:.3g} GB/s")
    lines += [f"not on this machine: {', '.join(result['not_here'])}"] if result["not_here"] else []
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
    """Where the time of a step goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profiled(activities=activities) as found:
        case.run(10)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=30)


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--size", choices=("small", "paper"), default=None, help="default: paper on CUDA, else small")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a case in a round")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args(argv)
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
        bench = Bench(SIZES[size], device, Path(folder))
        not_here = [n for n, there in (("bf16 instructions", bench.bf16), ("compile", bench.compiles)) if not there]
        dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if bench.bf16 else {})
        result: dict[str, Any] = {
            "size": size,
            "layout": vars(SIZES[size]),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "not_here": not_here,
            "versions": dict(package_versions()),
            "git_commit": git_commit(),
        }
        machine = Machine(device, dtypes)
        cases = bench.cases(parts)
        rows = measure(cases, machine, args.rounds, args.seconds)
        result |= {"matmul_flops_per_second": machine.products, "copy_bytes_per_second": machine.copies}
        bounds(rows, cases, result)
        if args.profile and "denoiser" in parts:
            write_text(args.output_dir / "profile.txt", profile(cases[0], device))
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
