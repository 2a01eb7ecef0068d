"""The table of benchmarks/real_text.py, and what it says of each row besides the judges' numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare_systems import markdown
from benchmarks.real_text_corpus import CLASS, SOURCE
from benchmarks.real_text_rows import ENCODER, LANGUAGE_MODEL
from utils.cli.args_io import read_args
from utils.local_models import same_weights
from utils.terminal import single_line

MARK = "*"  # a number of a judge that is a part of the system
DECODER_KEYS = {  # what latents decide: name in the table -> key of validation.json of a decoder or an autoencoder
    "similar to its decoding": "decoder/greedy/similarity",
    "to a sample of it": "decoder/sample/similarity",
    "two samples of one latent": "decoder/samples/similarity",
    "to the decoding of another": "decoder/swapped/similarity",
    "share of latents": "decoder/share_of_latents",
    "BLEU of its decoding": "decoder/greedy/bleu",
    "ROUGE-L": "decoder/greedy/rougeL",
    "nats a token, clean": "decoder/loss_clean",
    "without latents": "decoder/loss_without_latents",
}
OF_VECTORS = ("similarity", "share_of_latents")  # ends of the keys of numbers that an encoder of texts makes


@dataclass(frozen=True)
class Column:
    """A number of the table. judge: the part of a system that makes it, if it is a part; digits: as in format()."""

    key: str  # of the metrics; {scorer} and {encoder} are the names of the judges
    digits: str = "{:.3f}"
    judge: str | None = None
    condition: str | None = None  # only in a corpus with this condition


COLUMNS = {
    "MAUVE, language model": Column("{scorer}_test_mauve", judge=LANGUAGE_MODEL),
    "MAUVE, encoder": Column("{encoder}_test_mauve", judge=ENCODER),
    "MAUVE, own judge": Column("own_judge/mauve"),
    "perplexity, language model": Column("corpus_perplexity", "{:.1f}", LANGUAGE_MODEL),
    "perplexity, own judge": Column("own_judge/corpus_perplexity", "{:.1f}"),
    "linear AUC": Column("linear_auc"),
    "diversity": Column("diversity"),
    "memorization": Column("memorization"),
    "copies": Column("train_copy_rate"),
    "distinct": Column("distinct"),
    "words": Column("words", "{:.1f}"),
    "their deviation": Column("words_deviation", "{:.1f}"),
    "class as asked": Column("class_accuracy", condition=CLASS),
    "BLEU": Column("pairs/sacrebleu", "{:.1f}", condition=SOURCE),
    "ROUGE-L": Column("pairs/rougeL", condition=SOURCE),
    "source covered": Column("pairs/coverage", condition=SOURCE),
}


@dataclass(frozen=True)
class Table:
    """Cells of two tables, and three texts of each row."""

    lines: list[list[str]]
    latents: list[list[str]]  # what latents decide; the head alone without a row that has latents
    texts: dict[str, Sequence[str]]
    notes: str
    notes_on_latents: str

    def markdown(self, describe: str) -> str:
        """The whole file. describe: the protocol, in a paragraph."""
        parts = [markdown(self.lines), describe, self.notes.strip()]
        if len(self.latents) > 1:
            parts += ["What latents decide (cosines of sentence embeddings of held-out texts):", markdown(self.latents)]
            parts.append(self.notes_on_latents.strip())
        for name, texts in self.texts.items():
            shown = "\n".join(f"- {single_line(text)}" for text in texts)
            parts.append(f"The first three texts of {name}:\n\n{shown}")
        return "\n\n".join(part for part in parts if part) + "\n"


def make_table(rows: Mapping[str, Mapping[str, Any]], judges: Mapping[str, str], condition: str) -> Table:
    """The table of all rows. judges: role -> name, in keys of metrics; "" for none. Columns of no row are left out."""
    columns = {
        title: column
        for title, column in COLUMNS.items()
        if column.condition in (None, condition)
        and any(_key(column, judges) in row["metrics"] for row in rows.values())
    }
    lines = [["system", *columns]]
    marked = False
    for name, row in rows.items():
        cells = []
        for column in columns.values():
            is_part = column.judge is not None and column.judge in row.get("parts", ())
            cell = _cell(row["metrics"].get(_key(column, judges)), column.digits)
            marked = marked or (is_part and bool(cell))
            cells.append(cell + MARK if is_part and cell else cell)
        lines.append([name, *cells])
    latents, parts = [["system", *DECODER_KEYS, "compared by"]], False
    for name, row in rows.items():
        found = row.get("decoder") or {}
        if found:
            # where nothing is recorded, the latents themselves were compared
            encoder = row.get("similarity") or {"pooling": "latents", "part_of_system": True}
            is_part = encoder["part_of_system"]
            parts = parts or is_part
            compared_by = "its latents" if encoder["pooling"] == "latents" else Path(encoder["name"]).name
            cells = [_of_decoder(found, key, is_part) for key in DECODER_KEYS.values()]
            latents.append([name, *cells, compared_by])
    note = f"{MARK} This judge is a part of the system, so its number flatters it.\n" if marked else ""
    elsewhere = [name for name, row in rows.items() if row.get("elsewhere")]
    if elsewhere:
        note += (
            f"{', '.join(elsewhere)}: trained on other files than those of this study, which may contain texts of the "
            "own judge.\n"
        )
    minutes = {name: row["minutes"] for name, row in rows.items() if row.get("minutes")}
    if len(set(minutes.values())) > 1:
        shown = ", ".join(f"{name} {value:g}" for name, value in minutes.items())
        note += f"Not all rows had the same wall time, in minutes: {shown}.\n"
    on_latents = f"{MARK} By the encoder that makes the latents, so its number flatters the system.\n" if parts else ""
    return Table(lines, latents, {name: row["texts"] for name, row in rows.items()}, note, on_latents)


def facts_of_run(
    folder: Path,
    parts: Sequence[str] | None = None,
    decoder_run: Path | None = None,
    judges: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """What scores.json says of a run: its pretrained parts, sizes, steps, and how much its latents decide.

    parts: pretrained parts; None: those that its args.json names, unless a recipe has trained them here. decoder_run:
    the run whose decoder writes the texts, if another one than that of the run was typed. judges: part -> the model
    that judges in its place; a part with other weights than its judge is left out.
    """
    args = read_args(folder)
    decoder_run = decoder_run or _decoder_run(folder, args)
    decoder_args = read_args(decoder_run) if decoder_run is not None else {}
    named = {
        LANGUAGE_MODEL: decoder_args.get("decoder_model") or args.get("model"),
        ENCODER: decoder_args.get("encoder_model") or args.get("encoder_model"),
    }
    if parts is None:
        if named[ENCODER] == named[LANGUAGE_MODEL]:
            named[ENCODER] = None  # its own states are the latents: the encoder that judges is no part
        here = folder.parent.resolve()
        parts = [part for part, model in named.items() if model and not Path(model).resolve().is_relative_to(here)]
    parts = [part for part in parts if not _is_other(named.get(part), (judges or {}).get(part))]
    found: dict[str, Any] = {
        "parts": list(parts),
        "train_file": args.get("train_file"),
        "trained_parameters": args.get("trainable_params"),
        "sampler": args.get("sampler"),
        "sampling_timesteps": args.get("sampling_timesteps"),
        "decoding": args.get("decoding"),
    }
    validation = None if decoder_run is None else decoder_run / "validation.json"
    if validation is not None and validation.is_file():
        numbers = json.loads(validation.read_text(encoding="utf-8"))
        found["decoder"] = {key: value for key, value in numbers.items() if key.startswith("decoder/")}
        similarity = numbers.get("protocol", {}).get("similarity")
        if isinstance(similarity, Mapping):  # an older run names the encoder of its latents
            found["similarity"] = dict(similarity)
    seconds = folder.parent / "seconds.json"
    if seconds.is_file():
        found["seconds"] = json.loads(seconds.read_text(encoding="utf-8"))
    return found


def _is_other(model: str | None, judge: str | None) -> bool:
    """Whether a judge is certainly another model than that of the system: both are folders, and the weights differ."""
    return bool(model and judge) and same_weights(str(model), str(judge)) is False


def _decoder_run(folder: Path, args: Mapping[str, Any]) -> Path | None:
    """The run of the decoder that writes the texts, of a text decoder or an autoencoder: that beside a run of the
    recipe, or the one that the run names. Joint training changes the autoencoder, and compares no texts."""
    for name in ("adapted", "decoder", "autoencoder") if args.get("joint_run") is None else ("adapted",):
        if (folder.parent / name / "args.json").is_file() and (folder.parent / "recipe.json").is_file():
            return folder.parent / name
    named = args.get("latent_model_path")
    return Path(named) if named and (Path(named) / "args.json").is_file() else None


def _key(column: Column, judges: Mapping[str, str]) -> str:
    return column.key.format(**judges)


def _cell(value: Mapping[str, Any] | None, digits: str) -> str:
    if value is None or value.get("mean") is None:
        return ""
    text = digits.format(value["mean"])
    return f"{text} ± {digits.format(value['std'])}" if value.get("std") else text


def _of_decoder(found: Mapping[str, Any], key: str, is_part: bool) -> str:
    cell = _number(found.get(key))
    return cell + MARK if cell and is_part and key.endswith(OF_VECTORS) else cell


def _number(value: Any) -> str:
    return "" if not isinstance(value, int | float) else f"{value:.2f}"
