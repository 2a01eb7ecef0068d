"""The model card of a saved pipeline: data, scores with their protocol, limits and license, as far as the run records
them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dataset_utils.catalog import DATASETS
from pipelines.load_run import LoadedRun
from pipelines.pretrained.arguments import without_folders
from pipelines.pretrained.folder import SCORES
from utils.cli.flags import shown
from utils.errors import UserError
from utils.terminal import single_line

LIBRARY = "latent-text-diffusion"
EVALUATIONS = ("eval-test", "eval-valid")  # names of results in the folder evaluation/ of a run
MOST_ROWS = 40  # of the table of scores; evaluation.json holds all
_PATHS = ("path", "folder", "file", "name", "scorer", "classifier", "encoder", "bertscore_model")


@dataclass(frozen=True)
class CardOptions:
    """What a run does not know about itself."""

    repo_id: str = ""  # of the hub, as in owner/name; empty: the card names the folder
    license: str | None = None  # an identifier of the hub, such as mit or cc-by-4.0
    language: str | None = None  # a code, such as en
    name: str = ""  # of the model; empty: the last part of repo_id

    def __post_init__(self) -> None:
        for name, pattern in (("license", r"[a-z0-9][a-z0-9.-]{1,40}"), ("language", r"[a-z]{2,3}(-[A-Za-z]{2,4})?")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and re.fullmatch(pattern, value)):
                raise UserError(f"{name} is {shown(value)}: give a code of the hub, such as 'mit' or 'en'")


def read_scores(run: Path) -> dict[str, Any]:
    """Results of a run folder by name (eval-test, eval-valid), or those that came with a saved pipeline."""
    found = {name: _read(run / "evaluation" / f"{name}.json") for name in EVALUATIONS}
    found = {name: result for name, result in found.items() if result}
    return found or _read(run / SCORES)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def portable_scores(scores: Any, key: str = "") -> Any:
    """Scores and protocols without folders of this machine: of a path only its last part stays."""
    if isinstance(scores, Mapping):
        return {name: portable_scores(value, name) for name, value in scores.items()}
    if isinstance(scores, list):
        return [portable_scores(value, key) for value in scores]
    if isinstance(scores, str) and (scores.startswith(("/", "~", "\\")) or key in _PATHS or scores[1:3] == ":\\"):
        return without_folders(scores)
    return scores


def make_card(
    run: LoadedRun, args: Mapping[str, Any], flags: Mapping[str, Any], scores: Mapping[str, Any], options: CardOptions
) -> ModelCard:
    """The card. args: args.json of the saved folder. flags: its sampling flags. scores: those of read_scores."""
    name = options.name or options.repo_id.rpartition("/")[2] or "a text diffusion model"
    data = ModelCardData(
        language=options.language,
        license=options.license,
        library_name=LIBRARY,
        pipeline_tag="text2text-generation" if args.get("seq2seq") else "text-generation",
        tags=["text-diffusion", "latent-diffusion", "pytorch"],
        base_model=_hub_id(_language_model(run, args)),
        model_name=single_line(name),
        eval_results=list(_eval_results(args, scores)) or None,
    )
    parts = (
        f"# {_plain(name)}\n\n{_summary(run, args)}",
        _usage(run, options, args),
        _section("Model", _table(("part", "value"), _model_rows(run, args, flags))),
        _section("Training data", _data(args)),
        _section("Scores", _scores(scores)),
        _section("Limits", _bullets(_limits(run, args, scores))),
        _section("License", _license(args, options)),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n", ignore_metadata_errors=True)


# ---------------------------------------------------------------------------------------------------------- sections


def _summary(run: LoadedRun, args: Mapping[str, Any]) -> str:
    space = {
        "compressed": "the latents of a language autoencoder",
        "sentence": "frozen embeddings of texts, which a language model decodes",
        "states": "the states of a language model's encoder",
        "embeddings": "token embeddings",
    }[str(args.get("latent_space"))]
    kinds = ["class-conditional"] * bool(run.class_names) + ["source-conditional"] * bool(args.get("seq2seq"))
    kinds += ["distilled"] * (args.get("distill_run") is not None)
    which = ", ".join(kinds).capitalize() if kinds else "Unconditional"
    return f"{which} diffusion model of text on {space}, saved by {LIBRARY}."


def _usage(run: LoadedRun, options: CardOptions, args: Mapping[str, Any]) -> str:
    place = options.repo_id or "path/to/this/folder"
    call = "pipe(num_samples=4, generator=0)"
    if args.get("seq2seq"):
        call = 'pipe(source="A source text.", num_samples=4, generator=0)'
    elif run.class_names:
        call = f"pipe(num_samples=4, class_id={_code(run.class_names[0])}, generator=0)"
    lines = (
        "from pipelines.text_diffusion import TextDiffusionPipeline",
        "",
        f"pipe = TextDiffusionPipeline.from_pretrained({json.dumps(place)})",
        f'print(*{call}.texts, sep="\\n")',
    )
    return _section(
        "Use",
        f"In a working copy of {LIBRARY}:\n\n```python\n" + "\n".join(lines) + "\n```\n\nThe files are safetensors, "
        "JSON and text. Loading runs no code of this folder, and checks every file by its SHA-256.",
    )


def _model_rows(run: LoadedRun, args: Mapping[str, Any], flags: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    config, model, space = run.settings.config, run.components.model, run.components.space
    yield "latent space", f"{args.get('latent_space')}, {space.length} positions of {space.dim} channels"
    yield "denoiser", f"{args.get('denoiser_variant')}, {_count(model.denoiser):,} parameters"
    if args.get("latent_space") != "embeddings":
        yield "language model", _language_model(run, args)
        of_decoder = run.autoencoder_args if args.get("text_decoder") else {}
        known = args.get("language_model_fingerprint") or of_decoder.get("language_model_fingerprint")
        yield "fingerprint of the language model", known or of_decoder.get("encoder_fingerprint")
    if args.get("text_decoder"):
        yield "decoder", without_folders(run.autoencoder_args.get("decoder_model"))
        yield "fingerprint of the decoder", run.autoencoder_args.get("decoder_fingerprint")
    if run.class_names:
        yield "classes", ", ".join(run.class_names)
    yield "longest text", f"{config.language_model.max_seq_len} tokens"
    yield "objective", args.get("objective")
    yield "noise schedule", args.get("beta_schedule") or args.get("train_schedule")
    parts = (args.get(name) or 1 for name in ("train_batch_size", "gradient_accumulation_steps", "num_devices"))
    yield "training", f"{run.step:,} steps of {math.prod(parts):,} texts (averaged weights)"
    yield "sampler", f"{config.sampling.sampler}, {config.sampling.sampling_timesteps} steps"
    if flags:
        yield "flags of this folder", ", ".join(f"{name}={value}" for name, value in flags.items())
    versions = args.get("package_versions")
    if isinstance(versions, Mapping):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _data(args: Mapping[str, Any]) -> str:
    name = args.get("dataset_name") or args.get("train_file") or args.get("data_dir") or "not recorded"
    lines = [f"Corpus: {_plain(name)}."]
    row = DATASETS.get(str(args.get("dataset_name")))
    if row is not None:
        lines[0] = f"Corpus: {_plain(name)}, {_plain(row.description)}. License of the texts: {_plain(row.license)}."
    corpus = args.get("corpus")
    splits = corpus.get("splits") if isinstance(corpus, Mapping) else None
    if not isinstance(splits, Mapping):
        return lines[0] + " The run recorded no digest of it."
    columns = ("texts", "sources", "labels")
    rows = []
    for split, digest in splits.items():
        digests = [f"{c} {digest[c]}" for c in columns if digest.get(c)]
        rows.append((split, f"{digest.get('num_texts', 0):,}", "; ".join(digests)))
    return lines[0] + "\n\n" + _table(("split", "number", "SHA-256 of each column"), rows)


def _scores(scores: Mapping[str, Any]) -> str:
    if not scores:
        return "This run was not evaluated: `python train_text_diffusion.py --eval --resume_dir RUN` scores it."
    parts = []
    for name, result in scores.items():
        rows = list(_score_rows(result))
        title = f"Split: {_plain(name.removeprefix('eval-'))}."
        if len(rows) > MOST_ROWS:
            title += f" The first {MOST_ROWS} of {len(rows)} scores; {SCORES} holds all."
        parts.append(f"{title}\n\n{_table(('metric', 'value'), rows[:MOST_ROWS])}")
        protocol = [f"{key}: {value}" for key, value in _flat(_protocol(result)) if "versions" not in key]
        parts.append("Protocol; scores are comparable only where it agrees:\n\n" + _bullets(protocol))
    return "\n\n".join(parts)


def _score_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    several = any(isinstance(value, Mapping) and "mean" in value for value in result.values())
    for key, value in result.items():
        if isinstance(value, Mapping) and _is_number(value.get("mean")):
            n = len(value.get("values") or ())
            yield key, f"{value['mean']:.4g} ± {value.get('std') or 0:.2g} ({n} seeds)"
        elif _is_number(value) and not several and not key.startswith("speed/"):
            yield key, f"{value:.4g}"


def _limits(run: LoadedRun, args: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[str]:
    limit = run.settings.config.language_model.max_seq_len
    yield f"A text has at most {limit} tokens, and resembles the training texts in language, subject and style."
    yield "The texts are made up. They may be false or offensive; nothing filters them."
    yield "It may repeat training texts: see the scores of memorization and copying, where there are any."
    if args.get("distill_run") is not None:
        yield f"It is a distilled student, which samples in {args.get('sampling_timesteps')} steps only."
    if run.class_names and not run.has_null_class:
        yield "It was trained without a null class: each call names a class, and guidance is not possible."
    if not scores:
        yield "Its quality was not measured."
    notes = (part.get("note") for result in scores.values() for part in _protocols(result))
    yield from dict.fromkeys(f"{note[:1].upper()}{note[1:]}." for note in notes if isinstance(note, str))


def _license(args: Mapping[str, Any], options: CardOptions) -> str:
    row = DATASETS.get(str(args.get("dataset_name")))
    of = f" The training texts: {_plain(row.license)}." if row is not None and row.license else ""
    if options.license is None:
        return (
            "Not stated. The license of the weights depends on those of the training texts and of the language model: "
            f"state it before you publish them.{of}"
        )
    return f"The weights: {options.license}, as stated by whoever saved them.{of}"


def _eval_results(args: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Scores of samples of all classes, for the metadata of the hub."""
    name = single_line(args.get("dataset_name") or args.get("train_file") or "a private corpus")
    for split, result in scores.items():
        for key, value in result.items():
            number = value.get("mean") if isinstance(value, Mapping) else value
            if not key.startswith("model/") or re.search(r"cond\d|empty|_seed\d", key) or not _is_number(number):
                continue
            yield EvalResult(
                task_type="text-generation", dataset_type="text", dataset_name=name,
                dataset_split=split.removeprefix("eval-"), metric_type=key.rpartition("/")[2], metric_name=key,
                metric_value=round(float(number), 6),
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- parts


def _language_model(run: LoadedRun, args: Mapping[str, Any]) -> str | None:
    """The name of the language model of the latents, as the run records it; None without one."""
    if args.get("latent_space") == "embeddings":
        return None
    name = "encoder_model" if args.get("latent_space") == "sentence" else "enc_dec_model"
    return without_folders((run.autoencoder_args or args).get(name))


def _protocol(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(_protocols(result)), {})


def _protocols(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The protocols of a result: one for each seed."""
    found = result.get("protocol")
    runs = found.get("runs", [found]) if isinstance(found, Mapping) else []
    yield from (run for run in runs if isinstance(run, Mapping))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _bullets(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _table(head: Sequence[str], rows: Iterator[tuple[Any, ...]] | Sequence[tuple[Any, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell if cell == "---" else _plain(cell) for cell in line) + " |" for line in lines
    )


def _plain(text: Any) -> str:
    """A text of a run as text of the card: on one line, and neither Markdown nor HTML."""
    return re.sub(r"([\\`*\[\]<>|#$&]|__|~~|!\[)", lambda m: "".join(f"\\{c}" for c in m[1]), single_line(text))


def _code(text: str) -> str:
    """A text as a string of Python in a block of code, which it does not end."""
    return json.dumps(single_line(text)).replace("`", "\\u0060")


def _hub_id(name: Any) -> str | None:
    return name if isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else None


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
