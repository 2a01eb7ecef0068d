"""Variations, interpolation and infilling of texts that have a source, in every space that takes sources."""

from __future__ import annotations

import pytest
import torch

from pipelines.infill import main as infill
from pipelines.rewrite import main as rewrite
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.pipelines.pretrained.conftest import SOURCES
from utils.errors import UserError

TEXTS = ["There she spotted a white kite.", "He hugged her and danced."]
KINDS = ["pairs", "context", "packed"]


@pytest.fixture
def inputs_seen(monkeypatch):
    """The condition and the known positions of every call of a sampler."""
    from pipelines.sampling.latent_sampler import LatentSampler

    seen, original = [], LatentSampler.make_denoise_fn

    def watched(self, condition, mask, shift=None, **options):
        seen.append((condition, options.get("known")))
        return original(self, condition, mask, shift, **options)

    monkeypatch.setattr(LatentSampler, "make_denoise_fn", watched)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_variations_depend_on_the_source_of_their_text(loaded, kind, inputs_seen):
    pipe = loaded(kind)
    inputs_seen.clear()  # of its training
    rows = pipe.variations(TEXTS, 3, source=SOURCES, strength=0.6, seed=1)
    assert [len(row) for row in rows] == [3, 3]
    assert rows == pipe.variations(TEXTS, 3, source=SOURCES, strength=0.6, seed=1)
    same = pipe.variations(TEXTS, 3, source=SOURCES[0], strength=0.6, seed=1)
    assert same[0] == rows[0], "a source of its own, or one for all"
    condition, known = inputs_seen[0]
    if kind == "packed":
        source = known.value[:, :4]
        assert torch.equal(source[0], source[1]) and not torch.equal(source[0], source[3])
        assert all("Ben ran" not in text for row in rows for text in row)
    else:
        mask = condition.source_mask[0]
        assert torch.equal(condition.source[0][mask], condition.source[2][mask])
        assert not torch.equal(condition.source[0], condition.source[3])


@pytest.mark.parametrize("kind", ["pairs", "context", "frozen-packed"])
def test_interpolation_between_two_texts_of_a_source(programs, loaded, runs, kind, tales_folder, tmp_path):
    if kind == "frozen-packed":
        files = " ".join(f"--{s}_file {tales_folder / f'pairs_{s}.jsonl'}" for s in ("train", "valid", "test"))
        space = "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 64 --seq2seq_candidates 1"
        assert programs.diffusion(space, tmp_path / "run", f"{files} --padding generated --truncate_sources") == 0
        pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    else:
        pipe = loaded(kind)
    path = pipe.interpolate(*TEXTS, 4, source=SOURCES[0], strength=0.5)
    assert len(path) == 4 and path == pipe.interpolate(*TEXTS, 4, source=[SOURCES[0]], strength=0.5)
    with pytest.raises(UserError, match=r"interpolate needs those of its texts: give source, one for all texts"):
        pipe.interpolate(*TEXTS, 4)
    if kind == "pairs":
        flags = {"device": "cpu", "sampler": "ddim", "sampling_timesteps": 50}
        exact = TextDiffusionPipeline.from_pretrained(runs(kind), **flags)
        try:
            ends = exact.interpolate(*TEXTS, 2, source=SOURCES[0], invert=True, decoding="greedy")
            assert ends == [exact.decode(exact.encode([text]), "greedy")[0] for text in TEXTS]
        except UserError as error:
            assert "DDIM inversion does not reconstruct" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_blanks_of_a_text_are_filled_given_its_source(loaded, kind, inputs_seen):
    pipe = loaded(kind)
    inputs_seen.clear()  # of its training
    texts = ["There she ___ a white kite.", "He [blank:2] her."]
    rows = pipe.infill(texts, 2, source=SOURCES, seed=1)
    assert all(text.startswith("There she ") and text.endswith(" a white kite.") for text in rows[0])
    assert all(text.startswith("He ") and text.endswith(" her.") for text in rows[1])
    condition, known = inputs_seen[0]
    if kind == "packed":
        unknown = ~known.mask
        assert unknown.sum(1).tolist() == [1, 1, 2, 2], "all but the blanks is known, the source included"
    else:
        assert len(condition.source) == 4
    with pytest.raises(UserError, match="infill needs those of its texts"):
        pipe.infill(texts)


def test_a_pair_that_is_too_long_is_cut_or_refused(loaded, capsys):
    pipe = loaded("packed")
    assert len(pipe.variations(["he ran " * 28], source=SOURCES[0])) == 1
    assert "of the pairs have more than 64 tokens, source and text together" in capsys.readouterr().err
    with pytest.raises(UserError, match="and its source have .* tokens together, and this run allows 64: shorten"):
        pipe.infill(["he ran " * 28 + "___"], source=SOURCES[0])


def test_guidance_of_candidates(loaded):
    pipe = loaded("pairs")
    options = {"decoding": "greedy", "seed": 5}
    guided = pipe.candidates(SOURCES, 2, guidance=4, **options)
    assert guided == [
        row for row in (pipe(source=SOURCES, num_samples=2, guidance_scale=4, generator=5, decoding="greedy")[i:i + 2]
                        for i in (0, 2))
    ]  # fmt: skip
    chosen = pipe.generate_from_sources(SOURCES, candidates=2, guidance=4, **options)
    assert all(text in row for text, row in zip(chosen, guided, strict=True))
    with pytest.raises(UserError, match="guidance 2 needs a source: give source too, or leave guidance out"):
        pipe.sample(1, guidance=2)


@pytest.mark.parametrize("kind", ["pairs", "packed"])
def test_a_trajectory_of_texts_of_a_source(loaded, kind):
    pipe = loaded(kind)
    last = pipe.trajectory(2, source=SOURCES[0], seed=3)[-1]
    assert last.t == 0 and last.texts == pipe(2, source=SOURCES[0], seed=3, decoding="greedy").texts


def test_sources_that_do_not_fit(loaded):
    with pytest.raises(UserError, match="2 sources for 1 texts: give one source, or one for each text"):
        loaded("pairs").variations(TEXTS[:1], source=SOURCES)
    with pytest.raises(UserError, match="trained without sources"):
        loaded("latents").variations(TEXTS, source=SOURCES)
    with pytest.raises(UserError, match="invert returns the noise of texts alone: use interpolate with source"):
        loaded("pairs").invert(TEXTS)


@pytest.mark.parametrize("kind", ["pairs", "packed"])
def test_the_programs_take_sources(runs, kind, tmp_path, capsys):
    run = str(runs(kind))
    (tmp_path / "sources.txt").write_text("\n".join(SOURCES) + "\n")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    files = ["--source_file", str(tmp_path / "sources.txt"), "--device", "cpu"]
    assert rewrite([run, "--text_file", str(tmp_path / "texts.txt"), *files, "-n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert infill([run, "--text", "There she ___ a kite.", "--source", SOURCES[0], "--device", "cpu", "-n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    if kind == "pairs":
        flags = ["--to", TEXTS[1], "--source", SOURCES[0], "-n", "3", "--device", "cpu"]
        assert rewrite([run, "--text", TEXTS[0], *flags]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
    for main, argv, message in (
        (rewrite, ["--text", "a", "--source", "b", "--source", "c"], "2 sources for 1 texts"),
        (rewrite, ["--text", "a"], "variations needs those of its texts: give source"),
        (infill, ["--text", "a ___", "--source_file", "nowhere"], "--source_file nowhere: no such file"),
    ):
        with pytest.raises(SystemExit) as left:
            main([run, "--device", "cpu", *argv])
        assert left.value.code == 2 and message in capsys.readouterr().err
