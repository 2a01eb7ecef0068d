"""Language models of other families: an autoencoder around each, diffusion in both spaces, evaluation and resuming."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, MBart50Tokenizer, MBartConfig, MT5Config, T5Config

from latent_models.tokenizers.training import train_tokenizer
from pipelines.steps.autoencoder import AutoencoderStep
from pipelines.steps.diffusion import DiffusionStep
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cache_folder import encoded_folder
from utils.errors import UserError
from utils.preemption import EXIT_CODES
from utils.trackers import read_metrics

IDS = dict(pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
T5 = dict(d_model=64, d_kv=32, d_ff=128, num_layers=1, num_heads=2, **IDS)
FAMILIES = {
    "t5": lambda size: T5Config(**T5, vocab_size=size),
    "flan-t5": lambda size: T5Config(
        **T5, vocab_size=size, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "mt5": lambda size: MT5Config(**T5, vocab_size=size, feed_forward_proj="gated-gelu"),
    "mbart": lambda size: MBartConfig(
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=64, bos_token_id=0, vocab_size=size, **IDS,
    ),
}  # fmt: skip


def languages_tokenizer(texts: list[str]) -> MBart50Tokenizer:
    """The tokenizer of mBART-50 with the words of some texts, without a language, like the published ones."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [f"▁{word}" for word, _ in Counter(" ".join(texts).split()).most_common(100)]
    codes = list(MBart50Tokenizer().lang_code_to_id)
    return MBart50Tokenizer(vocab=[(token, -1.0) for token in [*special, *words, *codes, "<mask>"]])


@pytest.fixture(scope="module")
def language_model(tales_folder, tmp_path_factory):
    """A function: family -> the folder of a tiny model with random weights."""
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]

    def of(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        tokenizer = languages_tokenizer(texts) if family == "mbart" else train_tokenizer(texts, "word", 200, 64)
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(FAMILIES[family](len(tokenizer)))
        if family in ("flan-t5", "mt5"):  # their output table is not tied, but transformers ties that of a new model
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if family == "mbart":
            metadata = folder / "tokenizer_config.json"
            metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "src_lang": None}))
        return folder

    return of


def steps(folder: Path, key: str) -> list[float]:
    found = [line[key] for line in read_metrics(folder) if key in line]
    assert all(map(math.isfinite, found)), (folder, found)
    return found


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_trains_resumes_samples_and_evaluates(programs, language_model, stop_after, tmp_path: Path, family):
    lm, ae, latent, states = language_model(family), *(tmp_path / name for name in ("ae", "latent", "states"))
    language = "--target_language en" if family == "mbart" else ""
    tuned = "--lm_mode ft" if family == "flan-t5" else ""
    stop_after(AutoencoderStep, 1)
    assert (
        programs.autoencoder(lm, ae, f"--num_train_steps 2 --eval_texts 4 {language} {tuned}") == EXIT_CODES["SIGTERM"]
    )
    assert programs.resume("autoencoder", ae) == 0
    assert len(steps(ae, "train/loss")) == 2
    assert programs.draft_model(ae, "--num_train_steps 1 --config val_loss_examples=4") == 0
    assert programs.again("autoencoder", ae, "--eval") == 0
    stop_after(DiffusionStep, 1)
    assert programs.diffusion(f"--latent_model_path {ae}", latent, "--self_condition") == EXIT_CODES["SIGTERM"]
    assert programs.resume("diffusion", latent) == 0
    assert list(encoded_folder().iterdir())
    assert programs.diffusion(f"--enc_dec_model {lm} {language}", states, "--normalize_latent") == 0
    for run in (latent, states):
        assert len(steps(run, "loss")) == 2
        assert programs.again("diffusion", run, "--eval --num_samples 2") == 0
        assert (run / "evaluation").is_dir()
        assert json.loads((run / "args.json").read_text())["language"] == ("en_XX" if language else None)
    pipelines = [
        TextDiffusionPipeline.from_pretrained(latent, device="cpu", speculative=how) for how in ("auto", "off")
    ]
    drafted, plain = (pipeline(4, decoding="greedy") for pipeline in pipelines)
    assert drafted == plain and [bool(pipeline.generator.timer.drafted_texts) for pipeline in pipelines] == [
        True,
        False,
    ]
    if tuned:  # its output table is trained apart from the input's, and is saved
        held = checkpoints.load(ae).tensors["model"]
        assert not torch.equal(held["language_model.model.lm_head.weight"], held["language_model.model.shared.weight"])


@pytest.mark.parametrize("family", ["t5", "mbart"])
def test_a_model_of_another_family_encodes_the_sources(programs, chain, tales_folder, language_model, tmp_path, family):
    """Latents of a BART, and another encoder and tokenizer for the sources: trained, cached, evaluated, sampled."""
    pairs = " ".join(f"--{split}_file {tales_folder / f'pairs_{split}.jsonl'}" for split in ("train", "valid", "test"))
    language = "--source_language en" if family == "mbart" else ""
    reader, run = language_model(family), tmp_path / "run"
    space = f"--latent_model_path {chain / 'ae'} --context_encoder {reader} {language} {pairs}"
    assert programs.diffusion(space, run, "--seq2seq_candidates 2") == 0
    assert len(steps(run, "loss")) == 2
    assert programs.again("diffusion", run, "--eval --num_samples 2 --seq2seq_candidates 2") == 0
    saved = json.loads((run / "args.json").read_text())
    assert saved["seq2seq"] and saved["context_model"] == str(reader) and saved["language"] is None
    assert saved["context_language"] == ("en_XX" if language else None)
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu")
    assert (
        len(pipeline.generate_from_sources(["One night Leo ran to the market."], candidates=2, decoding="greedy")) == 1
    )


def test_a_multilingual_model_needs_a_language(programs, chain, language_model, tmp_path):
    lm = language_model("mbart")
    for flags, message in (("", "give --target_language, one of af_ZA"), ("--target_language xy", "the language 'xy'")):
        with pytest.raises(UserError, match=message):
            programs.autoencoder(lm, tmp_path / "ae", flags)
    with pytest.raises(UserError, match="has none: leave it out"):
        programs.autoencoder(chain / "lm", tmp_path / "ae", "--target_language de")


def test_a_note_says_that_a_family_runs_in_float32_under_fp16(language_model, tmp_path, monkeypatch, capsys):
    import train_latent_model

    monkeypatch.chdir(tmp_path)
    flags = f"--dry_run --enc_dec_model {language_model('t5')} --mixed_precision fp16"
    monkeypatch.setattr("sys.argv", ["train_latent_model.py", *flags.split()])
    assert train_latent_model.main() == 0
    assert "overflows in fp16, so the language model itself runs in float32" in capsys.readouterr().err
