"""An encoder-decoder that decodes latents: loss, gradients, generation, in BART, T5 and mT5 with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from latent_models.causal.decoders import decoder_class
from latent_models.causal.encoder_decoder import EncoderDecoderLM
from latent_models.causal.memory_decoder import MemoryDecoder
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix_decoder import PrefixDecoder
from latent_models.causal.sequences import encode
from latent_models.generation.decoding import CAUSAL_DECODING, decoding_settings
from latent_models.generation.options import DecodingOptions
from tests.latent_models.tiny_causal import add_special_tokens, make_causal
from tests.latent_models.tiny_seq2seq import FAMILIES, make_seq2seq
from utils.errors import UserError

TEXTS = ["The dog ran home.", "A cat sat down.", "Yes.", "Zoë said “¿qué?” to 東京."]
DIM = 8
LONGEST = 48  # tokens
SOME = 14  # tokens of texts that are compared
GREEDY, BEAM, NUCLEUS = (CAUSAL_DECODING[name] for name in ("greedy", "beam", "nucleus"))
MASK = torch.tensor([[True] * 3, [True, False, False], [True, True, False], [True] * 3])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of a tiny model of it, not to be changed."""
    root = tmp_path_factory.mktemp("encoder_decoders")
    return lambda family: root / family if (root / family).exists() else make_seq2seq(root / family, family, TEXTS)


@pytest.fixture
def build(folder) -> Callable[..., MemoryDecoder]:
    def make(family: str = "bart", mode: str = "lora", length: int = 1, **options) -> MemoryDecoder:
        given = TextDecoderOptions(decoder_model=str(folder(family)), decoder_mode=mode, lora_rank=4, **options)
        return MemoryDecoder.build(given, length, DIM, LONGEST).eval()

    return make


def batch_of(decoder: MemoryDecoder):
    data = encode(decoder.lm.tokenizer, decoder.lm.boundaries, TEXTS, None, LONGEST, 0)
    return data.batch(torch.arange(len(TEXTS)))


def latents(count: int = len(TEXTS), length: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, length, DIM, generator=torch.Generator().manual_seed(seed))


def spread_adapters(decoder: MemoryDecoder) -> None:
    """Adapters as after training: fresh ones change nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in decoder.lm.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)


def by_transformers(decoder: MemoryDecoder, z: Tensor, sigma: Tensor, mask: Tensor | None = None, **settings):
    """The texts of transformers' generate on the same memory."""
    lm = decoder.lm
    memory, memory_mask = decoder.memory(z, mask, sigma)
    around = lm.boundaries
    found = lm.model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory),
        attention_mask=torch.ones(memory.shape[:2], dtype=torch.long) if memory_mask is None else memory_mask.long(),
        max_new_tokens=SOME - 1 + len(around.opening),
        forced_bos_token_id=next(iter(around.opening), None),
        suppress_tokens=[*around.forbidden, *range(len(lm.tokenizer), lm.model.config.vocab_size)],
        do_sample=False,
        **settings,
    )
    rows = [row[1 + len(around.opening) :] for row in found.tolist()]
    return lm.decode([row[: row.index(around.end_id)] if around.end_id in row else row for row in rows])


def test_the_kind_of_decoder_follows_from_the_model(folder, tmp_path):
    causal = make_causal(tmp_path / "gpt2", "gpt2", TEXTS)
    assert decoder_class(str(causal)) is PrefixDecoder
    assert {decoder_class(str(folder(family))) for family in FAMILIES} == {MemoryDecoder}


def test_the_tokens_around_a_text_are_those_of_the_family(build):
    for family, start, opening in (("bart", ["</s>"], ["<s>"]), ("t5", ["<pad>"], [])):
        decoder = build(family)
        rows = encode(decoder.lm.tokenizer, decoder.lm.boundaries, ["Yes."], None, LONGEST, 0)
        tokens = decoder.lm.tokenizer.convert_ids_to_tokens(rows.ids.tolist())
        body = decoder.lm.tokenizer.tokenize("Yes.")
        assert tokens == [*start, *opening, *body, "</s>"]
        counted = [tokens[i] for i in rows.batch(torch.tensor([0])).targets.tolist()]
        assert counted == [*body, "</s>"]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_recovered_from_their_latents(build, family):
    """Overfitted on four texts: the loss falls, and greedy decoding writes each text from its own latents."""
    decoder, z, sigma = build(family, "ft"), latents(), torch.zeros(len(TEXTS))
    batch = batch_of(decoder)
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(150):
        loss = decoder.nll(z, sigma, batch).mean()
        first = first if first is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if loss < 0.2:
            break
    assert float(loss.detach()) < 0.1 * first
    for settings in (GREEDY, BEAM):
        assert decoder.generate(z, sigma, max_length=LONGEST, **settings) == TEXTS
    exchanged = decoder.generate(z.flip(0), sigma, max_length=LONGEST, **GREEDY)
    assert exchanged == TEXTS[::-1]  # the latents decide, not the place in the batch


@pytest.mark.parametrize("mode", ["freeze", "lora"])
def test_a_frozen_model_learns_to_read_latents(build, mode):
    decoder, z, sigma = build("bart", mode).train(), latents(), torch.zeros(len(TEXTS))
    assert decoder.lm.model.training == (mode == "lora")  # what is frozen stays in eval mode
    frozen = {name: p.clone() for name, p in decoder.named_parameters() if not p.requires_grad}
    batch, losses = batch_of(decoder), []
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(30):
        losses.append(decoder.nll(z, sigma, batch).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]  # weights of no training: there is little to read with
    assert all(torch.equal(dict(decoder.named_parameters())[name], p) for name, p in frozen.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_text_given_the_memory(build, family):
    decoder, z, sigma = build(family, length=3), latents(length=3), torch.rand(len(TEXTS))
    spread_adapters(decoder)
    ours, lm, around = decoder.nll(z, sigma, batch_of(decoder), MASK), decoder.lm, decoder.lm.boundaries
    for i, text in enumerate(TEXTS):
        memory, kept = decoder.memory(z[i : i + 1], MASK[i : i + 1], sigma[i : i + 1])
        ids = [*lm.tokenizer(text, add_special_tokens=False)["input_ids"], around.end_id]
        read = torch.tensor([[around.start_id, *around.opening, *ids[:-1]]])
        outputs = BaseModelOutput(last_hidden_state=memory)
        logits = lm.model(encoder_outputs=outputs, attention_mask=kept.long(), decoder_input_ids=read).logits[0]
        logp = logits[len(around.opening) :].log_softmax(-1)
        torch.testing.assert_close(ours[i], -logp[torch.arange(len(ids)), ids].sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_transformers(build, family):
    decoder, z, sigma = build(family, length=3), latents(length=3), torch.rand(len(TEXTS))
    spread_adapters(decoder)
    for mask in (None, MASK):
        found = decoder.generate(z, sigma, mask, max_length=SOME, **GREEDY)
        assert found == by_transformers(decoder, z, sigma, mask) and len(set(found)) > 1
    for settings in (
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    ):
        found = decoder.generate(z, sigma, max_length=SOME, **{**GREEDY, **settings})
        assert found == by_transformers(decoder, z, sigma, **settings), settings


def test_the_models_own_settings_of_generation_do_not_count(folder, build, tmp_path, monkeypatch):
    """BART's file sets beam search, a least length, forbidden repetitions and a forced end, as for summaries."""
    own = shutil.copytree(folder("bart"), tmp_path / "bart") / "generation_config.json"
    settings = dict(
        num_beams=4, min_length=10, no_repeat_ngram_size=2, max_length=5, early_stopping=True, length_penalty=2.0,
        repetition_penalty=1.5, max_new_tokens=3, forced_eos_token_id=2, bad_words_ids=[[i] for i in range(5, 150)],
    )  # fmt: skip
    own.write_text(json.dumps({**json.loads(own.read_text()), **settings}))
    decoder, z, sigma = build(), latents(8), torch.zeros(8)
    monkeypatch.setattr(decoder.lm, "decode", lambda ids: ids)
    rows = decoder.generate(z, sigma, max_length=12, **GREEDY)
    assert max(map(len, rows)) == 11, "no end is forced"
    options = TextDecoderOptions(decoder_model=str(own.parent), decoder_mode="lora", lora_rank=4)
    other = MemoryDecoder.build(options, 1, DIM, LONGEST).eval()
    monkeypatch.setattr(other.lm, "decode", lambda ids: ids)
    assert other.generate(z, sigma, max_length=12, **GREEDY) == rows
    for decoding in (BEAM, NUCLEUS):
        found = []
        for one in (decoder, other):
            torch.manual_seed(0)
            found.append(one.generate(z, sigma, max_length=12, **decoding))
        assert found[0] == found[1]


def test_no_text_is_shorter_than_asked(build, monkeypatch):
    for family in FAMILIES:
        decoder, z, sigma = build(family), latents(24), torch.zeros(24)
        head = decoder.lm.model.get_output_embeddings()
        with torch.no_grad():  # a model that likes to end texts
            head.weight[decoder.lm.boundaries.end_id] = torch.randn(16, generator=torch.Generator().manual_seed(0))
        shortest = {}
        for least in (0, 5):
            settings = decoding_settings(DecodingOptions(min_new_tokens=least), causal=True)["greedy"]
            monkeypatch.setattr(decoder.lm, "decode", lambda ids: ids)
            rows = decoder.generate(z, sigma, max_length=12, **settings)
            shortest[least] = min(map(len, rows))
            assert max(map(len, rows)) <= 11  # the start is one of the 12
        assert shortest[0] < 5 <= shortest[5]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_depends_on_its_own_draws_alone(build, family):
    decoder, z, sigma = build(family), latents(8), torch.full((8,), 0.3)
    spread_adapters(decoder)

    def sample(rows: slice) -> tuple[list[str], Tensor]:
        torch.manual_seed(5)
        found = decoder.generate(z[rows], sigma[rows], max_length=SOME, draw_rows=(rows.start, 8), **NUCLEUS)
        return found, torch.rand(())

    (whole, after), (first, after_first), (last, _) = sample(slice(0, 8)), sample(slice(0, 3)), sample(slice(3, 8))
    assert [*first, *last] == whole and len(set(whole)) > 4
    assert after == after_first  # so do the draws of the next candidates
    torch.manual_seed(6)
    assert decoder.generate(z, sigma, max_length=SOME, **NUCLEUS) != whole


def test_merged_adapters_generate_as_unmerged_ones(build):
    decoder, z, sigma = build("t5"), latents(), torch.zeros(len(TEXTS))
    spread_adapters(decoder)
    merged = decoder._generating_model(torch.float32)
    assert decoder._generating_model(torch.float32) is merged  # kept while the weights are the same
    before = decoder.generate(z, sigma, max_length=SOME, **GREEDY)
    with torch.no_grad():
        for name, p in decoder.lm.named_parameters():
            if "lora_B" in name:
                p.data = p.data + 0.5  # as a fused optimizer: the version does not change
    after = decoder.generate(z, sigma, max_length=SOME, **GREEDY)
    assert after != before and after == by_transformers(decoder, z, sigma)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["freeze", "lora"])
def test_weights_in_half_precision_give_what_autocast_gives(build, family, mode, monkeypatch):
    """Loss and gradients, to the bit; the parameters themselves stay in float32."""
    decoder, z, sigma = build(family, mode), latents(), torch.rand(len(TEXTS))
    spread_adapters(decoder)

    def run() -> tuple[Tensor, list[Tensor]]:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            nll = decoder.nll(z, sigma, batch_of(decoder))
        nll.sum().backward()
        return nll, [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    nll, gradients = run()
    assert all(p.dtype == torch.float32 for p in decoder.parameters())
    torch.testing.assert_close(nll, decoder.nll(z, sigma, batch_of(decoder)), rtol=0.05, atol=0.5)
    monkeypatch.setattr(decoder, "_frozen_in_half", nullcontext)
    monkeypatch.setattr(decoder.lm, "frozen", False)
    plain, expected = run()
    assert torch.equal(nll, plain)
    assert len(gradients) == len(expected) > 5 and all(map(torch.equal, gradients, expected))


def test_texts_in_bfloat16_are_close_to_those_in_float32(build):
    decoder, z, sigma = build(), latents(16), torch.zeros(16)
    full = decoder.generate(z, sigma, max_length=6, **GREEDY)
    decoder.generation_dtype = "bf16"
    half = decoder.generate(z, sigma, max_length=6, **GREEDY)
    assert decoder._generating_model(torch.bfloat16).dtype == torch.bfloat16
    assert sum(a[:2] == b[:2] for a, b in zip(full, half, strict=True)) >= 10
    decoder.generation_dtype = "run"
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.generate(z, sigma, max_length=6, **GREEDY) == half
    decoder.free_copies()
    assert decoder._ready is None


def test_latents_at_padding_change_nothing(build):
    decoder = build(length=3)
    z, sigma = latents(length=3), torch.rand(len(TEXTS))
    mask = torch.tensor([[True, True, False]] * len(TEXTS))
    other = torch.where(mask[..., None], z, 7 * torch.ones_like(z))
    batch = batch_of(decoder)
    torch.testing.assert_close(decoder.nll(z, sigma, batch, mask), decoder.nll(other, sigma, batch, mask))
    assert not torch.allclose(decoder.nll(z, sigma, batch, mask), decoder.nll(z, sigma, batch))
    texts = [decoder.generate(x, sigma, mask, max_length=SOME, **GREEDY) for x in (z, other)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["freeze", "lora", "ft"])
def test_what_trains_is_what_the_mode_says_and_has_a_gradient(build, family, mode):
    decoder = build(family, mode)
    trained = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    of_model = {name for name in trained if name.startswith("lm.")}
    assert trained.keys() - of_model == {f"memory.{name}" for name, _ in decoder.memory.named_parameters()}
    if mode == "freeze":
        assert not of_model
    elif mode == "lora":
        assert of_model and all("lora_" in name and ".decoder." in name for name in of_model)
    else:
        model = decoder.lm.model
        parts = (model.get_decoder(), model.get_output_embeddings())
        assert {id(trained[name]) for name in of_model} == {id(p) for part in parts for p in part.parameters()}
    decoder.nll(latents(), torch.zeros(4), batch_of(decoder)).sum().backward()
    assert all(p.grad is not None for p in trained.values())  # DDP waits for each of them


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_starts_like_the_states_of_the_encoder(build, folder, family):
    decoder = build(family)
    mean, std = EncoderDecoderLM.from_pretrained(str(folder(family))).state_statistics()
    memory, _ = decoder.memory(latents(2000), None, torch.rand(2000))
    found = (memory - mean).square().mean((0, 1)).sqrt()  # (W,)
    torch.testing.assert_close(found.square().mean().sqrt(), std.square().mean().sqrt(), rtol=0.25, atol=0)
    assert memory.shape == (2000, 4, 16)


def test_the_noise_level_changes_what_is_read(build):
    decoder, z = build(), latents()
    low, high = (decoder.nll(z, torch.full((4,), sigma), batch_of(decoder)) for sigma in (0.0, 0.6))
    assert not torch.allclose(low, high, atol=1e-3)
    texts = [decoder.generate(z, torch.full((4,), s), max_length=SOME, **GREEDY) for s in (0.0, 0.3, 0.6)]
    assert texts[0] != texts[1] or texts[0] != texts[2]


def test_hidden_tokens_are_not_read(build):
    decoder, z, sigma = build(token_dropout=0.5), latents(), torch.zeros(4)
    batch = batch_of(decoder)
    everything = torch.ones_like(batch.input_ids, dtype=torch.bool)
    hidden = decoder(z, sigma, batch.input_ids, batch.targets, None, everything)
    assert not torch.allclose(hidden, decoder.nll(z, sigma, batch))
    assert not torch.allclose(decoder(z, sigma, batch.input_ids, batch.targets, None, ~everything), hidden)
    nothing = decoder(z, sigma, batch.input_ids, batch.targets, None, ~everything)
    torch.testing.assert_close(nothing, decoder.nll(z, sigma, batch))


def test_what_comes_before_a_text_is_never_hidden(build):
    """BART's <s> is forced in generation, so it is read in training, too."""
    decoder, z, sigma = build(token_dropout=0.5), latents(), torch.zeros(4)
    batch = batch_of(decoder)
    assert len(decoder.lm.boundaries.opening) == 1
    everything = torch.ones_like(batch.input_ids, dtype=torch.bool)
    of_text = everything.clone()
    of_text[:, :2] = False
    found, expected = (decoder(z, sigma, batch.input_ids, batch.targets, None, x) for x in (everything, of_text))
    assert torch.equal(found, expected)
    opened = batch.input_ids.clone()
    opened[:, 1] = 7
    assert not torch.allclose(decoder(z, sigma, opened, batch.targets, None, everything), found), "it is read"


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_behind_the_embeddings_are_never_written(folder, tmp_path, family):
    added = add_special_tokens(folder(family), tmp_path / "added")
    given = TextDecoderOptions(decoder_model=str(added), decoder_mode="freeze")
    decoder = MemoryDecoder.build(given, 1, DIM, LONGEST).eval()
    z, sigma = latents(), torch.zeros(len(TEXTS))
    around = decoder.lm.boundaries
    data = encode(decoder.lm.tokenizer, around, ["A <image7> cat.", *TEXTS], None, LONGEST, 0)
    size = decoder.lm.model.config.vocab_size
    assert data.ids.max() < size <= max(decoder.lm.tokenizer.get_vocab().values()) and max(around.forbidden) < size
    assert decoder.nll(z, sigma, batch_of(decoder)).isfinite().all()
    for settings in (GREEDY, BEAM, NUCLEUS):
        texts = decoder.generate(z, sigma, max_length=SOME, **settings)
        assert len(texts) == len(TEXTS) and not any("<image" in text for text in texts)


def test_merged_models_are_ordinary_folders(build, tmp_path):
    for family in FAMILIES:
        decoder, z, sigma = build(family), latents(), torch.zeros(4)
        spread_adapters(decoder)
        texts = decoder.generate(z, sigma, max_length=SOME, **GREEDY)
        decoder.lm.save_pretrained(tmp_path / family)
        options = TextDecoderOptions(decoder_model=str(tmp_path / family), decoder_mode="freeze")
        again = MemoryDecoder.build(options, 1, DIM, LONGEST).eval()
        again.memory.load_state_dict(decoder.memory.state_dict())
        assert again.generate(z, sigma, max_length=SOME, **GREEDY) == texts


@pytest.mark.parametrize(
    "kind, start, opening", [("MBartTokenizer", "de_DE", []), ("MBart50Tokenizer", "</s>", ["de_DE"])]
)
def test_a_multilingual_model_writes_the_language_of_its_tokenizer(kind, start, opening, tmp_path):
    import transformers

    words = [(f"▁{word}", -1.0) for word in ("der", "Hund", "lief", "heim")]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer_class = getattr(transformers, kind)
    codes = [(code, 0.0) for code in tokenizer_class(src_lang=None).lang_code_to_id]
    tokenizer = tokenizer_class(vocab=[*special, *words, *codes, ("<mask>", 0.0)], src_lang="de_DE")
    torch.manual_seed(0)
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        decoder_start_token_id=2,
    )  # fmt: skip
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    decoder = MemoryDecoder.build(TextDecoderOptions(decoder_model=str(tmp_path)), 1, DIM, 20).eval()
    around, ids = decoder.lm.boundaries, decoder.lm.tokenizer.convert_tokens_to_ids
    assert (around.start_id, list(around.opening), around.end_id) == (ids(start), [ids(x) for x in opening], 2)
    texts = decoder.generate(latents(), torch.zeros(4), max_length=10, **GREEDY)
    assert all(word in ("der", "Hund", "lief", "heim") for text in texts for word in text.split())
    decoder.lm.save_pretrained(tmp_path / "saved")
    assert EncoderDecoderLM.from_pretrained(str(tmp_path / "saved")).boundaries == around
    metadata = tmp_path / "tokenizer_config.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "src_lang": None}))
    with pytest.raises(UserError, match="its tokenizer was saved without a language: set src_lang"):
        EncoderDecoderLM.from_pretrained(str(tmp_path))


def test_mistakes_end_in_one_line(folder, build, tmp_path):
    options = TextDecoderOptions(decoder_model=str(folder("bart")))
    MemoryDecoder.build(options, 100, DIM, 64)  # all positions; the memory has no limit
    with pytest.raises(UserError, match="a text of --max_seq_len 65 tokens is longer than the 64 positions of"):
        MemoryDecoder.build(options, 1, DIM, 65)
    reads = TextDecoderOptions(decoder_model=str(folder("bart")), source_prompt=True)
    with pytest.raises(UserError, match="--source_prompt needs a causal language model"):
        MemoryDecoder.build(reads, 1, DIM, 20)
    MemoryDecoder.build(TextDecoderOptions(decoder_model=str(folder("t5"))), 1, DIM, 4000)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pegasus"}))
    with pytest.raises(UserError, match="'pegasus' model, .*: give --decoder_model a model of type bart"):
        decoder_class(str(tmp_path)).build(TextDecoderOptions(decoder_model=str(tmp_path)), 1, DIM, 20)
    partial = shutil.copytree(folder("bart"), tmp_path / "partial")
    (partial / "model.safetensors").unlink()
    with pytest.raises(UserError, match="--decoder_model .* cannot be read"):
        decoder_class(str(partial)).build(TextDecoderOptions(decoder_model=str(partial)), 1, DIM, 20)
    with pytest.raises(ValueError, match="a text decoder has no setting diversity_penalty"):
        build().generate(latents(), torch.zeros(4), max_length=8, diversity_penalty=1.0)
    assert build().generate(latents(0), torch.zeros(0), max_length=8) == []
