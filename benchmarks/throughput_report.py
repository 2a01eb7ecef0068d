"""Rows, ratios and the table of benchmarks/throughput.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.throughput_machine import allocated_bytes, peak_bytes, timed
from benchmarks.throughput_sizes import PROJECTED, Case

SLOWER_BELOW = 0.97  # ratio of a case with everything on to the same case without one switch
CACHED_STATES = (
    "all on of the autoencoder reads cached states (--cache_encoder_states float16), which are off by default: "
    "the recipe is without cache"
)


@dataclass
class Measured:
    """A case and its measurements."""

    case: Case
    count: int  # steps in a round
    seconds: list[float] = field(default_factory=list)  # of a step, by round
    memory: int = 0  # peak bytes of the case alone

    def take(self, device: torch.device) -> None:
        """Time one round."""
        before = allocated_bytes(device, self.case.pid)
        self.seconds.append(timed(self.case, self.count, device) / self.count)
        # without the memory of the other cases
        self.memory = max(self.memory, peak_bytes(device, self.case.pid) - before + self.case.bytes_held)


def report(measured: list[Measured], metadata: dict[str, Any]) -> dict[str, Any]:
    """The contents of throughput.json. metadata: of the machine and the command; measured: with a round or more."""
    rows = [row_of(one) for one in measured]
    bounds(rows, [one.case for one in measured], metadata)
    found, losses = ratios(rows), differences(rows)
    dropout = metadata["layout"]["dropout"]  # then losses are those of other masks, and none is judged
    return metadata | {
        "ratios": found,
        "slower": slower(found),
        "loss_differences": {name: value for name, (value, _) in losses.items()},
        "loss_precision": {} if dropout else {name: allowed for name, (_, allowed) in losses.items()},
        "beyond_precision": [name for name, (value, allowed) in losses.items() if value > allowed and not dropout],
        "rows": rows,
    }


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
    """Ratios of speeds: medians over rounds of the ratio within a round, since a busy moment slows down both cases.

    "PART: all on / X" is how many times as fast as X the case with everything on is.
    """
    rate = {(row["part"], row["case"]): row["steps_per_second"]["rounds"] for row in rows}

    def ratio(part: str, fast: str, slow: str) -> float:
        pairs = zip(rate[part, fast], rate[part, slow], strict=False)  # the last round may have been cut off
        return statistics.median(a / b for a, b in pairs)

    found = {}
    for part in PROJECTED:
        for other, case in rate:
            if other == part and case != "all on" and (part, "all on") in rate:
                found[f"{part}: all on / {case}"] = ratio(part, "all on", case)
        if (part, "without bf16") in rate and (part, "everything off") in rate:
            found[f"{part}: without bf16 / everything off"] = ratio(part, "without bf16", "everything off")
    for part, case in rate:
        title, _, variant = case.rpartition(", ")
        if part == "sampling" and variant != "all on" and (part, f"{title}, all on") in rate:
            found[f"sampling: {title}: all on / {variant}"] = ratio(part, f"{title}, all on", case)
    for part, case in rate:
        name, _, batch = case.partition(", batch ")
        if part == "guidance" and name == "guided":
            against = "unguided" if batch == "1" else "two calls"
            if (part, f"{against}, batch {batch}") in rate:
                found[f"guidance: seconds of a guided step / {against}, batch {batch}"] = ratio(
                    part, f"{against}, batch {batch}", case
                )
    return found


def slower(found: dict[str, float]) -> list[str]:
    """The ratios of switches that make a case slower than SLOWER_BELOW times itself without them."""
    of_switches = {k: v for k, v in found.items() if "all on / with" in k or k.endswith("all on / everything off")}
    return [name for name, value in of_switches.items() if value < SLOWER_BELOW]


ROUNDING = 2.0**-14  # of a loss in float32, 24 bits of mantissa: a thousand roundings, over the steps that are compared
IN_BF16 = 2.0**-8  # the same in bfloat16, 8 bits: a loss is a mean of many numbers, so that one rounding is left
# Switch of training -> largest relative difference of a loss with and without it that is rounding, in float32. In
# bfloat16 it is IN_BF16 where the switch rounds at all. Of dropout there is none: other masks give other losses.
PRECISION: Mapping[str, float] = {
    "bf16": IN_BF16,
    "cache": 2.0**-10,  # float16, 11 bits
    "attention": ROUNDING,
    "fused": ROUNDING,
    "chunked": ROUNDING,
    "compile": ROUNDING,
    "frozen_copy": 0.0,
    "freed_memory": 0.0,
}


def precision(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest relative difference of losses that the switches in which two cases of training differ explain."""
    found = max((value for name, value in PRECISION.items() if one[name] != other[name]), default=0.0)
    return max(found, IN_BF16) if found and (one["bf16"] or other["bf16"]) else found


def differences(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Largest relative difference of the first losses of two cases, and the precision that explains it.

    "PART: CASE" is from the case "everything off", "PART: all on / CASE" from the case with everything on.
    """
    found = {}
    for part in PROJECTED:
        own = {row["case"]: row for row in rows if row["part"] == part and row["case"] != "muon"}
        pairs = {case: ("everything off", case) for case in own}
        pairs |= {f"all on / {case}": ("all on", case) for case in own if case.startswith(("with ", "without "))}
        for title, (base, case) in pairs.items():
            if base in own and base != case:
                one, other = own[base], own[case]
                losses = zip(other["first_losses"], one["first_losses"], strict=False)
                largest = max((abs(a - b) / abs(b) for a, b in losses), default=0.0)
                found[f"{part}: {title}"] = largest, precision(one["switches"], other["switches"])
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
    width = max(len(row["case"]) for row in result["rows"]) + 2
    head = ("steps/s", 9), ("range", 18), ("texts/s", 10), ("tokens/s", 11), ("util.", 7), ("allowed", 9), ("memory", 9)
    lines.append(f"{'part':<12}{'case':<{width}}" + "".join(f"{title:>{size}}" for title, size in head))
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
        lines.append(f"{row['part']:<12}{row['case']:<{width}}" + "".join(cells))
    lines += ["", *(f"{name:<70}{value:.3f}" for name, value in result["ratios"].items())]
    if any(row["part"] == "autoencoder" and row["switches"]["cache"] for row in result["rows"]):
        lines.append(CACHED_STATES)
    lines += ["", f"switches that make a case slower (below {SLOWER_BELOW}): {', '.join(result['slower']) or 'none'}"]
    masks = "; dropout masks of other kernels differ" if result["layout"]["dropout"] else ", and what rounding explains"
    lines += ["", f"largest relative difference of the first losses from those with everything off or on{masks}:"]
    allowed = {name: f"  of {value:.1e}" for name, value in result["loss_precision"].items()}
    lines += [f"{name:<70}{value:.1e}{allowed.get(name, '')}" for name, value in result["loss_differences"].items()]
    if allowed:
        lines.append(f"beyond it: {', '.join(result['beyond_precision']) or 'none'}")
    lines += [
        "",
        *(f"{row['part']}, {row['case']}: {row['projection']}" for row in result["rows"] if "projection" in row),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"
