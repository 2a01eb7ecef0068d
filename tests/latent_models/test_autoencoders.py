"""The table of autoencoders: each row builds one that fulfills the contract, and training adds its own losses."""

from __future__ import annotations

import pytest
import torch

from latent_models.autoencoders import AUTOENCODERS, autoencoder_row, make_autoencoder
from latent_models.autoencoders.augmentations import BatchAugmentation
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.spaces.compressed import CompressedSpace
from utils.errors import UserError
from utils.records import Batch, Latents


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_row_fulfills_the_contract(name):
    made = make_autoencoder(name, 64, autoencoder_row(name).options(), 20)
    states, mask = torch.randn(2, 9, 64), torch.ones(2, 9, dtype=torch.bool)
    latents = made.encode(states, mask)
    length = 9 if made.variable_length else made.num_latents
    assert latents.shape == (2, length, made.dim) and made.max_seq_len == 20
    assert made.project(latents).shape == latents.shape
    masks = (mask,) if made.variable_length else ()
    assert made.decode(latents, *masks).shape[::2] == (2, 64)
    batch = Batch(torch.ones(2, 9, dtype=torch.long), mask)
    found = made.losses(batch, Latents(latents, torch.ones(latents.shape[:2], dtype=torch.bool)), states)
    assert all(value.shape == (2,) for value in found.values())


def test_an_unknown_name_is_refused_in_one_line():
    with pytest.raises(UserError, match="--autoencoder vae is not an autoencoder: choose from perceiver"):
        autoencoder_row("vae")


class RegularizedAutoencoder(PerceiverAutoencoder):
    """An autoencoder with two further losses."""

    loss_weights = {"norm": 0.5}

    def losses(self, batch, latents, states):
        return {"norm": latents.x0.square().mean((1, 2)), "one": torch.ones(len(latents))}


class Doubling(BatchAugmentation):
    def __call__(self, x0, mask=None):
        return 2 * x0


def test_own_losses_are_added_to_the_reconstruction_loss_by_their_weights(language_model):
    model = language_model()
    torch.manual_seed(0)
    options = PerceiverOptions(num_encoder_latents=3, dim_ae=8, num_layers=1)
    kind = dict(dim_lm=model.dim, options=options, max_seq_len=12, head_dim=8)
    space = CompressedSpace(model, RegularizedAutoencoder(**kind)).eval()
    plain = CompressedSpace(model, PerceiverAutoencoder(**kind)).eval()
    plain.autoencoder.load_state_dict(space.autoencoder.state_dict())
    batch = Batch(torch.randint(3, 20, (2, 6)), torch.ones(2, 6, dtype=torch.bool))
    own = 0.5 * space.encode(batch).x0.square().mean((1, 2)) + 1
    assert list(space(batch)) == ["reconstruction", "norm", "one"]

    def loss(space, *augment):
        return space.total_loss(space(batch, *augment))

    torch.testing.assert_close(loss(space), loss(plain) + own)
    doubled = loss(space, Doubling()) - loss(plain, Doubling())
    torch.testing.assert_close(doubled, own, msg="own losses see the latents before augmentation")
