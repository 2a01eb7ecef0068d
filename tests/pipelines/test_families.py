"""Language models of other families go the whole way: an autoencoder around each, diffusion in both spaces."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, MBartConfig, MT5Config, T5Config

from latent_models.tokenizers.training import train_tokenizer
from utils.trackers import read_metrics

IDS = dict(vocab_size=200, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
T5 = dict(d_model=64, d_kv=32, d_ff=128, num_layers=1, num_heads=2, **IDS)
CONFIGS = {
    "t5": lambda: T5Config(**T5),
    "flan-t5": lambda: T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: MT5Config(**T5),
    "mbart": lambda: MBartConfig(
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=64, bos_token_id=0, **IDS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", list(CONFIGS))
def test_families_go_the_whole_way(programs, tales_folder, tmp_path: Path, family):
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    lm = tmp_path / "lm"
    AutoModelForSeq2SeqLM.from_config(CONFIGS[family]()).save_pretrained(lm)
    train_tokenizer(texts, "word", 200, 64).save_pretrained(lm)
    assert programs.autoencoder(lm, tmp_path / "ae", "--num_train_steps 2 --eval_texts 4") == 0
    assert programs.diffusion(f"--latent_model_path {tmp_path / 'ae'}", tmp_path / "latent", "--self_condition") == 0
    assert programs.diffusion(f"--enc_dec_model {lm}", tmp_path / "states", "--normalize_latent") == 0
    for name, key in (("ae", "train/loss"), ("latent", "loss"), ("states", "loss")):
        found = [line[key] for line in read_metrics(tmp_path / name) if key in line]
        assert len(found) == 2 and all(map(math.isfinite, found)), (name, found)
