"""Properties of our denoisers: sizes, padding, conditions and previous estimates by example."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffusion.learned_variance import split_variance
from diffusion.noise_levels import NoiseLevel
from diffusion.objectives import to_x0
from model import make_denoiser
from model.blocks import sinusoids
from model.options import DenoiserOptions
from utils.errors import UserError
from utils.records import Condition

B, L, D, S, C = 4, 6, 8, 5, 12
OPTIONS = DenoiserOptions(tx_dim=64, tx_depth=3, self_condition=True, scale_shift=True, num_dense_connections=1)
each = pytest.mark.parametrize("variant", ["latent", "states", "mlp"])


def denoiser(variant, num_classes=0, source_dim=0, **changes):
    """A small network whose zero-initialised layers were given weights, so that every input affects the output."""
    torch.manual_seed(0)
    options = replace(OPTIONS, denoiser_variant=variant, class_conditional=num_classes > 0, **changes)
    network = make_denoiser(D, 8, options, num_classes, source_dim)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    z, prev = torch.randn(B, L, D, generator=g), torch.randn(B, L, D, generator=g)
    return z, torch.rand(B, generator=g), prev


def prefix_mask(*lengths, size=L):
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def full_condition(seed=1):
    g = torch.Generator().manual_seed(seed)
    return Condition.of(torch.tensor([0, 1, 2, 0]), torch.randn(B, S, C, generator=g), prefix_mask(5, 3, 4, 1, size=S))


def test_parameter_counts_of_the_published_networks():
    second = DenoiserOptions(tx_dim=768, tx_depth=12, self_condition=True, scale_shift=True, num_dense_connections=3)
    first = replace(second, num_dense_connections=0, denoiser_variant="states")
    with torch.device("meta"):
        assert sum(p.numel() for p in make_denoiser(64, 64, second).parameters()) == 187_928_960
        assert sum(p.numel() for p in make_denoiser(768, 64, first).parameters()) == 214_342_272


@each
def test_fresh_network_predicts_zero(variant):
    z, time, prev = inputs()
    network = make_denoiser(D, 8, replace(OPTIONS, denoiser_variant=variant))
    assert network(z, time, prefix_mask(6, 3, 2, 1), None, prev).abs().max() == 0


@each
def test_padding_never_reaches_valid_positions(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    lengths = (6, 3, 2, 1)
    mask, condition = prefix_mask(*lengths), full_condition()
    out = network(z, time, mask, condition, prev)
    junk = torch.where(mask[..., None], 0.0, 1e3)
    noisy = replace(condition, source=condition.source + torch.where(condition.source_mask[..., None], 0.0, 1e3))
    again = network(z + junk, time, mask, noisy, prev - junk)
    assert out.isfinite().all() and again.isfinite().all()
    torch.testing.assert_close(again[mask], out[mask])
    for i, n in enumerate(lengths):  # nor does its length matter
        alone = network(z[i : i + 1, :n], time[i : i + 1], None, condition[i : i + 1], prev[i : i + 1, :n])
        torch.testing.assert_close(alone[0], out[i, :n], atol=1e-5, rtol=1e-5)


@each
def test_no_mask_is_a_mask_of_ones(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    args = (full_condition(), prev)
    torch.testing.assert_close(network(z, time, None, *args), network(z, time, prefix_mask(L, L, L, L), *args))


@each
def test_null_condition_equals_dropped_and_absent(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    mask, condition = prefix_mask(6, 3, 2, 1), full_condition()
    absent = network(z, time, mask, None, prev)
    torch.testing.assert_close(network(z, time, mask, condition.null(), prev)[mask], absent[mask])
    dropped = condition.drop(torch.zeros(B), 0.5, torch.zeros(B), 0.5)
    torch.testing.assert_close(network(z, time, mask, dropped, prev)[mask], absent[mask])
    assert (network(z, time, mask, condition, prev) - absent)[mask].abs().max() > 1e-3


@each
def test_conditions_are_dropped_example_by_example(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    condition = full_condition()
    keep_class, keep_source = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    mixed = network(z, time, None, replace(condition, keep_class=keep_class, keep_source=keep_source), prev)
    for i in range(B):
        parts = Condition.of(
            condition.class_id[i : i + 1] if keep_class[i] else None,
            *((condition.source[i : i + 1], condition.source_mask[i : i + 1]) if keep_source[i] else ()),
        )
        alone = network(z[i : i + 1], time[i : i + 1], None, parts, prev[i : i + 1])
        torch.testing.assert_close(mixed[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@each
def test_stacked_conditions_are_two_passes(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    condition = full_condition()
    both_halves = network(
        z.repeat(2, 1, 1), time.repeat(2), None, Condition.stack(condition, condition.null()), prev.repeat(2, 1, 1)
    )
    torch.testing.assert_close(both_halves[:B], network(z, time, None, condition, prev), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both_halves[B:], network(z, time, None, None, prev), atol=1e-5, rtol=1e-5)


@each
@pytest.mark.parametrize("conditioned", [False, True])
def test_a_time_shared_by_all_rows_may_have_one_row(variant, conditioned):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    mask, condition = prefix_mask(6, 3, 2, 1), full_condition() if conditioned else None
    one = network(z, time[:1], mask, condition, prev)
    torch.testing.assert_close(one, network(z, time[:1].expand(B), mask, condition, prev), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, network(z, time, mask, condition, prev), atol=1e-3)


@each
def test_a_source_without_tokens_equals_no_source(variant):
    network = denoiser(variant, source_dim=C)
    z, time, prev = inputs()
    empty = Condition.of(None, torch.randn(B, S, C), torch.zeros(B, S, dtype=torch.bool))
    torch.testing.assert_close(network(z, time, None, empty, prev), network(z, time, None, None, prev))


@each
def test_source_mask_none_is_all_visible(variant):
    network = denoiser(variant, source_dim=C)
    z, time, _ = inputs()
    source = torch.randn(B, S, C)
    given = Condition.of(None, source, torch.ones(B, S, dtype=torch.bool))
    torch.testing.assert_close(network(z, time, None, Condition.of(None, source)), network(z, time, None, given))


@each
@pytest.mark.parametrize("masked", [False, True])
def test_the_previous_estimate_is_masked_example_by_example(variant, masked):
    network = denoiser(variant)
    z, time, prev = inputs()
    mask = prefix_mask(6, 3, 2, 1) if masked else None
    self_cond_mask = torch.tensor([True, False, False, True])
    mixed = network(z, time, mask, None, prev, self_cond_mask)
    with_prev, without = network(z, time, mask, None, prev), network(z, time, mask)
    valid = prefix_mask(L, L, L, L) if mask is None else mask
    torch.testing.assert_close(mixed[valid], torch.where(self_cond_mask[:, None, None], with_prev, without)[valid])
    assert (with_prev - without)[valid].abs().max() > 1e-3


@each
def test_without_self_conditioning_the_previous_estimate_is_ignored(variant):
    network = denoiser(variant, self_condition=False)
    z, time, prev = inputs()
    assert torch.equal(network(z, time, None, None, prev), network(z, time))


@each
def test_null_embeddings_get_gradients(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    keep = torch.tensor([True, False, True, False])
    condition = replace(full_condition(), keep_class=keep, keep_source=keep)
    network(z, time, prefix_mask(6, 3, 2, 1), condition, prev, keep).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    assert network.class_labels.table.weight.grad[-1].any()


@each
def test_unsupported_conditions_are_an_error(variant):
    network = denoiser(variant)
    z, time, _ = inputs()
    with pytest.raises(ValueError, match="without classes"):
        network(z, time, None, Condition.of(torch.zeros(B, dtype=torch.long)))
    with pytest.raises(ValueError, match="without a source"):
        network(z, time, None, Condition.of(None, torch.randn(B, S, C)))


@each
def test_invalid_sizes_are_one_line_errors(variant):
    if variant != "mlp":  # it has no heads
        with pytest.raises(UserError, match="--tx_dim is 100"):
            make_denoiser(D, 8, replace(OPTIONS, denoiser_variant=variant, tx_dim=100))
    with pytest.raises(UserError, match="--tx_depth is 0"):
        make_denoiser(D, 8, replace(OPTIONS, denoiser_variant=variant, tx_depth=0, num_dense_connections=0))
    with pytest.raises(UserError, match="--class_conditional"):
        make_denoiser(D, 8, replace(OPTIONS, denoiser_variant=variant, class_conditional=True))
    with pytest.raises(UserError, match="--max_seq_len"):
        denoiser(variant)(torch.randn(1, 9, D), torch.rand(1))


@each
def test_dropout_is_only_in_training_and_can_be_disabled(variant):
    z, time, _ = inputs()
    network = denoiser(variant).train()
    assert not torch.equal(network(z, time), network(z, time))
    network = denoiser(variant, disable_dropout=True).train()
    assert torch.equal(network(z, time), network(z, time))


@each
def test_bfloat16_autocast_with_padding(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    mask = prefix_mask(6, 3, 2, 1)
    exact = network(z, time, mask, full_condition(), prev)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(z, time, mask, full_condition(), prev)
    assert rough.isfinite().all()
    assert (rough - exact)[mask].abs().mean() < 0.05 * exact[mask].abs().mean()


@each
def test_the_output_layer_stays_in_float32_under_autocast(variant):
    """A noise near 1 rounded to bfloat16 is off by 1/512, which at alpha = 5e-4 is 4 standard deviations of x0."""
    network = denoiser(variant)
    seen = []
    network.output_proj.register_forward_hook(lambda layer, args, out: seen.append((args[0], out)))
    z, time, prev = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(z, time, None, None, prev)
    ((hidden, projected),) = seen
    assert out.dtype == hidden.dtype == torch.float32
    projected = projected.reshape(B, -1, D)[:, :L]  # that of an MLP holds all positions in one vector
    assert torch.equal(out, projected)
    exact = torch.nn.functional.linear(hidden, network.output_proj.weight, network.output_proj.bias)
    exact = exact.reshape(B, -1, D)[:, :L]
    level = NoiseLevel(torch.tensor(5e-4), torch.tensor(1.0))
    error = to_x0("eps", out, z, level) - to_x0("eps", exact, z, level)
    rounded = to_x0("eps", exact.bfloat16().float(), z, level) - to_x0("eps", exact, z, level)
    assert error.abs().max() < 0.01 and rounded.std() > 2


@each
def test_a_learned_variance_is_a_second_output(variant):
    """Beside the prediction, which has the same weights and values as without it."""
    plain, wide = denoiser(variant), denoiser(variant, learned_variance=True)
    z, time, prev = inputs()
    mask = prefix_mask(6, 3, 2, 1)
    out = wide(z, time, mask, None, prev)
    assert out.shape == (B, L, 2 * D) and plain(z, time, mask, None, prev).shape == z.shape
    fresh = make_denoiser(D, 8, replace(OPTIONS, denoiser_variant=variant, learned_variance=True))
    prediction, v = split_variance(fresh(z, time, mask, None, prev), D)
    assert prediction.shape == v.shape == z.shape and bool((prediction == 0).all()) and bool((v == 0.5).all())
    own = wide.output_proj.weight.view(-1, 2, D, 64) if variant == "mlp" else wide.output_proj.weight.view(2, D, 64)
    with torch.no_grad():
        own[..., 0, :, :].zero_()  # the weights of the prediction alone
    changed = wide(z, time, mask, None, prev) - out
    assert bool((changed[..., D:] == 0).all()) and bool(changed[..., :D].any())


@each
def test_float64_network(variant):
    network = denoiser(variant, num_classes=3).double()
    z, time, prev = (x.double() for x in inputs())
    condition = Condition.of(torch.tensor([0, 1, 2, 0]))
    out = network(z, time, prefix_mask(6, 3, 2, 1), condition, prev)
    assert out.dtype == torch.float64
    single = network.float()(z.float(), time.float(), prefix_mask(6, 3, 2, 1), condition, prev.float())
    torch.testing.assert_close(single.double(), out, atol=1e-3, rtol=1e-3)


@each
def test_one_position_one_example(variant):
    network = denoiser(variant)
    assert network(torch.randn(1, 1, D), torch.ones(1), torch.ones(1, 1, dtype=torch.bool)).shape == (1, 1, D)


def test_states_variant_attends_only_to_valid_tokens_of_the_previous_estimate():
    network = denoiser("states")
    z, time, prev = inputs()
    mask = prefix_mask(6, 3, 2, 1)
    memory, visible = network.memory(mask, None, prev, torch.tensor([True, True, False, False]))
    assert memory.shape == (B, L, 64)
    assert visible.sum(1).tolist() == [6, 3, 1, 1]
    torch.testing.assert_close(memory[2:, 0], network.previous_tokens.null.expand(2, -1))
    torch.testing.assert_close(memory[:2], network.previous_tokens.proj(prev[:2]))


def test_plain_states_variant_has_no_memory():
    network = denoiser("states", self_condition=False)
    assert network.trunk.blocks[0].cross is None
    z, time, _ = inputs()
    assert network(z, time, prefix_mask(6, 3, 2, 1)).shape == z.shape


def test_sinusoids_closed_form():
    position = torch.tensor([0.0, 1.0, 250.0])
    wave = sinusoids(position, 64)
    assert wave.dtype == torch.float32
    for i in (0, 7, 31):
        frequency = 10000 ** (-i / 31)
        for row, p in enumerate(position.tolist()):
            assert wave[row, i].item() == pytest.approx(math.sin(p * frequency), abs=2e-4)
            assert wave[row, 32 + i].item() == pytest.approx(math.cos(p * frequency), abs=2e-4)


@pytest.mark.slow
@each
def test_networks_compile_without_graph_breaks(variant):
    network = denoiser(variant, num_classes=3, source_dim=C)
    z, time, prev = inputs()
    args = (z, time, prefix_mask(6, 3, 2, 1), full_condition(), prev, torch.tensor([True, False, True, False]))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), network(*args))
