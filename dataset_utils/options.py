"""Flags that name the corpus."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DataOptions:
    dataset_name: str | None = field(
        default=None,
        metadata=dict(
            help="a corpus of the registry (python -m dataset_utils lists them), a hub id (org/name or "
            "org/name:configuration), or several joined by '+'"
        ),
    )
    data_dir: str | None = field(
        default=None,
        metadata=dict(
            help="with --dataset_name: the root that holds the corpus, or its folder; alone: your own "
            "train/valid/test files"
        ),
    )
    train_file: str | None = field(
        default=None, metadata=dict(help="your own training texts: .txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz")
    )
    valid_file: str | None = field(
        default=None, metadata=dict(help="validation texts; unset: cut from the training file")
    )
    test_file: str | None = field(default=None, metadata=dict(help="test texts; unset: cut from the training file"))
    text_column: str | None = field(default=None, metadata=dict(help="column of the text; unset: found by its name"))
    label_column: str | None = field(
        default=None,
        metadata=dict(help="column of the class label; unset: found by its name; none: not used", none_is_a_text=True),
    )
    source_column: str | None = field(
        default=None,
        metadata=dict(help="column of the source text; unset: found by its name; none: not used", none_is_a_text=True),
    )
    max_train_texts: int | None = field(
        default=None, metadata=dict(help="use only the first so many training texts", unit="texts")
    )


@dataclass
class PackingOptions:
    """How texts become sequences whose beginning is given (dataset_utils/packing)."""

    trim_sources: bool = field(
        default=False,
        metadata=dict(help="shorten a source that alone fills --max_seq_len, instead of refusing it"),
    )
    unlabelled: bool = field(
        default=False,
        metadata=dict(
            help="pre-train on running text: texts are joined and cut into blocks of --max_seq_len tokens, of which a "
            "random beginning is given"
        ),
    )
    prefix_share: float = field(
        default=0.5,
        metadata=dict(help="largest share of a block that --unlabelled gives", unit="probability"),
    )
