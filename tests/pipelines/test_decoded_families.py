"""Every kind of encoder, pooling and causal decoder of frozen embeddings once, from texts over both stages to samples.

test_decoded_spaces.py has the same for BERT and GPT-2, and all else that runs of such latents can do.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from latent_models.spaces.decoded import DecodedSpace
from pipelines import train_text_decoder
from pipelines.cli.programs import TEXT_DECODER
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.latent_models.tiny_causal import make_causal
from tests.latent_models.tiny_encoders import WIDTH, make_encoder
from utils.cli.parse import parse

TEXTS = ["He ran home.", "She laughed at the garden, and then all of them slept."]
POSITIONS = {"gpt2": {"n_positions": 128}}  # a text of 40 tokens behind 12 prefix vectors


POOLED = {  # the states (n, d) of a text without padding -> its latents (K, d) before scaling
    "first": lambda states: states[:1],
    "last": lambda states: states[-1:],
    "mean": lambda states: F.normalize(states.mean(0, keepdim=True), dim=-1),
    "segments": lambda states: F.normalize(F.adaptive_avg_pool1d(states.T, 3).T, dim=-1),
}


class Case(NamedTuple):
    """Models and flags of a run. layer: its flag and the layer that is read."""

    encoder: str
    pooling: str
    decoder: str
    decoding: str
    layer: tuple[str, int | None] = ("", None)
    num_latents: int = 1


CASES = [
    Case("modernbert", "first", "llama", "nucleus"),
    Case("t5", "mean", "qwen2", "beam"),
    Case("bart", "segments", "gpt2", "greedy", num_latents=3),
    Case("gpt2", "last", "llama", "beam", ("--encoder_layer 1", 1)),
    Case("llama", "mean", "qwen2", "nucleus", ("--encoder_layer -1", 2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.encoder}-{case.pooling}-{case.decoder}")
def test_both_stages_and_samples(programs, tales_folder, tmp_path, case):
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    make_encoder(case.encoder, tmp_path / "encoder", texts)
    make_causal(tmp_path / "causal", case.decoder, texts, std=0.05, **POSITIONS.get(case.decoder, {}))
    number = f"--num_sentence_latents {case.num_latents}" if case.num_latents > 1 else ""
    line = (
        f"{programs.data} --device cpu --no_wandb --mixed_precision no --max_seq_len 40 --num_train_steps 2 "
        f"--train_batch_size 16 --lr_warmup_steps 1 --log_every 1 --config val_loss_examples=8 --eval_texts 2 "
        f"--encoder_model {tmp_path / 'encoder'} --pooling {case.pooling} {number} {case.layer[0]} "
        f"--decoder_model {tmp_path / 'causal'} --cache_dir {tmp_path / 'cache'} --output_dir {tmp_path / 'decoder'}"
    )
    assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
    space = DecodedSpace.from_pretrained(tmp_path / "decoder")
    assert space.language_model.layer == case.layer[1] and (space.length, space.dim) == (case.num_latents, WIDTH)

    variant = "mlp" if case.num_latents == 1 else "latent"
    flags = f"--denoiser_variant {variant} --decoding {case.decoding} --cache_dir {tmp_path / 'cache'}"
    assert programs.diffusion(f"--latent_model_path {tmp_path / 'decoder'}", tmp_path / "run", flags) == 0
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    found = pipe(2, decoding=case.decoding, generator=1).texts
    assert len(found) == 2 and found == pipe(2, decoding=case.decoding, generator=1).texts

    model, latents = space.language_model, pipe.encode(TEXTS)
    given = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    states = model.encode(given.input_ids, given.attention_mask)
    lengths = given.attention_mask.sum(1).tolist()
    pooled = torch.stack([POOLED[case.pooling](row[:n]) for row, n in zip(states, lengths, strict=True)])
    torch.testing.assert_close(latents.x0, space.space.scaling(pooled, None), atol=1e-4, rtol=1e-3)
    assert len(pipe.decode(latents, case.decoding)) == 2
