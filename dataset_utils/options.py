"""Flags that name the corpus."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


@dataclass
class DataOptions:
    dataset_name: str | None = flag(
        None,
        "a corpus of the registry (python -m dataset_utils lists them), a hub id (org/name or "
        "org/name:configuration), or several joined by '+'",
        published=True,
    )
    data_dir: str | None = flag(
        None,
        "with --dataset_name: the root that holds the corpus, or its folder; alone: your own train/valid/test files",
        may_change="both",
    )
    train_file: str | None = flag(
        None, "your own training texts: .txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz", may_change="both"
    )
    valid_file: str | None = flag(None, "validation texts; unset: cut from the training file", may_change="both")
    test_file: str | None = flag(None, "test texts; unset: cut from the training file", may_change="both")
    text_column: str | None = flag(None, "column of the text; unset: found by its name")
    label_column: str | None = flag(
        None, "column of the class label; unset: found by its name; none: not used", none_is_text=True
    )
    source_column: str | None = flag(
        None, "column of the source text; unset: found by its name; none: not used", none_is_text=True
    )
    max_train_texts: int | None = flag(
        None, "use only so many training texts, drawn at random, always the same ones", unit="texts", at_least=1
    )


@dataclass
class PackingOptions:
    """How pairs and running text become sequences with a known prefix (dataset_utils/packing)."""

    truncate_sources: bool = flag(False, "truncate a source that alone fills --max_seq_len instead of refusing it")
    pretrain_blocks: bool = flag(
        False,
        "pre-train on running text: texts are joined and cut into blocks of --max_seq_len tokens, of which a "
        "random prefix is known",
    )
    max_prefix_fraction: float = flag(
        0.5,
        "largest known share of a block of --pretrain_blocks",
        at_least=0,
        at_most=1,
        needs="pretrain_blocks",
        config_only=True,
    )
