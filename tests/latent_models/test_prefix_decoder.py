"""A causal language model that decodes latents: loss, gradients, generation, in three families with random weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latent_models.causal.generation import DecoderSettings, generate_ids
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix import PrefixNetwork, default_prefix_tokens
from latent_models.causal.prefix_decoder import PrefixDecoder
from latent_models.causal.sequences import encode
from latent_models.causal.short_attention import NAME, short_texts
from latent_models.generation.decoding import CAUSAL_DECODING, decoding_settings
from latent_models.generation.options import DecodingOptions
from tests.latent_models.tiny_causal import FAMILIES, add_special_tokens, make_causal
from utils.errors import UserError

TEXTS = ["The dog ran home.", "A cat sat down.", "Yes.", "Zoë said “¿qué?” to 東京."]
DIM = 8
LONGEST = 32  # tokens


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of a tiny model of it, not to be changed."""
    root = tmp_path_factory.mktemp("decoders")
    return lambda family: root / family if (root / family).exists() else make_causal(root / family, family, TEXTS)


@pytest.fixture
def build(folder) -> Callable[..., PrefixDecoder]:
    def make(family: str = "llama", mode: str = "lora", length: int = 1, **options) -> PrefixDecoder:
        given = TextDecoderOptions(decoder_model=str(folder(family)), decoder_mode=mode, lora_rank=4, **options)
        return PrefixDecoder.build(given, length, DIM, LONGEST).eval()

    return make


def batch_of(decoder: PrefixDecoder):
    data = encode(decoder.lm.tokenizer, decoder.lm.boundaries, TEXTS, None, LONGEST, 0)
    return data.batch(torch.arange(len(TEXTS)))


def latents(count: int = len(TEXTS), length: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, length, DIM, generator=torch.Generator().manual_seed(seed))


def spread_adapters(decoder: PrefixDecoder) -> None:
    """Adapters as after training: fresh ones change nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in decoder.lm.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)


def by_transformers(decoder: PrefixDecoder, z: Tensor, sigma: Tensor, mask: Tensor | None = None, **settings):
    """The texts of transformers' generate after the same start and prefix."""
    lm = decoder.lm
    prefix, prefix_mask = decoder.prefix(z, mask, sigma)
    words = lm.model.get_input_embeddings()(torch.full((len(z), 1), lm.boundaries.start_id))
    kept = torch.ones(len(z), 1 + prefix.shape[1], dtype=torch.long)
    if prefix_mask is not None:
        kept[:, 1:] = prefix_mask
    found = lm.model.generate(
        inputs_embeds=torch.cat([words, prefix], 1),
        attention_mask=kept,
        max_new_tokens=LONGEST - 1,
        eos_token_id=lm.boundaries.end_id,
        pad_token_id=lm.boundaries.end_id,
        suppress_tokens=[*lm.boundaries.forbidden, *range(len(lm.tokenizer), lm.model.config.vocab_size)] or None,
        do_sample=False,
        **settings,
    )
    end = lm.boundaries.end_id
    return lm.decode([row[: row.index(end)] if end in row else row for row in found.tolist()])


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_recovered_from_their_latents(build, family):
    """Overfitted on four texts: the loss falls, and greedy decoding writes each text from its own latents."""
    decoder, z, sigma = build(family, "ft"), latents(), torch.zeros(len(TEXTS))
    batch = batch_of(decoder)
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(120):
        loss = decoder.nll(z, sigma, batch).mean()
        first = first if first is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if loss < 0.2:
            break
    assert float(loss.detach()) < 0.1 * first
    assert decoder.generate(z, sigma, max_length=LONGEST, **CAUSAL_DECODING["greedy"]) == TEXTS
    exchanged = decoder.generate(z.flip(0), sigma, max_length=LONGEST, **CAUSAL_DECODING["greedy"])
    assert exchanged == TEXTS[::-1]  # the latents decide, not the place in the batch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_text_after_start_and_prefix(build, family):
    decoder, z, sigma = build(family), latents(), torch.rand(len(TEXTS))
    spread_adapters(decoder)
    ours, lm = decoder.nll(z, sigma, batch_of(decoder)), decoder.lm
    prefix, _ = decoder.prefix(z, None, sigma)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([*lm.tokenizer(text, add_special_tokens=False)["input_ids"], lm.boundaries.end_id])
        words = lm.model.get_input_embeddings()(torch.cat([torch.tensor([lm.boundaries.start_id]), ids]))
        inputs = torch.cat([words[:1], prefix[i], words[1:]])[None]
        logp = lm.model(inputs_embeds=inputs).logits[0].log_softmax(-1)
        at = torch.arange(len(ids)) + prefix.shape[1]
        torch.testing.assert_close(ours[i], -logp[at, ids].sum(), rtol=1e-4, atol=1e-4)


SOURCES = ["a dog", "What did the cat do then?", "", "Zoë"]


def after_sources(decoder: PrefixDecoder, longest: int = 12) -> tuple[list[list[int]], Tensor]:
    """Token ids between latents and text, and the same as a tensor that is padded on the left by -1."""
    lm = decoder.lm
    rows = [lm.tokenizer(source, add_special_tokens=False)["input_ids"][:longest] for source in SOURCES]
    ids = [[*row, *lm.boundaries.between] for row in rows]
    width = longest + len(lm.boundaries.between)
    return ids, torch.tensor([[-1] * (width - len(row)) + row for row in ids])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_stands_between_latents_and_text(build, family):
    """In training and in generation: the loss of the text alone, and the likeliest tokens of a batch of one."""
    decoder, z, sigma = build(family, token_dropout=0.5), latents(), torch.rand(len(TEXTS))
    spread_adapters(decoder)
    lm, (ids, padded) = decoder.lm, after_sources(decoder)
    embed, around = lm.model.get_input_embeddings(), lm.boundaries
    data = encode(lm.tokenizer, around, TEXTS, SOURCES, LONGEST, 12)
    batch = data.batch(torch.arange(len(TEXTS)))
    ours = decoder.nll(z, sigma, batch)
    prefix, _ = decoder.prefix(z, None, sigma)
    greedy = []
    for i, text in enumerate(TEXTS):
        body = [*lm.tokenizer(text, add_special_tokens=False)["input_ids"], around.end_id]
        start = torch.cat([embed(torch.tensor([around.start_id])), prefix[i], embed(torch.tensor(ids[i]).long())])
        logp = lm.model(inputs_embeds=torch.cat([start, embed(torch.tensor(body))])[None]).logits[0].log_softmax(-1)
        at = torch.arange(len(body)) + len(start) - 1
        torch.testing.assert_close(ours[i], -logp[at, torch.tensor(body)].sum(), rtol=1e-4, atol=1e-4)
        row = slice(i, i + 1)
        greedy += decoder.generate(z[row], sigma[row], max_length=12, prompt=padded[row], **CAUSAL_DECODING["greedy"])
    together = decoder.generate(z, sigma, max_length=12, prompt=padded, **CAUSAL_DECODING["greedy"])
    assert together == greedy, "a shorter source is padded before it, and nothing attends to that"
    # token dropout hides words of the text, not of its source
    everything = torch.ones_like(batch.input_ids, dtype=torch.bool)
    hidden = decoder(z, sigma, batch.input_ids, batch.targets, None, everything)
    assert not torch.allclose(hidden, ours)
    changed = batch.input_ids.clone()
    changed[0, 1] = changed[0, 1] + 1  # a word of the source
    assert float((decoder(z, sigma, changed, batch.targets, None, everything) - hidden)[0].abs()) > 0


def test_beams_read_the_source_too(build):
    decoder, z, sigma = build("llama"), latents(), torch.zeros(len(TEXTS))
    _, padded = after_sources(decoder)
    found = [
        decoder.generate(z[i : i + 1], sigma[:1], max_length=10, prompt=padded[i : i + 1], **CAUSAL_DECODING["beam"])[0]
        for i in range(len(TEXTS))
    ]
    assert decoder.generate(z, sigma, max_length=10, prompt=padded, **CAUSAL_DECODING["beam"]) == found


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_that_of_transformers(build, family):
    decoder, z, sigma = build(family, length=3), latents(length=3), torch.rand(len(TEXTS))
    mask = torch.tensor([[True] * 3, [True, False, False], [True, True, False], [True] * 3])
    for kept in (None, mask):
        found = decoder.generate(z, sigma, kept, max_length=LONGEST, **CAUSAL_DECODING["greedy"])
        assert found == by_transformers(decoder, z, sigma, kept)


def test_penalties_are_those_of_transformers(build):
    decoder, z, sigma = build("gpt2"), latents(), torch.zeros(len(TEXTS))
    for settings in (
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    ):
        found = decoder.generate(z, sigma, max_length=LONGEST, **{**CAUSAL_DECODING["greedy"], **settings})
        assert found == by_transformers(decoder, z, sigma, **settings), settings


def test_no_text_is_shorter_than_asked(build):
    decoder = build()
    with torch.no_grad():  # a model that likes to end texts
        head = decoder.lm.model.get_output_embeddings()
        head.weight[decoder.lm.boundaries.end_id] = 3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    prefix = decoder.prefix(latents(24), None, torch.zeros(24))[0].detach()
    shortest = {}
    for least in (0, 5):
        settings = decoding_settings(DecodingOptions(min_new_tokens=least), causal=True)["greedy"]
        found = generate_ids(
            decoder.lm.model,
            decoder.lm.boundaries,
            prefix,
            None,
            DecoderSettings.of(settings),
            max_new_tokens=12,
            vocabulary=len(decoder.lm.tokenizer),
        )
        shortest[least] = min(map(len, found))
    assert shortest[0] < 5 <= shortest[5]


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_find_likelier_texts(build, family):
    decoder, z, sigma = build(family), latents(), torch.zeros(len(TEXTS))
    beams = decoder.generate(z, sigma, max_length=8, **{**CAUSAL_DECODING["beam"], "num_beams": 8})
    greedy = decoder.generate(z, sigma, max_length=8, **CAUSAL_DECODING["greedy"])
    expected = by_transformers(decoder, z, sigma, num_beams=8)
    longer = decoder.generate(z, sigma, max_length=LONGEST, **{**CAUSAL_DECODING["beam"], "num_beams": 8})
    assert longer == expected
    assert len(beams) == len(greedy) == len(TEXTS) and beams != greedy


def test_a_sample_depends_on_its_own_draws_alone(build):
    decoder, z, sigma = build(), latents(8), torch.full((8,), 0.3)
    spread_adapters(decoder)

    def sample(rows: slice, size: int) -> list[str]:
        torch.manual_seed(5)
        return decoder.generate(
            z[rows], sigma[rows], max_length=LONGEST, draw_rows=(rows.start, size), **CAUSAL_DECODING["nucleus"]
        )

    whole = sample(slice(0, 8), 8)
    assert [*sample(slice(0, 3), 8), *sample(slice(3, 8), 8)] == whole
    assert len(set(whole)) > 4


def test_merged_adapters_generate_as_unmerged_ones(build):
    decoder, z, sigma = build("qwen2"), latents(), torch.zeros(len(TEXTS))
    spread_adapters(decoder)
    merged = decoder._generating_model(torch.float32)
    ids = batch_of(decoder).input_ids
    torch.testing.assert_close(merged(input_ids=ids).logits, decoder.lm.model(input_ids=ids).logits)
    assert decoder._generating_model(torch.float32) is merged  # kept while the weights are the same
    before = decoder.generate(z, sigma, max_length=LONGEST, **CAUSAL_DECODING["greedy"])
    with torch.no_grad():
        for name, p in decoder.lm.named_parameters():
            if "lora_B" in name:
                p.data = p.data + 0.5  # as a fused optimizer: the version does not change
    after = decoder.generate(z, sigma, max_length=LONGEST, **CAUSAL_DECODING["greedy"])
    assert after != before and after == by_transformers(decoder, z, sigma)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_half_precision_give_what_autocast_gives(build, family, monkeypatch):
    """Loss and gradients, to the bit; the parameters themselves stay in float32."""
    decoder, z, sigma = build(family), latents(), torch.rand(len(TEXTS))
    spread_adapters(decoder)

    def run() -> tuple[Tensor, list[Tensor]]:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            nll = decoder.nll(z, sigma, batch_of(decoder))
        nll.sum().backward()
        return nll, [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    nll, gradients = run()
    assert all(p.dtype == torch.float32 for p in decoder.parameters())
    full = decoder.nll(z, sigma, batch_of(decoder))
    torch.testing.assert_close(nll, full, rtol=0.05, atol=0.5)
    monkeypatch.setattr(decoder, "_frozen_in_half", nullcontext)
    plain, expected = run()
    assert torch.equal(nll, plain)
    assert len(gradients) == len(expected) > 10 and all(map(torch.equal, gradients, expected))


def test_texts_in_bfloat16_are_close_to_those_in_float32(build):
    decoder, z, sigma = build("gpt2"), latents(16), torch.zeros(16)
    full = decoder.generate(z, sigma, max_length=6, **CAUSAL_DECODING["greedy"])
    decoder.generation_dtype = "bf16"
    half = decoder.generate(z, sigma, max_length=6, **CAUSAL_DECODING["greedy"])
    assert decoder._generating_model(torch.bfloat16).dtype == torch.bfloat16
    assert sum(a[:2] == b[:2] for a, b in zip(full, half, strict=True)) >= 10
    decoder.generation_dtype = "run"
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.generate(z, sigma, max_length=6, **CAUSAL_DECODING["greedy"]) == half


def test_latents_at_padding_change_nothing(build):
    decoder = build(length=3)
    z, sigma = latents(length=3), torch.rand(len(TEXTS))
    mask = torch.tensor([[True, True, False]] * len(TEXTS))
    other = torch.where(mask[..., None], z, 7 * torch.ones_like(z))
    batch = batch_of(decoder)
    torch.testing.assert_close(decoder.nll(z, sigma, batch, mask), decoder.nll(other, sigma, batch, mask))
    assert not torch.allclose(decoder.nll(z, sigma, batch, mask), decoder.nll(z, sigma, batch))
    texts = [decoder.generate(x, sigma, mask, max_length=LONGEST, **CAUSAL_DECODING["greedy"]) for x in (z, other)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", ["freeze", "lora", "ft"])
def test_what_trains_is_what_the_mode_says(build, mode):
    decoder = build("llama", mode)
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    of_model = {name for name in trained if name.startswith("lm.")}
    assert {name for name in trained if name.startswith("prefix.")} == {
        f"prefix.{name}" for name, _ in decoder.prefix.named_parameters()
    }
    if mode == "freeze":
        assert not of_model
    elif mode == "lora":
        assert of_model and all("lora_" in name for name in of_model)
    else:
        assert of_model == {f"lm.{name}" for name, _ in decoder.lm.named_parameters()}


def test_the_decoder_is_told_the_noise(build):
    decoder, z = build(), latents()
    low, high = (decoder.prefix(z, None, torch.full((4,), sigma))[0] for sigma in (0.0, 0.6))
    assert not torch.allclose(low, high, atol=1e-3)


def test_hidden_tokens_are_read_as_the_learned_vector(build):
    decoder, z, sigma = build(token_dropout=0.5), latents(), torch.zeros(4)
    batch = batch_of(decoder)
    everything = torch.ones_like(batch.input_ids, dtype=torch.bool)
    hidden = decoder(z, sigma, batch.input_ids, batch.targets, None, everything)
    other = batch.input_ids.clone()
    other[:, 1:-1] = other[:, 1:-1].flip(0)
    assert not torch.allclose(hidden, decoder.nll(z, sigma, batch))
    assert decoder.hidden_token.requires_grad and not build().hidden_token.requires_grad
    hidden.sum().backward()
    assert decoder.hidden_token.grad is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_behind_the_embeddings_are_never_written(folder, tmp_path, family):
    added = add_special_tokens(folder(family), tmp_path / "added")
    given = TextDecoderOptions(decoder_model=str(added), decoder_mode="freeze")
    decoder = PrefixDecoder.build(given, 1, DIM, LONGEST).eval()
    z, sigma = latents(), torch.zeros(len(TEXTS))
    assert decoder.nll(z, sigma, batch_of(decoder)).isfinite().all()
    for name in ("greedy", "beam", "nucleus"):
        texts = decoder.generate(z, sigma, max_length=12, **CAUSAL_DECODING[name])
        assert len(texts) == len(TEXTS) and not any("<image" in text for text in texts)


def test_texts_of_many_latents_have_one_prefix_vector_each():
    assert [default_prefix_tokens(length) for length in (1, 8, 9, 64)] == [4, 4, 1, 1]
    network = PrefixNetwork(32, DIM, 16)
    prefix, mask = network(latents(2, 32), None, torch.zeros(2))
    assert prefix.shape == (2, 32, 16) and mask is None and network.num_tokens == 32
    assert PrefixNetwork(2, DIM, 16, 3)(latents(2, 2), None, torch.zeros(2))[0].shape == (2, 6, 16)
    assert abs(float(prefix.detach().square().mean().sqrt()) - 0.1) < 1e-3  # starts at the scale of embeddings


def test_mistakes_end_in_one_line(folder, build):
    options = TextDecoderOptions(decoder_model=str(folder("gpt2")))
    with pytest.raises(UserError, match="4 prefix vectors and a text of --max_seq_len 61 tokens are more than the 64"):
        PrefixDecoder.build(options, 1, DIM, 61)
    with pytest.raises(UserError, match="4 prefix vectors and a source and a text of --max_seq_len 31 tokens are more"):
        PrefixDecoder.build(replace(options, source_prompt=True), 1, DIM, 31)
    with pytest.raises(UserError, match="--decoder_model /no/where: there is no such folder"):
        PrefixDecoder.build(TextDecoderOptions(decoder_model="/no/where"), 1, DIM, 20)
    with pytest.raises(ValueError, match="a text decoder has no setting diversity_penalty"):
        build().generate(latents(), torch.zeros(4), max_length=8, diversity_penalty=1.0)
    with pytest.raises(ValueError, match="with beams or samples tokens, not both"):
        build().generate(latents(), torch.zeros(4), max_length=8, do_sample=True, num_beams=2)
    assert build().generate(latents(0), torch.zeros(0), max_length=8) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_short_texts_is_that_of_torch(build, family):
    decoder, z, sigma = build(family, length=3), latents(length=3), torch.rand(4)
    batch = batch_of(decoder)
    mask = torch.tensor([[True] * 3, [True, False, False], [True, True, False], [True] * 3])
    for kept in (None, mask):
        fused = decoder.nll(z, sigma, batch, kept)
        with short_texts(decoder.lm.model):
            assert decoder.lm.model.config._attn_implementation == NAME
            torch.testing.assert_close(decoder.nll(z, sigma, batch, kept), fused, rtol=1e-4, atol=1e-4)
    assert decoder.lm.model.config._attn_implementation == "sdpa"
