"""The space of token embeddings: encoding, losses, training and decoding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from latent_models.spaces import rounding
from latent_models.spaces.embedding_init import input_embeddings, make_embedding_space
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace, count_lengths
from latent_models.spaces.options import EmbeddingOptions
from latent_models.tokenizers.training import TokenizerTraining, train_tokenizer
from utils.errors import UserError
from utils.records import Batch, Latents

TEXTS = ["The red apple is fresh.", "The blue mango is greasy.", "The white nectarine is aged and very fresh."]
L, D = 12, 8
OPTIONS = EmbeddingOptions(embedding_dim=D)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, "word-level", TokenizerTraining(100), L)


@pytest.fixture
def batch(tokenizer) -> Batch:
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return Batch(tokens.input_ids, tokens.attention_mask.bool())


@pytest.fixture
def space(tokenizer):
    def of(sigma_0: float = 0.0, length: int = L, pretrained=None, seed: int = 0, **changes) -> EmbeddingSpace:
        torch.manual_seed(seed)
        return EmbeddingSpace(tokenizer, replace(OPTIONS, **changes), length, sigma_0, pretrained)

    return of


def noise_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------- encoding


def test_a_position_is_the_embedding_of_its_token(space, batch):
    made = space()
    latents = made.encode(batch)
    assert latents.x0.shape == (3, L, D) and torch.equal(latents.x0, latents.mean)
    assert torch.equal(latents.mask.sum(1), batch.attention_mask.sum(1))
    assert torch.equal(latents.x0[1, 2], made.vectors.table[batch.input_ids[1, 2]])
    assert not latents.x0[~latents.mask].any()
    assert made.learned_with_denoiser and made.variable_length and (made.length, made.dim) == (L, D)


def test_x0_lies_sigma_0_around_its_mean(space, tokenizer):
    made = space(sigma_0=0.3, length=2000)
    ids = torch.randint(5, len(tokenizer), (4, 2000))
    latents = encode_with_noise(made, Batch(ids, torch.ones_like(ids, dtype=torch.bool)))
    off = latents.x0 - latents.mean
    assert off.std().item() == pytest.approx(0.3, rel=0.02) and off.mean().abs() < 0.005
    again = encode_with_noise(made, Batch(ids, torch.ones_like(ids, dtype=torch.bool)))
    assert torch.equal(again.x0, latents.x0)
    noise = torch.randn(4, 2000, D)
    torch.testing.assert_close(made.add_sigma0_noise(latents, noise).x0, latents.mean + 0.3 * noise)


def test_a_text_longer_than_the_space_is_refused(space, batch):
    with pytest.raises(UserError, match="a text of 11 tokens exceeds the 6 positions"):
        space(length=6).encode(batch)


# ----------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("head", ["inner", "distance"])
def test_padding_never_changes_a_loss(space, batch, head):
    narrow, wide = space(rounding_head=head, length=11), space(rounding_head=head, length=L + 9)
    latents, longer = narrow.encode(batch), wide.encode(batch)
    longer.x0[~longer.mask] = 1e4  # values at padding must not matter
    junk = replace(batch, input_ids=torch.where(batch.attention_mask, batch.input_ids, 7))
    expected = narrow.losses(batch, latents, latents.x0)["decoder_nll"]
    torch.testing.assert_close(wide.losses(junk, longer, longer.x0)["decoder_nll"], expected)
    for row in range(3):  # the other texts of the batch must not matter
        alone = narrow.losses(batch[row : row + 1], latents[row : row + 1], latents.x0)["decoder_nll"]
        torch.testing.assert_close(alone[0], expected[row])


def test_padding_as_tokens_is_noised_learned_and_sampled(space, batch):
    made = space(padding="generated", sigma_0=0.1, rounding_head="distance")
    latents = encode_with_noise(made, batch)
    assert latents.mask.all() and not made.variable_length
    assert torch.equal(latents.mean[0, -1], made.vectors.table[made.pad_id])
    assert (latents.x0[0, -1] != latents.mean[0, -1]).all()
    made.losses(batch, latents, latents.x0)["decoder_nll"].sum().backward()
    assert made.vectors.table.grad[made.pad_id].any()
    assert NormalizedSpace(made, LatentStatistics(D, L)).sample_mask(5, noise_of()).all()
    assert made.decode(Latents(latents.mean, latents.mask)) == TEXTS


def test_lengths_of_samples_come_from_training_texts(space):
    statistics = LatentStatistics(D, L)
    statistics.length_counts.copy_(count_lengths(torch.tensor([3, 3, 9]), L))
    mask = NormalizedSpace(space(), statistics).sample_mask(300, noise_of())
    assert set(mask.sum(1).tolist()) == {3, 9}


def test_a_packed_source_is_anchored_at_its_embeddings(space, batch):
    made = space(sigma_0=0.2)
    latents = encode_with_noise(made, batch)
    assert made.known_positions(batch, latents) is None
    given = torch.arange(batch.input_ids.shape[1]) < torch.tensor([3, 0, 5])[:, None]
    known = made.known_positions(replace(batch, known_mask=given), latents)
    assert known.mask.shape == (3, L) and known.mask.sum(1).tolist() == [3, 0, 5]
    assert torch.equal(known.value[0, 1], made.vectors.table[batch.input_ids[0, 1]])


# ---------------------------------------------------------------------------------------------------------- rounding


def test_scores_are_inner_products_or_squared_distances():
    x, table, bias = torch.randn(2, 3, 4), torch.randn(7, 4), torch.randn(7)
    inner = F.linear(x, *rounding.inner_product(table, bias))
    torch.testing.assert_close(inner, (x[..., None, :] * table).sum(-1) + bias)
    far = ((x[..., None, :] - table) ** 2).sum(-1)
    distance = F.linear(x, *rounding.negative_distance(table, bias))
    torch.testing.assert_close(distance.softmax(-1), (bias - far).softmax(-1))


def test_the_nearest_embedding_does_not_depend_on_chunks_or_autocast(monkeypatch):
    x, table = torch.randn(5, 7, 6), torch.randn(101, 6)
    expected = torch.cdist(x.view(-1, 6), table).argmin(-1).view(5, 7)
    assert torch.equal(rounding.nearest_token(x, table), expected)
    monkeypatch.setattr(rounding, "MAX_LOGITS", 101 * 4)  # four points at a time
    assert torch.equal(rounding.nearest_token(x, table), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounding.nearest_token(x, table), expected)
    assert torch.equal(rounding.nearest_token(table, table), torch.arange(101))


@pytest.mark.parametrize("head", ["inner", "distance"])
def test_the_likeliest_token_does_not_depend_on_autocast(head):
    """In half precision scores of a hundred differ in steps of one half, and neighbors tie."""
    torch.manual_seed(0)
    x, table, bias = 8 * torch.randn(200, 16), torch.randn(500, 16), torch.randn(500)
    weight, bias = rounding.ROUNDING_HEADS[head](table, bias)
    expected = (x @ weight.T + bias).argmax(-1)
    assert torch.equal(rounding.argmax_token(x, weight, bias), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounding.argmax_token(x, weight, bias), expected)
        assert not torch.equal(F.linear(x, weight, bias).argmax(-1), expected), "or this would test nothing"


@pytest.mark.parametrize("head", ["inner", "distance"])
def test_gradients_do_not_depend_on_chunks(space, batch, head, monkeypatch):
    made = space(rounding_head=head, sigma_0=0.1)

    def gradients() -> tuple[torch.Tensor, ...]:
        latents = encode_with_noise(made, batch)
        loss = made.losses(batch, latents, latents.x0)["decoder_nll"]
        return loss, *torch.autograd.grad(loss.sum(), (made.vectors.table, made.bias))

    expected = gradients()
    monkeypatch.setattr("latent_models.cross_entropy.MAX_LOGITS", 4 * len(made.tokenizer))
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)


def encode_with_noise(made: EmbeddingSpace, batch: Batch) -> Latents:
    """Latents whose x0 is drawn around its mean, always with the same noise."""
    latents = made.encode(batch)
    return made.add_sigma0_noise(latents, torch.randn(latents.x0.shape, generator=noise_of()))


def token_logits(made: EmbeddingSpace, x0: torch.Tensor) -> torch.Tensor:
    """(B, L, V), without chunks."""
    return F.linear(x0, *made.head(made.vectors(), made.bias))


@pytest.mark.parametrize("head", ["inner", "distance"])
def test_the_head_is_tied_to_the_embeddings(space, batch, head):
    made = space(rounding_head=head)
    names = {name for name, _ in made.named_parameters()}
    assert names == {"vectors.table", "bias"}
    before = token_logits(made, made.encode(batch).x0)
    assert before.shape == (3, L, len(made.tokenizer))
    with torch.no_grad():
        made.vectors.table[9] += 1
    assert not torch.equal(token_logits(made, made.encode(batch).x0)[..., 9], before[..., 9])
    nll = F.cross_entropy(before[0, :8], batch.input_ids[0, :8])
    torch.testing.assert_close(space(rounding_head=head).nll(batch, space().encode(batch).x0)[0], nll)


def test_projection_is_the_nearest_embedding(space, batch):
    made = space(length=12)
    latents = made.encode(batch)
    moved = latents.x0 + 0.05 * torch.randn_like(latents.x0)
    assert torch.equal(made.project(moved)[latents.mask], latents.mean[latents.mask])
    assert made.project(moved.bfloat16()).dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("changes", [{}, {"rounding_head": "distance"}, {"normalize_embeddings": True}])
def test_gradients_reach_embeddings_and_bias_from_every_loss(space, batch, changes):
    made = space(sigma_0=0.1, **changes)
    latents = encode_with_noise(made, batch)
    made.losses(batch, latents, latents.x0)["decoder_nll"].mean().backward()
    assert made.vectors.table.grad.any() and made.bias.grad.any()
    made.zero_grad()
    latents = encode_with_noise(made, batch)
    ((latents.x0 - torch.randn_like(latents.x0)) ** 2).sum().backward()
    used = torch.zeros(len(made.tokenizer), dtype=torch.bool)
    used[batch.input_ids[batch.attention_mask]] = True
    assert torch.equal(made.vectors.table.grad.any(1), used)


def test_frozen_embeddings_do_not_change(space, batch):
    made = space(freeze_embeddings=True)
    made.nll(batch, made.encode(batch).x0).mean().backward()
    assert made.vectors.table.grad is None and made.bias.grad.any() and made.learned_with_denoiser


def spread_after(made: EmbeddingSpace, batch: Batch, with_nll: bool) -> float:
    """Spread of the embeddings of seen tokens after training with a linear denoiser at high noise.

    Such a denoiser pulls x0 toward values that it can predict.
    """
    torch.manual_seed(1)
    denoiser = torch.nn.Linear(D, D)
    optimizer = torch.optim.Adam([*made.parameters(), *denoiser.parameters()], lr=0.03)
    generator = noise_of(3)
    for _ in range(250):
        latents = made.encode(batch)
        latents = made.add_sigma0_noise(latents, torch.randn(latents.x0.shape, generator=generator))
        z = 0.1 * latents.x0 + math.sqrt(1 - 0.01) * torch.randn(latents.x0.shape, generator=generator)
        loss = ((denoiser(z) - latents.x0) ** 2)[latents.mask].mean()
        if with_nll:
            loss = loss + made.losses(batch, latents, z)["decoder_nll"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vectors = made.vectors()[batch.input_ids[batch.attention_mask].unique()]
    return (vectors - vectors.mean(0)).square().mean().sqrt().item()


def test_only_the_decoder_loss_keeps_embeddings_from_collapsing(space, batch):
    without = spread_after(space(sigma_0=0.1), batch, with_nll=False)
    with_nll = spread_after(space(sigma_0=0.1), batch, with_nll=True)
    unit = spread_after(space(sigma_0=0.1, normalize_embeddings=True), batch, with_nll=True)
    assert without < 0.1 < 0.4 < min(with_nll, unit), (without, with_nll, unit)


def test_normalized_embeddings_keep_unit_scale_in_training(space):
    made = space(normalize_embeddings=True)
    with torch.no_grad():
        made.vectors.table.mul_(1e-3)
    torch.testing.assert_close(made.vectors().norm(dim=-1), torch.full((len(made.tokenizer),), math.sqrt(D)))


# -------------------------------------------------------------------------------------------------- pretrained tables


def test_pretrained_embeddings_begin_at_the_scale_of_the_noise(space, tokenizer):
    table = 0.04 * torch.randn(len(tokenizer), 24, generator=noise_of())
    same = space(pretrained=table, embedding_dim=None)
    assert same.dim == 24 and same.vectors.projection is None
    assert same.vectors().std().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(same.vectors() / same.vectors()[0, 0], table / table[0, 0])
    narrow = space(pretrained=table, freeze_embeddings=True)
    assert narrow.dim == D and narrow.vectors().shape == (len(tokenizer), D)
    assert narrow.vectors().std().item() == pytest.approx(1, rel=1e-4)
    narrow.vectors().sum().backward()
    assert narrow.vectors.projection.weight.grad.any() and narrow.vectors.table.grad is None


def test_the_input_embeddings_of_a_language_model(tiny, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = str(tiny("bart"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = input_embeddings(folder, tokenizer)
    expected = AutoModelForSeq2SeqLM.from_pretrained(folder).get_input_embeddings().weight
    assert torch.equal(table, expected[: len(table)]) and len(table) == len(tokenizer)
    made = EmbeddingSpace(tokenizer, EmbeddingOptions(rounding_head="distance"), 40, pretrained=table)
    assert made.decode(made.encode(batch_of(tokenizer, TEXTS))) == TEXTS
    options = EmbeddingOptions(embedding_init=folder, embedding_dim=D)
    made = make_embedding_space(tokenizer, options, 40)
    refilled = make_embedding_space(tokenizer, replace(options, embedding_init="gone"), 40, trained_width=16)
    refilled.load_state_dict(made.state_dict())
    assert made.vectors.width == 16 and refilled.fingerprint() == made.fingerprint()
    other = train_tokenizer(TEXTS, "word", 30, 20)
    with pytest.raises(UserError, match="take the tokenizer of that model"):
        input_embeddings(folder, other)
    with pytest.raises(UserError, match="nothing/at/all cannot be read"):
        input_embeddings("nothing/at/all", tokenizer)


# ------------------------------------------------------------------------------------------------------ texts, saving


def batch_of(tokenizer, texts) -> Batch:
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return Batch(tokens.input_ids, tokens.attention_mask.bool())


@pytest.mark.parametrize("changes", [{"rounding_head": "distance"}, {"normalize_embeddings": True}])
def test_a_latent_decodes_to_its_text(space, batch, changes):
    # without these changes, before training, a longer vector can score higher than the embedding that equals x0
    made = space(**changes)
    latents = made.encode(batch)
    assert made.decode(latents) == TEXTS
    assert made.decode(latents, max_length=64, num_beams=4) == TEXTS  # settings of a decoder have no effect here
    skip = torch.zeros(3, L, dtype=torch.bool)
    skip[:, :3] = True  # start, two words
    assert made.decode(latents, skip=skip)[0] == "apple is fresh."


def test_decoded_texts_end_at_the_end_token(space, tokenizer):
    made = space()
    word = tokenizer.convert_tokens_to_ids("red")
    ids = torch.tensor([[1, word, 2, word, 2], [2, word, word, word, word], [word, 3, word, 4, word]])
    assert made.texts(ids, torch.ones_like(ids, dtype=torch.bool)) == ["red", "", "red red red"]
    assert made.texts(ids, torch.tensor([[False] * 2 + [True] * 3] * 3)) == ["", "red red red", "red red"]


def test_a_saved_space_is_reloaded_unchanged(space, batch, tmp_path):
    from safetensors.torch import load_file, save_file

    made = space(sigma_0=0.1)
    with torch.no_grad():
        made.bias.normal_()
    save_file(made.state_dict(), tmp_path / "space.safetensors")
    again = space(sigma_0=0.1, seed=5)
    assert again.fingerprint() != made.fingerprint()
    again.load_state_dict(load_file(tmp_path / "space.safetensors"))
    assert again.fingerprint() == made.fingerprint()
    a, b = encode_with_noise(made, batch), encode_with_noise(again, batch)
    assert torch.equal(a.x0, b.x0) and torch.equal(token_logits(made, a.x0), token_logits(again, b.x0))
    assert space(sigma_0=0.2).fingerprint() != space(sigma_0=0.1).fingerprint()


def test_autocast_does_not_change_the_precision_of_the_table(space, batch):
    made = space()
    with torch.autocast("cpu", torch.bfloat16):
        latents = made.encode(batch)
        nll = made.nll(batch, latents.x0)
    assert latents.x0.dtype == torch.float32 == nll.dtype
    assert torch.equal(latents.x0, made.encode(batch).x0)
