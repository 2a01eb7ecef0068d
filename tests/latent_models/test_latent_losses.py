"""Losses and augmentations of autoencoders, each against a computation that is written out here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latent_models.autoencoders import make_autoencoder
from latent_models.autoencoders.augmentations import AUGMENTATIONS, DrawnAugmentation, used_augmentations
from latent_models.autoencoders.heads import AlignmentHead, FeatureHead, align, match_features
from latent_models.autoencoders.losses import LATENT_LOSSES, loss_weights
from latent_models.autoencoders.options import LatentAugmentationOptions, LatentLossOptions, PerceiverOptions
from latent_models.autoencoders.per_token import PerTokenAutoencoder
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.autoencoders.variational import VariationalEncoder, kl_divergence, sample
from latent_models.spaces.compressed import CompressedSpace
from latent_models.tokenizers.special_ids import filler_id
from utils.errors import UserError
from utils.records import Batch, Latents
from utils.seeding import StepRNG

OPTIONS = PerceiverOptions(num_encoder_latents=3, dim_ae=8, num_layers=1)
LENGTHS = [6, 3]


def make_space(language_model, kind=PerceiverAutoencoder, losses=None, variational=False, **more) -> CompressedSpace:
    model = language_model()
    torch.manual_seed(0)
    autoencoder = kind(dim_lm=model.dim, options=OPTIONS, max_seq_len=12, head_dim=8)
    if variational:
        autoencoder.make_variational()
    space = CompressedSpace(model, autoencoder)
    if losses or more:  # with heads of the width of this tiny model
        from latent_models.autoencoders.heads import Heads

        losses = losses or LatentLossOptions()
        space.latent_losses = loss_weights(losses)
        space.loss_weights = {**autoencoder.loss_weights, **space.latent_losses}
        space.heads = Heads(
            autoencoder, losses, more.get("noise_level_conditioning", False), more.get("alignment_dim"), head_dim=8
        )
    return space.eval()


def make_batch() -> Batch:
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(1))
    return Batch(ids * mask + ~mask, mask)


def test_feature_matching_is_the_error_of_the_states_of_each_token():
    torch.manual_seed(0)
    head, memory, states = FeatureHead(16, 12, head_dim=8), torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    found = match_features(head, memory, None, states, mask)
    for row, length in enumerate(LENGTHS):
        alone = head(memory[row : row + 1], None, mask[row : row + 1, :length])[0]
        wanted = (states[row, :length] - states[row, :length].mean(-1, keepdim=True)) / (
            states[row, :length].var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(found[row], ((alone - wanted) ** 2).mean())


def test_alignment_is_a_cosine_of_a_linear_map_of_the_latents():
    torch.manual_seed(0)
    x0, target, mask = torch.randn(2, 3, 8), torch.randn(2, 5), torch.tensor([[True, True, True], [True, False, False]])
    fixed, variable = AlignmentHead(3, 8, 5), AlignmentHead(None, 8, 5)
    mapped = torch.stack([fixed.proj.weight @ row.flatten() for row in x0])
    wanted = 1 - (mapped * target).sum(1) / (mapped.norm(dim=1) * target.norm(dim=1))
    torch.testing.assert_close(align(fixed, x0, mask, target), wanted)
    mean = torch.stack([x0[0].mean(0), x0[1, 0]])
    torch.testing.assert_close(variable(x0, mask), mean @ variable.proj.weight.T)
    assert align(fixed, x0, mask, 3 * mapped).abs().max() < 1e-6, "latents that agree with their features cost nothing"


def test_kl_is_that_of_the_normal_distributions():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(kl_divergence(mean, log_variance), each.sum((1, 2)))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(kl_divergence(mean, log_variance, mask), (each.sum(-1) * mask).sum(1))
    drawn = sample(mean, log_variance, torch.randn(20_000, 2, 3, 4))
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.1, rtol=0.1)
    torch.testing.assert_close(drawn.var(0), log_variance.exp(), atol=0.1, rtol=0.1)


def test_the_losses_of_a_space_are_those_of_its_rows(language_model):
    losses = LatentLossOptions(feature_matching_weight=0.5, alignment_weight=2.0, kl_weight=0.1)
    space = make_space(language_model, losses=losses, variational=True, alignment_dim=5)
    batch, target = make_batch(), torch.randn(2, 5)
    found = space(batch, target=target)
    assert list(found) == ["reconstruction", *LATENT_LOSSES]
    states = space.language_model.encode(batch.input_ids, batch.attention_mask)
    latents, log_variance = space.compress(states, batch)
    kl = kl_divergence(latents.x0, log_variance) / torch.tensor(LENGTHS)
    matched = match_features(space.heads.feature_matching, space.memory(latents), None, states, batch.attention_mask)
    aligned = align(space.heads.alignment, latents.x0, latents.mask, target)
    torch.testing.assert_close(found["kl"], kl)
    torch.testing.assert_close(found["feature_matching"], matched)
    torch.testing.assert_close(found["alignment"], aligned)
    total = found["reconstruction"] + 0.5 * matched + 2 * aligned + 0.1 * kl
    torch.testing.assert_close(space.total_loss(found), total)
    assert "alignment" not in space(batch), "validation knows no features of its texts"
    total.sum().backward()
    assert all(p.grad is not None for p in space.heads.parameters())


def test_features_of_an_encoder_that_trains_are_those_before_training(language_model):
    space, before = make_space(language_model, losses=LatentLossOptions(feature_matching_weight=0.5)), language_model()
    batch, names = make_batch(), list(space.state_dict())
    space.encode_before_training = before.encode
    assert list(space.state_dict()) == names, "a checkpoint holds no copy"
    with torch.no_grad():
        for p in space.language_model.encoder.parameters():
            p.add_(0.1)
    matched = {
        model: match_features(
            space.heads.feature_matching,
            space.memory(space.encode(batch)),
            None,
            model.encode(batch.input_ids, batch.attention_mask),
            batch.attention_mask,
        )
        for model in (before, space.language_model)
    }
    torch.testing.assert_close(space(batch)["feature_matching"], matched[before])
    assert not torch.allclose(matched[before], matched[space.language_model])


@pytest.mark.parametrize("kind", [PerceiverAutoencoder, PerTokenAutoencoder])
def test_padding_changes_no_loss(language_model, kind):
    losses = LatentLossOptions(feature_matching_weight=0.5, alignment_weight=2.0, kl_weight=0.1)
    space = make_space(language_model, kind, losses, variational=True, alignment_dim=5, noise_level_conditioning=True)
    batch, target = make_batch(), torch.randn(2, 5)
    found = space(batch, target=target)
    short = Batch(batch.input_ids[1:, : LENGTHS[1]], batch.attention_mask[1:, : LENGTHS[1]])
    for name, alone in space(short, target=target[1:]).items():
        torch.testing.assert_close(found[name][1:], alone, msg=name)


def test_without_flags_a_space_has_no_heads_and_the_losses_that_it_had(language_model):
    space, batch = make_space(language_model), make_batch()
    assert not list(space.heads.parameters()) and list(space(batch)) == ["reconstruction"]
    assert not any("heads" in name for name in space.state_dict())
    states = space.language_model.encode(batch.input_ids, batch.attention_mask)
    memory = space.autoencoder.decode(space.autoencoder.encode(states, batch.attention_mask))
    wanted = space.language_model.reconstruction_loss(memory, None, batch.input_ids, batch.attention_mask)
    assert torch.equal(space(batch)["reconstruction"], wanted)
    with_heads = make_space(language_model, losses=LatentLossOptions(feature_matching_weight=1))
    for name, x in space.autoencoder.state_dict().items():
        assert torch.equal(x, with_heads.autoencoder.state_dict()[name]), "heads change no first weight"


def test_a_fixed_norm_excludes_a_variance():
    with pytest.raises(UserError, match="--kl_weight.*--l2_normalize_latents.*leave one out"):
        make_autoencoder("perceiver", 64, PerceiverOptions(l2_normalize_latents=True), 9, variational=True)
    made = make_autoencoder("perceiver", 64, OPTIONS, 9, variational=True)
    states = torch.randn(2, 5, 64)
    assert isinstance(made.encoder, VariationalEncoder)
    assert torch.equal(made.encode(states), made.encode_distribution(states)[0]), "diffusion sees the means"


# ------------------------------------------------------------------------------------------------ augmentations


def draw(strengths, rows=(0, 4), total=4, step=3) -> DrawnAugmentation:
    return DrawnAugmentation(strengths, StepRNG(0, step, total, *rows), max_seq_len=50, num_latents=40)


def test_each_augmentation_changes_the_share_that_its_flag_says():
    flags = {row.flag: 0.3 for row in AUGMENTATIONS.values()}
    strengths = used_augmentations(LatentAugmentationOptions(**flags))
    assert list(strengths) == list(AUGMENTATIONS) and not used_augmentations(LatentAugmentationOptions())
    states, mask = torch.ones(4, 50, 6), torch.ones(4, 50, dtype=torch.bool)
    masked = draw({"state_mask": 0.3}).states(states, mask)
    hidden = (masked == 0).all(-1)
    assert 0.15 < float(hidden.float().mean()) < 0.45 and torch.equal(masked[~hidden], states[~hidden])
    mask[1, 5:] = False
    states = torch.randn(4, 50, 600) * torch.tensor([1.0, 5.0, 0.1, 1.0])[:, None, None]
    noise = draw({"state_noise": 0.3}).states(states, mask) - states
    rms = torch.stack([states[row, : int(mask[row].sum())].square().mean().sqrt() for row in range(4)])
    torch.testing.assert_close(noise.square().mean((1, 2)).sqrt(), 0.3 * rms, rtol=0.05, atol=0)
    latents = draw({"latent_mask": 0.3})(torch.ones(4, 40, 6))
    assert 0.15 < float((latents == 0).all(-1).float().mean()) < 0.45
    assert draw({"latent_mask": 0.3}).hidden_tokens(mask, mask) is None


def test_augmentations_do_not_depend_on_the_split_or_the_padding_of_a_batch():
    strengths = dict.fromkeys(AUGMENTATIONS, 0.4)
    states, mask = torch.randn(4, 50, 6), torch.ones(4, 50, dtype=torch.bool)
    mask[:, 30:] = False
    whole, part = draw(strengths), draw(strengths, rows=(1, 3))
    torch.testing.assert_close(part.states(states[1:3, :30], mask[1:3, :30]), whole.states(states, mask)[1:3, :30])
    ids = torch.ones(4, 50, dtype=torch.long)
    assert torch.equal(part.hidden_tokens(ids[1:3, :30], mask), whole.hidden_tokens(ids, mask)[1:3, :30])
    again = draw(strengths, step=4).hidden_tokens(ids, mask)
    assert not torch.equal(again, whole.hidden_tokens(ids, mask)), "each step draws anew"


def test_token_dropout_hides_inputs_of_the_decoder_and_no_label(language_model):
    model, batch = language_model(), make_batch()
    hidden = torch.tensor([[True, True, False, False, True, False]] * 2)
    states = torch.randn(2, 3, model.dim)
    given = batch.input_ids.clone()
    given[:, 0], given[:, 3] = filler_id(model.tokenizer), filler_id(model.tokenizer)  # read at positions 1 and 4
    found = model.reconstruction_loss(states, None, batch.input_ids, batch.attention_mask, hidden)
    logits = model.logits(states, None, given)
    nll = F.cross_entropy(logits.transpose(1, 2), batch.input_ids, reduction="none") * batch.attention_mask
    torch.testing.assert_close(found, nll.sum(1) / torch.tensor(LENGTHS))
    model.chunked_loss = False
    torch.testing.assert_close(
        model.reconstruction_loss(states, None, batch.input_ids, batch.attention_mask, hidden), found
    )


# ------------------------------------------------------------------------------------- noise level, one per token


def test_a_decoder_that_is_told_its_noise(language_model):
    space = make_space(language_model, noise_level_conditioning=True)
    latents = space.encode(make_batch())
    plain = space.autoencoder.decode(latents.x0)
    torch.testing.assert_close(space.memory(latents), plain, msg="zero before training")
    torch.nn.init.normal_(space.heads.noise_level.output_proj.weight)
    level = torch.tensor([0.1, 0.6])
    conditioned = space.memory(latents, level)
    shifted = latents.x0 + space.heads.noise_level(level)[:, None]
    torch.testing.assert_close(conditioned, space.autoencoder.decode(shifted))
    assert not torch.equal(space.memory(latents), conditioned)
    generate = dict(max_length=5, do_sample=False, num_beams=1)
    torch.manual_seed(0)
    few = space.decode(latents[:1], decoder_noise=0.4, draw_rows=(0, 2), **generate)
    torch.manual_seed(0)
    assert space.decode(latents, decoder_noise=0.4, **generate)[:1] == few
    with pytest.raises(UserError, match="--decoder_noise 0.4 needs.*--noise_level_conditioning"):
        make_space(language_model).decode(latents, decoder_noise=0.4, **generate)


def test_one_latent_per_token_keeps_the_lengths_and_never_reads_padding(language_model):
    space, batch = make_space(language_model, PerTokenAutoencoder), make_batch()
    assert space.variable_length and space.one_latent_per_token and space.length == 12
    latents = space.encode(batch)
    assert latents.x0.shape == (2, 12, 8) and latents.mask.sum(1).tolist() == LENGTHS
    assert not latents.x0[~latents.mask].any()
    alone = space.encode(Batch(batch.input_ids[1:, :3], batch.attention_mask[1:, :3]))
    torch.testing.assert_close(latents.x0[1, :3], alone.x0[0, :3])
    losses = space(batch)["reconstruction"]
    short = space(Batch(batch.input_ids[1:, :3], batch.attention_mask[1:, :3]))["reconstruction"]
    torch.testing.assert_close(losses[1:], short)
    junk = Latents(torch.where(latents.mask[..., None], latents.x0, 9.0), latents.mask)
    texts = space.decode(latents, max_length=6, do_sample=False, num_beams=1)
    assert space.decode(junk, max_length=6, do_sample=False, num_beams=1) == texts
    noise, sigma = torch.randn(latents.x0.shape), torch.tensor([0.5, 0.0])
    noised = space.add_latent_noise(latents.x0, noise, sigma, latents.mask)
    assert torch.equal(noised[1], latents.x0[1]) and not noised[~latents.mask].any()
    rms = latents.x0[0, :6].square().mean().sqrt()
    torch.testing.assert_close(noised[0, :6], 0.75**0.5 * latents.x0[0, :6] + 0.5 * rms * noise[0, :6])
