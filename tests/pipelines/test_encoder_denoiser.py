"""A denoiser around a Hugging Face encoder through the real program; its run does not need the encoder's folder."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import BertConfig, BertModel

from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError

ENCODER = "--denoiser_variant encoder --self_condition --beta_schedule sqrt --timesteps 20 --objective pred_x0"


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    BertModel(BertConfig(**small, max_position_embeddings=48)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_run_with_a_pretrained_encoder_samples_and_resumes_without_its_folder(programs, chain, bert, tmp_path):
    run = tmp_path / "run"
    flags = f"{ENCODER} --encoder_config {bert} --encoder_init pretrained --save_and_sample_every 2"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", run, flags) == 0
    shutil.rmtree(bert)  # the run folder has a copy of the configuration and the weights
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", sampling_timesteps=2)
    texts = pipeline(3, seed=1, decoding="greedy")
    assert texts == TextDiffusionPipeline.from_pretrained(run, device="cpu", sampling_timesteps=2)(
        3, seed=1, decoding="greedy"
    )
    assert programs.resume("diffusion", run) == 0


def test_an_encoder_denoises_given_the_states_of_a_source(programs, chain, bert, tales_folder, tmp_path):
    pairs = " ".join(f"--{s}_file {tales_folder / f'pairs_{s}.jsonl'}" for s in ("train", "valid", "test"))
    flags = f"{ENCODER} --encoder_config {bert} {pairs} --seq2seq_candidates 2 --cls_free_guidance 2"
    space = f"--latent_model_path {chain / 'ae'}"
    with pytest.raises(UserError, match="are more than the encoder has, 48: lower --max_source_len"):
        programs.diffusion(space, tmp_path / "run", flags)
    assert programs.diffusion(space, tmp_path / "run", f"{flags} --max_source_len 8") == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu", cls_free_guidance=1)
    call = {"generator": 1, "output_type": "latent"}
    one, other = (pipeline(source=text, **call).latents.x0 for text in ("Ben ran home.", "Anna sat in town."))
    assert not torch.equal(one, other)
    packed = f"{ENCODER} --encoder_config {bert} {pairs} --truncate_sources --latent_space embeddings --embedding_dim 8"
    assert programs.diffusion("", tmp_path / "packed", f"{packed} --seq2seq_candidates 1 --num_samples 1") == 0
    assert len(TextDiffusionPipeline.from_pretrained(tmp_path / "packed", device="cpu")(source="Ben ran home.")) == 1


def test_an_encoder_with_too_few_positions_is_rejected(programs, chain, bert, tmp_path):
    with pytest.raises(UserError, match="--max_seq_len 40 is longer than the 16 positions"):
        config = BertConfig.from_pretrained(bert)
        config.max_position_embeddings = 16
        config.save_pretrained(bert)
        programs.diffusion(f"--enc_dec_model {chain / 'lm'}", tmp_path / "run", f"{ENCODER} --encoder_config {bert}")
