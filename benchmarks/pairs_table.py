"""Markdown tables and samples of the results of benchmarks/pairs.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.terminal import single_line

if TYPE_CHECKING:
    from benchmarks.pairs_metrics import PairsEvaluator

NUM_SHOWN = 40  # sources in samples.txt
KINDS = {"one sample": "", "MBR-{k}": "mbr_", "oracle-{k}": "oracle_", "chance": "chance_"}
COLUMNS = {
    "slots kept": "kept",
    "BLEU": "diffuseq_bleu",
    "sacreBLEU": "sacrebleu",
    "ROUGE-L": "rougeL",
    "BERTScore": "bertscore",
    "dist-1": "dist1",
    "length": "mean_length",
    "perplexity": "perplexity",
}
AMONG = {"self-BLEU": "diffuseq_self_bleu", "div-4": "div4"}  # of the candidates of a source


def tables(metadata: Mapping[str, Any]) -> str:
    """One table of all systems at the largest number of steps, one of quality by number of steps."""
    k, results = metadata["protocol"]["candidates"], metadata["results"]
    columns = {
        name: key
        for name, key in COLUMNS.items()
        if any(key in row["metrics"] for row in results)  # BERTScore is optional, and few corpora have slots
    }
    head = ["", *columns, *AMONG]
    best = max(metadata["protocol"]["steps"])
    by = [key for key in ("kept", "diffuseq_bleu", "rougeL") if key in columns.values()]
    title = {key: name for name, key in columns.items()}
    lines = []
    for row in (row for row in results if row["steps"] == best):
        for kind, prefix in KINDS.items():
            cells = [_cell(row["metrics"].get(prefix + key)) for key in columns.values()]
            among = [_cell(row["metrics"].get(key)) if not prefix else "" for key in AMONG.values()]
            lines.append([f"{row['name']}, {kind.format(k=k)}", *cells, *among])
    for name, found in metadata["baselines"].items():
        lines.append([name, *(_cell(found.get(key)) for key in columns.values()), *("" for _ in AMONG)])
    by_steps = [
        [
            row["name"],
            str(row["steps"]),
            *(_cell(row["metrics"].get(p + key)) for key in by for p in ("", "mbr_")),
            *(_cell(row["metrics"].get(key)) for key in ("dist1", "perplexity")),
            f"{row['seconds_per_source']:.3f}",
        ]
        for row in results
    ]
    names = [title[key] + kind for key in by for kind in ("", f", MBR-{k}")]
    names += ["dist-1", "perplexity", "seconds a source"]
    first = f"{metadata['dataset']}: {metadata['protocol']['sources']} test sources, {best} sampling steps"
    return "\n".join([first, "", *_table(head, lines), "", *_table(["", "steps", *names], by_steps), ""])


def samples(evaluator: PairsEvaluator) -> str:
    """The samples of every system for the same sources, at the largest number of steps."""
    rows = [row for row in evaluator.rows if row.steps == max(evaluator.steps)]
    parts = []
    for i, record in enumerate(rows[0].seeds[0]["records"][:NUM_SHOWN]):
        part = {"source": record["source"], "reference": record["reference"]}
        for row in rows:
            own = row.seeds[0]["records"][i]
            part |= {f"{row.name}, one sample": own["sample"], f"{row.name}, MBR": own["chosen"]}
        width = max(map(len, part)) + 2
        parts.append("".join(f"{name:<{width}}{single_line(text) or '(empty)'}\n" for name, text in part.items()))
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
