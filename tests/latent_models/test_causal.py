"""Causal language models of three families with random weights: loss, sampling, adapters, and folders that are none."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from latent_models.causal import sampling
from latent_models.causal.model import CausalLM
from latent_models.causal.sampling import pick, sample_ids
from latent_models.causal.sequences import encode, prompt_ids
from tests.latent_models.tiny_causal import FAMILIES, add_special_tokens, byte_tokenizer, make_causal
from utils.errors import UserError

TEXTS = ["The dog ran home.", "A cat sat down, and it slept all day!", "Yes.", "Zoë said “¿qué?” to 東京 🙂."]
SOURCES = ["dog", "a long source about a cat", "no", "Zoë"]


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of a tiny model of it with its tokenizer, not to be changed."""
    root = tmp_path_factory.mktemp("causal")

    def folder(family: str) -> Path:
        return root / family if (root / family).exists() else make_causal(root / family, family, TEXTS)

    return folder


@pytest.fixture
def load(tiny_causal) -> Callable[[str], CausalLM]:
    return lambda family: CausalLM.from_pretrained(str(tiny_causal(family)))


def encoded(lm: CausalLM, prompts=None, max_text: int = 40):
    return encode(lm.tokenizer, lm.boundaries, TEXTS, prompts, max_text, 20)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [None, SOURCES], ids=["texts", "pairs"])
def test_the_loss_is_that_of_transformers_on_the_text_alone(load, family, prompts):
    lm = load(family)
    data = encoded(lm, prompts)
    ours = lm.nll(data.batch(torch.arange(4)))
    for i in range(4):
        ids = torch.tensor(data.ids[data.ends[i] : data.ends[i + 1]].astype("int64"))[None]
        labels = ids.clone()
        labels[:, : data.text_starts[i]] = -100
        logits = lm.model(input_ids=ids).logits[:, :-1]
        expected = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="sum")
        torch.testing.assert_close(ours[i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_stands_between_the_start_and_the_end_of_its_family(load, family):
    lm = load(family)
    data = encoded(lm)
    row = data.ids[: data.ends[1]].tolist()
    start, end = ("<s>", "</s>") if family == "llama" else ("<|endoftext|>", "<|endoftext|>")
    assert lm.tokenizer.convert_ids_to_tokens([row[0], row[-1]]) == [start, end]
    assert lm.decode([row[1:-1]]) == [TEXTS[0]]
    assert (data.target_counts() == data.lengths() - 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_the_rest_of_a_batch_change_no_loss(load, family):
    lm = load(family)
    data = encoded(lm, SOURCES)
    together = lm.nll(data.batch(torch.arange(4)))
    alone = torch.cat([lm.nll(data.batch(torch.tensor([i]))) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("greedy", [False, True], ids=["nucleus", "greedy"])
def test_a_sample_depends_on_neither_its_batch_nor_the_cache(load, family, greedy):
    """Against one text at a time, and against a plain loop that computes every prefix anew."""
    lm = load(family)
    prompts = [p.ids for p in prompt_ids(lm.tokenizer, lm.boundaries, SOURCES * 3, 12, 20)]
    uniforms = None if greedy else torch.rand(12, 25, generator=torch.Generator().manual_seed(3))
    kwargs = dict(max_new_tokens=25, vocabulary=len(lm.tokenizer), top_p=0.9, temperature=0.8)
    # a random model hardly ever ends a text: a token that it likes is the end here
    likely = Counter(sum(sample_ids(lm.model, lm.boundaries, prompts, uniforms, **kwargs), [])).most_common(9)[-1][0]
    lm.boundaries = replace(lm.boundaries, end_id=likely)
    together = sample_ids(lm.model, lm.boundaries, prompts, uniforms, **kwargs)
    for i, ids in enumerate(together):
        own = None if greedy else uniforms[i : i + 1]
        assert sample_ids(lm.model, lm.boundaries, [prompts[i]], own, **kwargs) == [ids]
    assert greedy or len({len(ids) for ids in together}) > 2  # some end early, and leave the batch
    assert _plain_sample(lm, prompts[0], None if greedy else uniforms[0], **kwargs) == together[0]


def test_every_token_is_a_sign_of_life_to_waiting_ranks(load, monkeypatch):
    lm, beats = load("gpt2"), []
    monkeypatch.setattr(sampling, "beat", lambda: beats.append(1))
    prompts = [[lm.boundaries.start_id]] * 2
    ids = sample_ids(lm.model, lm.boundaries, prompts, None, max_new_tokens=5, vocabulary=len(lm.tokenizer))
    assert len(beats) == min(5, 1 + max(map(len, ids)))


@torch.no_grad()
def _plain_sample(lm, prompt, uniforms, *, max_new_tokens, vocabulary, top_p, temperature):
    made: list[int] = []
    for step in range(max_new_tokens):
        logits = lm.model(input_ids=torch.tensor([[*prompt, *made]])).logits[0, -1]
        logits[vocabulary:] = -torch.inf
        logits[list(lm.boundaries.forbidden)] = -torch.inf
        if uniforms is None:
            token = int(logits.argmax())
        else:
            p, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
            size = 1 + int((p.double().cumsum(0) < top_p).sum())  # smallest set that holds top_p
            nucleus = p[:size].double()
            token = int(order[int((nucleus.cumsum(0) <= uniforms[step].double() * nucleus.sum()).sum())])
        if token == lm.boundaries.end_id:
            break
        made.append(token)
    return made


def test_the_nucleus_holds_the_likeliest_tokens_and_their_proportions():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20_000, 1)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = pick(logits, uniforms, 0.8, 1.0).bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, torch.tensor([0.625, 0.375, 0, 0]), rtol=0, atol=0.01)
    everything = pick(logits, uniforms, 1.0, 1.0).bincount(minlength=4) / 20_000
    torch.testing.assert_close(everything, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.01)
    assert pick(logits[:3], torch.tensor([0.0, 0.5, 1 - 2**-24]), 1e-6, 1.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])  # of logits: hundreds of tokens hold the nucleus, or a few
def test_a_part_of_the_vocabulary_is_sorted_and_the_tokens_are_the_same(spread):
    draws = torch.Generator().manual_seed(0)
    logits = (torch.randn(64, 5000, generator=draws) * spread).bfloat16().float()  # with many equal ones
    uniforms = torch.rand(64, generator=draws)
    probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulated = probabilities.double().cumsum(-1)
    expected = []
    for row in range(len(logits)):
        size = int(((cumulated[row] - probabilities[row]) < 0.9).sum())
        nucleus = cumulated[row, :size]
        at = int(torch.searchsorted(nucleus, uniforms[row].double() * nucleus[-1], right=True))
        expected.append(int(order[row, min(at, size - 1)]))
    assert pick(logits, uniforms, 0.9, 1.0).tolist() == expected


def test_special_tokens_and_rows_beyond_the_vocabulary_are_never_sampled(load):
    lm = load("llama")
    with torch.no_grad():
        lm.model.lm_head.weight[len(lm.tokenizer) :] = 5.0
        lm.model.lm_head.weight[lm.boundaries.start_id] = 5.0
    uniforms = torch.rand(8, 20, generator=torch.Generator().manual_seed(0))
    ids = sample_ids(
        lm.model, lm.boundaries, [[0]] * 8, uniforms, max_new_tokens=20, vocabulary=len(lm.tokenizer), top_p=1.0
    )
    flat = [token for row in ids for token in row]
    assert flat and max(flat) < len(lm.tokenizer) and not set(flat) & set(lm.boundaries.forbidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_nothing_before_they_train_and_are_merged_into_a_folder(load, family, tmp_path):
    lm = load(family)
    batch = encoded(lm).batch(torch.arange(4))
    before = lm.nll(batch).detach()
    lm.add_adapters(4, 8)
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    torch.testing.assert_close(lm.nll(batch), before, rtol=0, atol=0)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if name in trained:
                p.normal_(0, 0.2)
    changed = lm.nll(batch).detach()
    assert not torch.allclose(changed, before, rtol=1e-3)
    lm.save_pretrained(tmp_path)
    torch.testing.assert_close(CausalLM.from_pretrained(str(tmp_path)).nll(batch), changed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lm.nll(batch), changed, rtol=0, atol=0)  # saving leaves the adapters as they are


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_weights_below_adapters_are_cast_once(load, family):
    """Losses and gradients are those of autocast, to the bit."""
    lm = load(family)
    lm.add_adapters(4, 8)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    batch, found = encoded(lm).batch(torch.arange(4)), []
    for is_held in (True, True, False):
        if not is_held:
            lm._half.under_autocast = lambda model: nullcontext()
        lm.zero_grad()
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = lm.nll(batch)
        loss.sum().backward()
        copies = sum(event.count for event in profiler.key_averages() if event.key == "aten::_to_copy")
        gradients = [p.grad for p in lm.parameters() if p.requires_grad]
        found.append((loss.detach(), gradients, copies))
    _, (loss, gradients, few), (plain, expected, many) = found
    assert torch.equal(loss, plain) and all(map(torch.equal, gradients, expected)) and len(expected) > 10
    assert many - few >= len(expected) / 2  # a weight for each pair of adapters
    assert all(p.dtype == torch.float32 for p in lm.parameters())


def test_long_texts_and_prompts_are_cut_and_counted(load):
    lm = load("gpt2")
    data = encode(lm.tokenizer, lm.boundaries, TEXTS, SOURCES, 8, 3)
    assert (data.lengths() - data.text_starts).max() == 7  # 6 tokens and the end; the start precedes the prompt
    assert data.truncated > 0 and data.truncated_prompts > 0
    with pytest.raises(UserError, match="no texts"):
        encode(lm.tokenizer, lm.boundaries, [], None, 8, 3)


def test_a_batch_without_prompts_is_that_of_texts_alone(load):
    lm = load("llama")
    data, alone = (encode(lm.tokenizer, lm.boundaries, TEXTS, prompts, 12, 20) for prompts in (SOURCES, None))
    rows = torch.arange(len(TEXTS))
    none, every = torch.zeros(len(rows), dtype=torch.bool), torch.ones(len(rows), dtype=torch.bool)
    for made, wanted in ((data.batch(rows, none), data.batch(rows)), (data.batch(rows, every), alone.batch(rows))):
        assert torch.equal(made.input_ids, wanted.input_ids) and torch.equal(made.targets, wanted.targets)
    mixed = data.batch(rows, rows == 0)
    assert mixed.num_targets().tolist() == data.target_counts().tolist()
    text = alone.ids[: alone.ends[1]].tolist()
    assert (
        mixed.input_ids[0, : len(text)].tolist() == text
        and mixed.input_ids[1].tolist() == data.batch(rows).input_ids[1, : mixed.input_ids.shape[1]].tolist()
    )


def test_what_is_no_causal_model_ends_in_one_line(tiny, tiny_causal, tmp_path):
    def message(name: str) -> str:
        with pytest.raises(UserError) as error:
            CausalLM.from_pretrained(name)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "encoder-decoder (bart)" in message(str(tiny("bart")))
    assert "holds no config.json" in message(str(tmp_path))
    assert "no such folder" in message(str(tmp_path / "absent"))
    shutil.copytree(tiny_causal("gpt2"), tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").write_bytes(b"damaged")
    assert "cannot be loaded" in message(str(tmp_path / "damaged"))
    shutil.copytree(tiny_causal("gpt2"), tmp_path / "incomplete")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "incomplete/model.safetensors")
    del weights["transformer.h.1.attn.c_attn.weight"]
    save_file(weights, tmp_path / "incomplete/model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights" in message(str(tmp_path / "incomplete"))


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_that_were_added_behind_the_embeddings_do_not_matter(tiny_causal, tmp_path, family):
    """As the <image_soft_token> of Gemma 3, whose text models do not know it."""
    folder = add_special_tokens(tiny_causal(family), tmp_path / "added")
    lm = CausalLM.from_pretrained(str(folder))
    size = lm.model.config.vocab_size
    assert max(lm.tokenizer.get_vocab().values()) >= size > max(lm.boundaries.forbidden)
    assert max(lm.tokenizer.all_special_ids) >= size
    data = encode(lm.tokenizer, lm.boundaries, ["A <image7> cat.", *TEXTS], None, 40, 20)
    assert data.ids.max() < size and lm.decode([data.ids[1 : data.ends[1] - 1].tolist()]) == ["A <image7> cat."]
    assert lm.nll(data.batch(torch.arange(5))).isfinite().all()
    draws = torch.rand(2, 20, generator=torch.Generator().manual_seed(0))
    prompts, vocabulary = [[lm.boundaries.start_id]] * 2, len(lm.tokenizer)
    for uniforms in (None, draws):
        ids = sample_ids(lm.model, lm.boundaries, prompts, uniforms, max_new_tokens=20, vocabulary=vocabulary)
        assert max(map(max, ids)) < size


def test_added_tokens_that_texts_hold_are_of_another_model(tiny_causal, tmp_path):
    plain = add_special_tokens(tiny_causal("gpt2"), tmp_path / "plain", special=False)
    with pytest.raises(UserError, match="has token ids up to .*: they are not of the same model"):
        CausalLM.from_pretrained(str(plain))
    padded = add_special_tokens(tiny_causal("gpt2"), tmp_path / "padded", pad_token="<image7>")
    with pytest.raises(UserError, match="has token ids up to .*: they are not of the same model"):
        CausalLM.from_pretrained(str(padded))


def test_a_model_without_a_cache_of_keys_and_values_is_refused(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = byte_tokenizer("gpt2", TEXTS)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no cache of keys and values.*\(mamba\)") as error:
        CausalLM.from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = byte_tokenizer("gpt2", TEXTS)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a causal language model|scales its logits"):
        CausalLM.from_pretrained(str(tmp_path))
