"""The classifier of noised latents: padding, gradients, and learning of a label from noised latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.classifier import LatentClassifier
from model.options import ClassifierOptions
from utils.errors import UserError

D, L = 4, 7
OPTIONS = ClassifierOptions(classifier_dim=64, classifier_depth=1, classifier_dropout=0.0)


def network(classes: int = 3, **changes) -> LatentClassifier:
    torch.manual_seed(0)
    return LatentClassifier(D, L, classes, replace(OPTIONS, **changes))


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_has_no_influence(pooling):
    made = network(classifier_pooling=pooling)
    z, time = torch.randn(3, L, D), torch.rand(3)
    mask = torch.arange(L) < torch.tensor([7, 3, 5])[:, None]
    logits = made(z, time, mask)
    assert logits.shape == (3, 3)
    torch.testing.assert_close(made(torch.where(mask[..., None], z, 1e3), time, mask), logits)
    torch.testing.assert_close(made(z[1:2, :3], time[1:2]), logits[1:2])
    torch.testing.assert_close(made(z, time)[:1], logits[:1])
    assert not torch.allclose(made(z, 1 - time), made(z, time))


def test_logits_are_differentiable_in_the_latents_of_the_text_only():
    made = network().requires_grad_(False)
    z = torch.randn(2, L, D, requires_grad=True)
    mask = torch.arange(L) < torch.tensor([7, 3])[:, None]
    score = F.log_softmax(made(z, torch.rand(2), mask), -1)[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, z)
    assert gradient[mask].any(-1).all() and not gradient[~mask].any()
    double = made.double()
    z = torch.randn(1, 3, D, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: double(x, torch.full((1,), 0.5, dtype=torch.double)), (z,))


def test_the_classifier_learns_noised_labels_and_its_gradient_increases_them():
    """Class c has its text around +-1 in channel 0; following the gradient of its score raises its probability."""
    made = network(classes=2)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    g = torch.Generator().manual_seed(1)

    def drawn(n: int):
        label = torch.randint(0, 2, (n,), generator=g)
        x0 = 0.3 * torch.randn(n, L, D, generator=g)
        x0[..., 0] += 2.0 * label[:, None] - 1
        alpha_bar = torch.rand(n, generator=g)
        noise = torch.randn(n, L, D, generator=g)
        z = alpha_bar.sqrt()[:, None, None] * x0 + (1 - alpha_bar).sqrt()[:, None, None] * noise
        return z, alpha_bar, torch.arange(L) < torch.randint(2, L + 1, (n, 1), generator=g), label

    for _ in range(60):
        z, time, mask, label = drawn(64)
        loss = F.cross_entropy(made(z, time, mask), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()
    z, time, mask, label = drawn(500)
    right = made(z, time, mask).argmax(-1) == label
    assert right[time > 0.5].float().mean() > 0.95 > right[time < 0.1].float().mean()
    z.requires_grad_()
    before = F.log_softmax(made(z, time, mask), -1)[:, 1]
    (gradient,) = torch.autograd.grad(before.sum(), z)
    step = 0.1 * gradient / gradient.square().sum((1, 2), keepdim=True).sqrt()
    after = F.log_softmax(made(z + step, time, mask), -1)[:, 1]
    assert (after > before).float().mean() > 0.99
    assert gradient[..., 0].sum() > 0.9 * gradient.abs().sum() / D  # mostly along the channel that tells them apart


def test_an_invalid_classifier_is_a_one_line_error():
    with pytest.raises(UserError, match="at least two labels, but the corpus has 1"):
        network(1)
    with pytest.raises(UserError, match="--classifier_dim is 100"):
        network(classifier_dim=100)
    with pytest.raises(UserError, match="length 8 exceeds"):
        network()(torch.randn(1, L + 1, D), torch.rand(1))
