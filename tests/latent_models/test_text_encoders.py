"""Frozen text encoders of seven families with random weights: states, layers, padding, folders that are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latent_models.pooling import POOLINGS, make_pooling
from latent_models.spaces.scaling import LatentScaling
from latent_models.spaces.sentence import SentenceSpace
from latent_models.text_encoders import TextEncoder
from tests.latent_models.conftest import TEXTS
from tests.latent_models.tiny_causal import add_special_tokens
from tests.latent_models.tiny_encoders import CAUSAL, FAMILIES, MAX_LENGTH, WIDTH, make_encoder
from utils.errors import UserError
from utils.records import Batch


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of a tiny model of it, not to be changed."""
    root = tmp_path_factory.mktemp("encoders")
    return lambda family: root / family if (root / family).exists() else make_encoder(family, root / family, TEXTS)


def states(encoder, texts):
    batch = encoder.tokenizer(texts, max_length=MAX_LENGTH, truncation=True, padding=True, return_tensors="pt")
    return encoder.encode(batch["input_ids"], batch["attention_mask"].bool()), batch["attention_mask"].bool()


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_a_family_do_not_depend_on_padding(family, tiny_encoder):
    encoder = TextEncoder.from_pretrained(str(tiny_encoder(family)))
    together, mask = states(encoder, TEXTS)
    assert together.shape == (len(TEXTS), mask.shape[1], WIDTH) and encoder.dim == WIDTH
    assert encoder.is_causal == (family in CAUSAL)
    for row, text in enumerate(TEXTS):
        alone, _ = states(encoder, [text])
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_what_transformers_computes(family, tiny_encoder):
    from transformers import AutoModel

    encoder = TextEncoder.from_pretrained(str(tiny_encoder(family)))
    model = AutoModel.from_pretrained(tiny_encoder(family)).eval()
    model = model.get_encoder() if family in ("t5", "bart") else model
    ids = encoder.tokenizer([TEXTS[0]], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    mask = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(encoder.encode(ids, mask), out.last_hidden_state, rtol=1e-4, atol=1e-5)
    first = TextEncoder.from_pretrained(str(tiny_encoder(family)), layer=1)
    torch.testing.assert_close(first.encode(ids, mask), out.hidden_states[1], rtol=1e-4, atol=1e-5)
    assert first.fingerprint() != encoder.fingerprint()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_behind_the_one_that_is_read_are_not_computed(family, tiny_encoder):
    encoder = TextEncoder.from_pretrained(str(tiny_encoder(family)), layer=0)
    ids = encoder.tokenizer([TEXTS[0]], return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids, dtype=torch.bool)
    ran = []
    lists = [part for part in encoder.encoder.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 2]
    lists[0][1].register_forward_hook(lambda *_: ran.append(True))
    found = encoder.encode(ids, mask)
    assert bool(ran) == (len(lists) > 1), "only where it is not plain which list holds the layers"
    with torch.no_grad():
        out = encoder.encoder(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    assert torch.equal(found, out.hidden_states[0]) and len(ran) == 1 + (len(lists) > 1) and len(lists[0]) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_encoder_is_the_same(family, tiny_encoder, tmp_path):
    encoder = TextEncoder.from_pretrained(str(tiny_encoder(family)))
    encoder.save_pretrained(tmp_path / "copy")
    again = TextEncoder.from_pretrained(str(tmp_path / "copy"))
    assert again.fingerprint() == encoder.fingerprint()
    assert torch.equal(states(again, TEXTS)[0], states(encoder, TEXTS)[0])


def test_it_stays_frozen_and_in_eval_mode(tiny_encoder):
    encoder = TextEncoder.from_pretrained(str(tiny_encoder("bert")))
    parent = torch.nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules()) and parent.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not states(encoder, TEXTS)[0].requires_grad


def test_special_tokens_in_a_text_are_text(tiny_encoder):
    encoder = TextEncoder.from_pretrained(str(tiny_encoder("bert")))
    ids = encoder.tokenizer("a [SEP] b")["input_ids"]
    assert ids.count(encoder.tokenizer.sep_token_id) == 1


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_special_tokens_that_were_added_behind_the_embeddings_do_not_matter(tiny_encoder, tmp_path, family):
    encoder = TextEncoder.from_pretrained(str(add_special_tokens(tiny_encoder(family), tmp_path / "added")))
    size = encoder.model.config.vocab_size
    assert max(encoder.tokenizer.get_vocab().values()) >= size
    assert max(encoder.tokenizer("a <image0> b")["input_ids"]) < size
    plain = add_special_tokens(tiny_encoder(family), tmp_path / "plain", special=False)
    with pytest.raises(UserError, match="its files are absent or of another model"):
        TextEncoder.from_pretrained(str(plain))


def test_the_head_and_the_pooler_of_a_checkpoint_do_not_matter(tmp_path):
    headed = make_encoder("bert", tmp_path / "headed", TEXTS, head=True)
    first, second = (TextEncoder.from_pretrained(str(headed)).fingerprint() for _ in range(2))
    assert first == second  # no weight is drawn at random


def test_an_encoder_of_t5_that_was_saved_without_its_decoder(tiny_encoder, tmp_path):
    """Such as GTR's and Sentence-T5's: the same states as those of the whole model, and no weights that are missing."""
    from transformers import T5EncoderModel

    whole = TextEncoder.from_pretrained(str(tiny_encoder("t5")))
    T5EncoderModel.from_pretrained(tiny_encoder("t5")).save_pretrained(tmp_path / "alone")
    whole.tokenizer.save_pretrained(tmp_path / "alone")
    for layer in (None, 1):
        alone = TextEncoder.from_pretrained(str(tmp_path / "alone"), layer=layer)
        of_whole = TextEncoder.from_pretrained(str(tiny_encoder("t5")), layer=layer)
        assert torch.equal(states(alone, TEXTS)[0], states(of_whole, TEXTS)[0])
    assert alone.num_layers == 2 and alone.max_length is None and not alone.is_causal
    assert not any("decoder" in name for name in alone.state_dict())
    alone.save_pretrained(tmp_path / "again")
    for meta in (False, True):
        again = TextEncoder.from_pretrained(str(tmp_path / "again"), layer=1, meta=meta)
        assert again.model.state_dict().keys() == alone.model.state_dict().keys()
    assert TextEncoder.from_pretrained(str(tmp_path / "again"), layer=1).fingerprint() == alone.fingerprint()


def test_limits_of_length(tiny_encoder):
    limits = {f: TextEncoder.from_pretrained(str(tiny_encoder(f)), meta=True).max_length for f in FAMILIES}
    assert limits.pop("t5") is None
    assert set(limits.values()) == {MAX_LENGTH}


def test_mistakes_get_one_line(tiny_encoder, tmp_path):
    def message(name, **options):
        with pytest.raises(UserError) as found:
            TextEncoder.from_pretrained(str(name), **options)
        assert "\n" not in str(found.value)
        return str(found.value)

    assert "holds no config.json" in message(tmp_path)
    assert "there is no such folder" in message(tmp_path / "nowhere")
    assert "--encoder_layer 3" in message(tiny_encoder("bert"), layer=3)
    damaged = shutil.copytree(tiny_encoder("bert"), tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"none")
    assert message(damaged).startswith(f"--encoder_model {damaged} cannot be loaded")
    bare = shutil.copytree(tiny_encoder("bart"), tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (bare / name).unlink(missing_ok=True)
    assert "tokenizer" in message(bare)


def test_another_encoder_is_refused(tiny_encoder, tmp_path):
    encoder = TextEncoder.from_pretrained(str(tiny_encoder("bert")))
    encoder.check_fingerprint(None, tmp_path)
    encoder.check_fingerprint(encoder.fingerprint(), tmp_path)
    with pytest.raises(UserError, match="--encoder_model"):
        encoder.check_fingerprint("other", tmp_path)


@pytest.mark.parametrize("pooling", [name for name, row in POOLINGS.items() if row.of_causal])
def test_texts_without_any_word_have_latents(pooling, tmp_path):
    """A decoder that knows little writes nothing; GPT-2 and Llama put no special tokens around a text."""
    encoder = TextEncoder.from_pretrained(str(make_encoder("llama", tmp_path / "llama", TEXTS)), layer=1)
    space = SentenceSpace(encoder, make_pooling(pooling, None, WIDTH, is_causal=True), LatentScaling(WIDTH)).eval()
    rows = [encoder.tokenizer(text)["input_ids"] for text in ("", TEXTS[0])]
    assert rows[0] == []
    ids = torch.tensor([[encoder.pad_id] * len(rows[1]), rows[1]])
    mask = torch.tensor([[False] * len(rows[1]), [True] * len(rows[1])])
    nothing = Batch(ids[:, :0], mask[:, :0])
    with torch.no_grad():
        alone, beside = space.encode(nothing), space.encode(Batch(ids, mask))
    assert alone.x0.shape == beside.x0.shape and alone.x0.isfinite().all()
    torch.testing.assert_close(alone.x0[0], beside.x0[0])
