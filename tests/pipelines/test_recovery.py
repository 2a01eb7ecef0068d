"""Recovery from noise, the margin of a decoder, and iMAUVE, on cases where the answer is known."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch

from dataset_utils.splits import Split
from evaluation import scorers
from latent_models.spaces.compressed import CompressedSpace
from pipelines.data.tokens import tokenize_split
from pipelines.evaluators.interpolation import evaluate_imauve
from pipelines.evaluators.reconstruction import reconstruct, via_latents
from pipelines.evaluators.recovery import evaluate_recovery, margin, via_noised_latents
from utils.seeding import derive_seed

CPU = torch.device("cpu")
TEXTS = ["Ben ran to the garden one warm night.", "Later she gave it to her mother.", "Anna walked to the forest."]


@pytest.fixture(scope="module")
def space(chain):
    return CompressedSpace.from_pretrained(chain / "ae")


@pytest.fixture(scope="module")
def data(space):
    return tokenize_split(Split(TEXTS), space.language_model, 40)


def test_the_margin_is_that_of_the_two_largest_logits(space, data):
    found = margin(space, data, torch.tensor([0]), 4, 0.3, CPU, nullcontext)
    batch = data.batch(torch.tensor([0]))
    torch.manual_seed(derive_seed(0, "margin", 0))
    with torch.no_grad():
        x0 = space.encode(batch).x0
        noise = torch.randn(x0.shape)
        z = (1 - 0.3**2) ** 0.5 * x0 + 0.3 * x0.square().mean().sqrt() * noise
        logits = space.language_model.logits(space.autoencoder.decode(z), None, batch.input_ids)[0]
    ordered = logits.sort(-1, descending=True).values
    assert found == pytest.approx(float((ordered[:, 0] - ordered[:, 1]).mean()), rel=1e-5)


def test_without_noise_the_text_is_that_of_the_clean_latents(space, data):
    rows, rest = torch.arange(3), (2, "greedy", CPU, nullcontext, "x", True)
    clean = reconstruct(via_latents(space, 40), data, rows, *rest)
    assert reconstruct(via_noised_latents(space, 0.0, 40), data, rows, *rest) == clean
    metrics, texts = evaluate_recovery(
        space, data, rows, TEXTS, ["greedy"], batch_size=2, max_length=40, device=CPU, autocast=nullcontext,
        dist=None, quiet=True, sigmas=(0.0, 0.5),
    )  # fmt: skip
    assert texts["noise 0/greedy"] == clean
    pair = (metrics["noise/greedy/bleu_0"], metrics["noise/greedy/bleu_0.5"])
    assert metrics["noise/greedy/recovery"] == pytest.approx(sum(pair) / 2)
    assert {"noise/margin_0", "noise/margin_0.5", "noise/greedy/exact_match_0"} <= metrics.keys()


def test_a_decoder_with_wide_basins_recovers_more_and_is_surer(space, data):
    """Latents that are twice as far from each other in units of their noise: the margin under noise is larger."""

    class Wide(CompressedSpace):
        """The same space, in which noise is half as large."""

        def add_latent_noise(self, x0, noise, sigma, mask=None):
            return super().add_latent_noise(x0, noise, sigma / 2, mask)

    wide = Wide(space.language_model, space.autoencoder).eval()
    args = (data, torch.arange(3), 4)
    narrow_gap, wide_gap, clean_gap = (
        margin(s, *args, sigma, CPU, nullcontext) for s, sigma in ((space, 0.9), (wide, 0.9), (space, 0.0))
    )
    assert abs(wide_gap - clean_gap) < abs(narrow_gap - clean_gap)


def test_imauve_orders_texts_like_held_out_ones_before_word_salad_and_before_one_text(programs):
    pytest.importorskip("mauve")
    scorer = scorers.load(str(programs.scorer))
    lines = (programs.corpus / "train.jsonl").read_text().splitlines()
    texts = [line.split('"')[3] for line in lines]
    good, held_out = texts[:100], texts[100:200]
    rng = random.Random(0)
    salad = [" ".join(rng.sample(text.split(), len(text.split()))) for text in good]

    def imauve(made: list[str]) -> float:
        found = evaluate_imauve(made, held_out, scorer, None, prefix="midpoints/greedy/")
        assert set(found) == {"midpoints/greedy/local_lm_imauve", "protocol"} and found["protocol"]["mauve"]["n"] == 100
        return found["midpoints/greedy/local_lm_imauve"]

    best = imauve(good)
    assert best > imauve(salad) and best > imauve([good[0]] * 100)
