"""Evaluation results as JSON and text files, and as a table for the terminal. Computes no metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.run_folder import write_json, write_text
from utils.terminal import printable, single_line


def write(
    folder: Path | str, name: str, metrics: Mapping[str, Any], samples: Sequence[str] | Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write {name}.json (metrics and protocol), {name}.txt (as a table), {name}-samples.json and {name}-samples.txt.

    samples: texts, or records with a text under "text" or "pred"; one text per line in the text file. Numbers that are
    not finite are written as null. Every file is written atomically.
    """
    folder = Path(folder)
    write_json(folder / f"{name}.json", nan_to_none(metrics))
    write_text(folder / f"{name}.txt", table(metrics) + "\n")
    if samples:
        write_json(folder / f"{name}-samples.json", nan_to_none(list(samples)))
        write_text(folder / f"{name}-samples.txt", "".join(single_line(_text(sample)) + "\n" for sample in samples))


def table(metrics: Mapping[str, Any], title: str = "") -> str:
    """Format keys and values in two columns (mean and deviation over several seeds), followed by the notes."""
    rows = [(printable(key), _number(value)) for key, value in metrics.items() if key != "protocol"]
    width = max((len(key) for key, _ in rows), default=0)
    lines = [printable(title)] if title else []
    lines += [f"  {key:<{width}}  {number}" for key, number in rows]
    return "\n".join(lines + [f"  note: {note}" for note in notes(metrics)])


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return the warnings of all protocols in the result: not comparable, too few texts, skipped metrics; each once."""
    protocol = metrics.get("protocol") or {}
    found: dict[str, None] = {}  # a dict keeps the order
    for metadata in protocol.get("runs", [protocol]):
        if not metadata:
            continue
        if "note" in metadata:
            found[metadata["note"]] = None
        if metadata.get("spelling") == "tokenizer":
            changed = 1 - min(metadata["unchanged_by_tokenizer"].values())
            found[
                f"the tokenizer changes {changed:.1%} of the texts: samples and real texts are compared in its spelling"
            ] = None
        for part in (metadata, metadata.get("classes", {})):
            if part.get("mauve_few_samples"):
                most = part.get("available", metadata.get("available"))
                advice = "sample 1,000 or more"
                if most is not None and most < 1000:
                    advice += f", against more than the {most:,} references that there are: name a larger split"
                if most is not None and most == part["mauve"]["n"]:  # no --num_samples helps
                    advice = f"there are no more than {most:,} references to compare with: name a larger split"
                found[f"MAUVE of {part['mauve']['n']} texts per side is mostly noise: {advice}"] = None
        if metadata.get("mbr_ties", 0) > 0.5:
            found[
                f"MBR: the candidates of {metadata['mbr_ties']:.0%} of the sources differ, but all have the same "
                f"{metadata['mbr_utility']} with each other, so the first was taken: choose another --mbr_utility"
            ] = None
        found |= dict.fromkeys(metadata.get("skipped", ()))
        if "note" in metadata.get("classifier", {}):
            found[f"classifier {metadata['classifier']['note']}"] = None
        for package in metadata.get("missing_packages", ()):
            found[f"some metrics are skipped: the package {package} is not installed"] = None
    return list(found)


def format_samples(samples: Sequence[str], count: int = 12) -> str:
    """Format the first few texts with numbers, safe to print to a terminal."""
    return "\n".join(f"  {i:2d}  {single_line(text) or '(empty)'}" for i, text in enumerate(samples[:count], start=1))


def nan_to_none(value: Any) -> Any:
    """Replace every number that JSON cannot represent (nan, infinity) by None, in nested dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):  # numbers of numpy and torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(sample: str | Mapping[str, Any]) -> str:
    if isinstance(sample, str):
        return sample
    return str(next((sample[key] for key in ("text", "pred") if key in sample), sample))


def _number(value: Any) -> str:
    if isinstance(value, Mapping) and {"mean", "std"} <= value.keys():
        return f"{_number(value['mean'])} +- {_number(value['std'])} ({len(value.get('values', ()))} seeds)"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    return printable(value)
