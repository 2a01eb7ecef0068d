"""Large corpora: memory use is proportional to the size of the file, and long work shows progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dataset_utils import batching
from dataset_utils.batching import tokenize

ROOT = Path(__file__).resolve().parents[2]


def words(n: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, n)}}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")


def test_ids_are_as_narrow_as_the_vocabulary_allows() -> None:
    small, large = tokenize(words(1 << 16), ["w65535 w1"], 8), tokenize(words((1 << 16) + 1), ["w65536 w1"], 8)
    assert small.ids.dtype == np.uint16 and small.ids.tolist() == [[65535, 1]]
    assert large.ids.dtype == np.int32 and large.ids.tolist() == [[65536, 1]]
    for table, first in ((small, 65535), (large, 65536)):
        batch = batching.collate(table, [0], 65535 if table is small else 65536, pad_to=4)
        assert batch.input_ids.tolist() == [[first, 1, first, first]]


def test_many_texts_show_progress_and_use_all_cores(monkeypatch, capsys) -> None:
    monkeypatch.setattr(batching, "PROGRESS_FROM", 30)
    monkeypatch.setattr(batching, "_CHUNK", 10)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    seen = []
    tokenizer = words(10)

    class Watched:
        unk_token_id = 0
        num_special_tokens_to_add = staticmethod(tokenizer.num_special_tokens_to_add)

        def __len__(self) -> int:
            return len(tokenizer)

        def __call__(self, *args, **kwargs):
            seen.append(os.environ["TOKENIZERS_PARALLELISM"])
            return tokenizer(*args, **kwargs)

    tokenize(Watched(), ["w1 w2"] * 29, 8)
    assert set(seen) == {"false"} and not capsys.readouterr().err
    seen.clear()
    tokenize(Watched(), ["w1 w2"] * 30, 8)
    assert seen == ["true"] * 3 and os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert "tokenize: 100% 30/30" in capsys.readouterr().err
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    tokenize(tokenizer, ["w1"] * 50, 8)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_half_a_million_rows_take_little_more_memory_than_their_file(kind: str) -> None:
    """A Python string takes 49 bytes besides its characters and 8 in its list: about twice the file is expected."""
    command = [sys.executable, "benchmarks/corpus_sizes.py", "--rows", "500000", "--formats", kind, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["rows"] + 2000 == 500_000
    assert found["read_peak_mib"] < 3 * found["file_mib"] + 150, found  # of which 90 are pyarrow itself
    assert found["table_mib"] <= 500_000 * 64 * 2 / (1 << 20) + 1
    assert found["tokenize_peak_mib"] - found["survey_peak_mib"] < 2 * found["table_mib"] + 50, found
    assert found["rows"] / found["read_s"] > 5_000 and found["rows"] / found["tokenize_s"] > 500, found
