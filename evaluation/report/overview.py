"""What was trained: the main settings of a run, its parameters, its data with their digests, and every flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.run_files import Run

# Label, and the format of its value with the names of flags; a row whose flags a run lacks is left out.
FACTS = (
    ("Program", "{program}"),
    ("Corpus", "{dataset_name}"),
    ("Training file", "{train_file}"),
    ("Language model", "{enc_dec_model}"),
    ("Autoencoder", "{latent_model_path}"),
    ("Latent space", "{latent_space}"),
    ("Latents", "{latent_length} × {latent_dim}"),
    ("Latents", "{num_encoder_latents} × {dim_ae}"),
    ("Denoiser", "width {tx_dim}, {tx_depth} blocks"),
    ("Language model", "width {d_model}, {layers} + {layers} blocks, {heads} heads"),
    ("Objective", "{objective}, {loss_type} loss"),
    ("Noise schedule", "{train_schedule}"),
    ("Distilled from", "{distill_run}"),
    ("Training", "{num_train_steps:,} steps of {train_batch_size} × {gradient_accumulation_steps} texts"),
    ("Optimizer", "{optimizer}, learning rate {learning_rate:g}, {lr_schedule} after {lr_warmup_steps} steps"),
    ("Averaged weights", "decay {ema_decay}"),
    ("Precision", "{mixed_precision}"),
    ("Sampler", "{sampler}, {sampling_timesteps} steps, guidance {cls_free_guidance:g}"),
    ("Longest text", "{max_seq_len} tokens"),
    ("Seed", "{seed}"),
    ("Device", "{device_name} × {num_devices}"),
    ("Code", "{git_commit}"),
)
HIDDEN = ("corpus", "package_versions", "models_relative")  # entries that have rows of their own


@dataclass(frozen=True)
class SplitRow:
    """One split of the corpus."""

    name: str
    texts: int | None
    digest: str
    median: str  # tokens
    longest: str
    truncated: str
    duplicates: str


@dataclass(frozen=True)
class Overview:
    run: Run
    facts: list[tuple[str, str]]
    parts: list[tuple[str, int, int]]  # name, trained, frozen
    splits: list[SplitRow]
    settings: list[tuple[str, str]]
    versions: str


def overview(run: Run) -> Overview:
    """Everything that the section of one run shows."""
    parts = [(name, counts["trained"], counts["total"] - counts["trained"]) for name, counts in run.parameters.items()]
    trained = run.args.get("trainable_params")
    if not parts and isinstance(trained, int):
        parts = [("all parts", trained, -1)]
    versions = run.args.get("package_versions")
    return Overview(
        run,
        _facts(run.args),
        parts,
        _splits(run),
        [(key, _value(value)) for key, value in sorted(run.args.items()) if key not in HIDDEN],
        ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, Mapping) else "",
    )


def _facts(args: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {key: value for key, value in args.items() if value is not None and value != []}
    facts = []
    for label, form in FACTS:
        try:
            facts.append((label, form.format_map(known)))
        except (KeyError, ValueError, TypeError):  # an absent flag, or a value of another kind
            continue
    if known.get("self_condition"):
        facts = [(label, f"{text}, self-conditioned" if label == "Denoiser" else text) for label, text in facts]
    return facts


def _splits(run: Run) -> list[SplitRow]:
    digests = _entries(_entries(run.args.get("corpus")).get("splits"))
    figures = _entries(run.corpus.get("splits"))
    rows = []
    for name in dict.fromkeys([*digests, *figures]):
        digest, figure = _entries(digests.get(name)), _entries(figures.get(name))
        tokens = _entries(figure.get("tokens"))
        texts = digest.get("num_texts", figure.get("rows"))
        rows.append(
            SplitRow(
                str(name),
                texts if isinstance(texts, int) else None,
                str(digest.get("texts") or ""),
                _value(tokens.get("50", "")),
                _value(tokens.get("100", "")),
                _share(figure.get("truncated")),
                _share(figure.get("duplicates")),
            )
        )
    return rows


def _entries(value: Any) -> Mapping[str, Any]:
    """A dictionary of a file; an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, (int, float)) else ""


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_value, value)) or "none"
    return str(value)
