"""The cache of latents: built once, found by its key, read from disk, refused if damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_models.cache import DeviceLatentCache, NotFinite, cache_key, open_or_build
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from utils.errors import UserError
from utils.records import Batch, Latents

ROWS, L, D = 10, 4, 3
LENGTHS = np.full(ROWS, 9)  # tokens; they matter where each has a position of its own


class Numbered(LatentSpace):
    """Row r becomes r + position / 10; half of the positions of odd rows are text."""

    variable_length = True

    def __init__(self, ragged: bool = True, offset: float = 0.0) -> None:
        super().__init__()
        self.length, self.dim, self.ragged, self.offset, self.calls = L, D, ragged, offset, 0

    def encode(self, batch):
        assert not self.training, "texts are encoded without dropout"
        self.calls += 1
        row = batch.input_ids[:, :1, None].float()
        x0 = (row + torch.arange(L)[:, None] / 10 + self.offset).expand(-1, L, D)
        odd = (batch.input_ids[:, :1] % 2 == 1) if self.ragged else torch.zeros(len(batch), 1, dtype=torch.bool)
        return Latents(x0, (torch.arange(L) < L // 2) | ~odd)

    def decode(self, latents, **generate):
        return [""] * len(latents)

    def fingerprint(self):
        return f"numbered-{self.offset}"


def batches(rows: torch.Tensor):
    """The rows in another order, in batches of three."""
    for part in rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))].split(3):
        yield part, Batch(part[:, None], torch.ones(len(part), 1, dtype=torch.bool))


def never(rows):
    raise AssertionError("no text may be encoded again")


def expected(rows) -> torch.Tensor:
    return (torch.tensor(rows).float()[:, None, None] + torch.arange(L)[:, None] / 10).expand(-1, L, D)


def test_a_cache_is_built_once_and_stores_rows_at_their_index(tmp_path):
    space, seen = Numbered().train(), []
    cache = open_or_build(tmp_path, "key", LENGTHS, batches, space, progress=seen.append)
    assert space.calls == 4 and seen == sorted(seen) and seen[-1] == ROWS and space.training
    rows = [7, 0, 0, 9]
    latents = cache[torch.tensor(rows)]
    torch.testing.assert_close(latents.x0, expected(rows))
    assert latents.mask.sum(1).tolist() == [2, 4, 4, 2] and latents.mask.dtype == torch.bool
    again = open_or_build(tmp_path, "key", LENGTHS, never, space)
    assert space.calls == 4 and len(again) == ROWS
    assert torch.equal(again[torch.arange(ROWS)].x0, cache[torch.arange(ROWS)].x0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("one_latent_per_token", [False, True])
def test_a_cache_in_memory_has_equal_contents_and_the_announced_size(tmp_path, dtype, one_latent_per_token):
    space = Numbered()
    space.one_latent_per_token = one_latent_per_token
    lengths = np.where(np.arange(ROWS) % 2, L // 2, L)
    cache = open_or_build(tmp_path, "key", lengths, batches, space, dtype=dtype)
    held, rows = DeviceLatentCache(cache, torch.device("cpu")), torch.tensor([7, 0, 0, 9])
    assert DeviceLatentCache.nbytes(cache) == held.x0.nbytes + held.mask.nbytes
    assert held.x0.dtype == cache.get_raw(rows).x0.dtype == getattr(torch, dtype)
    for one, other in ((held[rows], cache[rows]), (held.get_raw(rows), cache.get_raw(rows))):
        assert torch.equal(one.x0, other.x0) and torch.equal(one.mask, other.mask)
    assert held[rows].x0.dtype == torch.float32 and len(held) == ROWS


def test_a_cache_is_read_from_disk_and_its_batches_are_writable(tmp_path):
    cache = open_or_build(tmp_path, "key", LENGTHS, batches, Numbered())
    assert all(isinstance(cache.arrays.arrays[name], np.memmap) for name in ("x0", "mask"))
    latents = cache[torch.tensor([1])]
    latents.x0.zero_()
    latents.mask.zero_()
    torch.testing.assert_close(cache[torch.tensor([1])].x0, expected([1]))


def test_a_space_without_masks_stores_none(tmp_path):
    space = Numbered(ragged=False)
    space.variable_length = False
    cache = open_or_build(tmp_path, "key", LENGTHS, batches, space)
    assert sorted(path.name for path in (tmp_path / "key").glob("[!.]*")) == ["cache.json", "x0.npy"]
    assert cache[torch.arange(ROWS)].mask.all()


@pytest.mark.parametrize(("dtype", "precision"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_on_disk_is_float32_in_a_batch(tmp_path, dtype, precision):
    cache = open_or_build(tmp_path, "key", LENGTHS, batches, Numbered(), dtype=dtype)
    assert cache.arrays.arrays["x0"].itemsize == 2 and cache.get_raw(torch.arange(2)).x0.dtype == getattr(torch, dtype)
    x0 = cache[torch.arange(ROWS)].x0
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, expected(list(range(ROWS))), atol=0, rtol=precision)
    wide = open_or_build(tmp_path, "wide", LENGTHS, batches, Numbered())
    sizes = [(tmp_path / key / "x0.npy").stat().st_size for key in ("key", "wide")]
    assert wide.arrays.arrays["x0"].nbytes == 2 * cache.arrays.arrays["x0"].nbytes and sizes[0] < sizes[1]


@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path):
    with pytest.raises(NotFinite, match="float16 cannot hold.*keep them in float32") as found:
        open_or_build(tmp_path, "key", LENGTHS, batches, Numbered(offset=1e6), dtype="float16")
    assert isinstance(found.value, UserError) and "--" not in found.value.problem, "a caller gives other advice"
    assert not (tmp_path / "key" / "cache.json").exists()


# ------------------------------------------------------------------------------------------------------------- keys


def test_the_key_depends_on_everything_that_determines_the_content():
    base = dict(space=Numbered(), texts=["a", "b"], split="train", max_seq_len=8, dtype="float32")
    others = [
        dict(space=Numbered(offset=1.0)),
        dict(texts=["a", "c"]),
        dict(texts=["b", "a"]),
        dict(texts=["ab"]),
        dict(texts=["a", "b", ""]),
        dict(split="valid"),
        dict(max_seq_len=9),
        dict(dtype="float16"),
    ]
    keys = [cache_key(**{**base, **other}) for other in ({}, *others)]
    assert len(set(keys)) == len(keys) and cache_key(**base) == keys[0]
    assert all(key.isalnum() for key in keys)  # a folder name


def test_the_key_depends_on_how_texts_are_split(language_model):
    """Although the fingerprint of a language model does not: runs record it."""
    from tokenizers import pre_tokenizers, processors

    keys, fingerprints = [], set()
    changes = {
        "none": lambda backend: None,
        "two ends": lambda backend: setattr(
            backend,
            "post_processor",
            processors.TemplateProcessing(single="<s> $A </s> </s>", special_tokens=[("<s>", 0), ("</s>", 2)]),
        ),
        "digits": lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Digits(True)),
    }
    for change in changes.values():
        model = language_model()
        change(model.tokenizer.backend_tokenizer)
        space = EncoderStatesSpace(model, 40)
        keys.append(cache_key(space, ["a"], "train", 40))
        normalized = NormalizedSpace(space, LatentStatistics(space.dim, 40))
        assert cache_key(normalized, ["a"], "train", 40) == keys[-1]
        fingerprints.add(space.fingerprint())
    again = cache_key(EncoderStatesSpace(language_model(), 40), ["a"], "train", 40)
    assert len(set(keys)) == 3 and len(fingerprints) == 1 and again == keys[0]


def test_another_key_is_another_folder(tmp_path):
    one = open_or_build(tmp_path, "one", LENGTHS, batches, Numbered())
    two = open_or_build(tmp_path, "two", LENGTHS, batches, Numbered(offset=5.0))
    torch.testing.assert_close(two[torch.tensor([0])].x0, one[torch.tensor([5])].x0)


# ---------------------------------------------------------------------------------------------------- killed, damaged


def test_an_incomplete_cache_is_not_used_and_is_rebuilt(tmp_path):
    space = Numbered().train()

    def broken(rows):
        yield from list(batches(rows))[:2]
        raise RuntimeError("no more power")

    with pytest.raises(RuntimeError):
        open_or_build(tmp_path, "key", LENGTHS, broken, space)
    assert space.training and not (tmp_path / "key" / "cache.json").exists()
    cache = open_or_build(tmp_path, "key", LENGTHS, batches, Numbered())
    torch.testing.assert_close(cache[torch.arange(ROWS)].x0, expected(list(range(ROWS))))


def damage(folder: Path, kind: str) -> None:
    x0 = folder / "x0.npy"
    if kind == "cut":
        x0.write_bytes(x0.read_bytes()[:-50])
    elif kind == "empty":
        x0.write_bytes(b"")
    elif kind == "junk":
        x0.write_bytes(b"not an array at all")
    elif kind == "absent":
        x0.unlink()
    elif kind == "other rows":
        np.save(x0, np.zeros((ROWS - 1, L, D), np.float32))
    elif kind == "other dtype":
        np.save(x0, np.zeros((ROWS, L, D), np.float64))
    elif kind == "no mask":
        (folder / "mask.npy").unlink()
    elif kind == "no json":
        (folder / "cache.json").write_text("{")
    elif kind == "list":
        (folder / "cache.json").write_text("[]")
    else:
        metadata = json.loads((folder / "cache.json").read_text())
        (folder / "cache.json").write_text(json.dumps({k: v for k, v in metadata.items() if k != kind}))


@pytest.mark.parametrize(
    "kind",
    ["cut", "empty", "junk", "absent", "other rows", "other dtype", "no mask", "no json", "list", "rows", "arrays"],
)
def test_a_damaged_cache_is_refused_in_one_line(tmp_path, kind):
    open_or_build(tmp_path, "key", LENGTHS, batches, Numbered())
    damage(tmp_path / "key", kind)
    with pytest.raises(UserError, match="delete it, and it is computed again") as refused:
        open_or_build(tmp_path, "key", LENGTHS, never, Numbered())
    assert "\n" not in str(refused.value) and str(tmp_path / "key") in str(refused.value)


# ----------------------------------------------------------------------------------------------------- a real space


def test_cached_encoder_states_are_those_of_the_language_model(language_model, texts, tmp_path):
    model = language_model()
    space = EncoderStatesSpace(model, 40).eval()
    tokens = model.tokenize(texts, 40)
    batch = Batch(tokens.input_ids, tokens.attention_mask.bool())

    def parts(rows):
        return ((part, batch[part]) for part in rows.flip(0).split(3))

    lengths = tokens.attention_mask.sum(1).numpy()
    cache = open_or_build(tmp_path, cache_key(space, texts, "train", 40), lengths, parts, space)
    assert cache.arrays.nbytes == lengths.sum() * model.dim * 4, "no padding is stored"
    latents, direct = cache[torch.arange(4)], space.encode(batch)
    assert torch.equal(latents.mask, direct.mask)
    torch.testing.assert_close(latents.x0, direct.x0, atol=1e-5, rtol=1e-4)
    assert space.decode(latents, max_length=8, num_beams=1) == space.decode(direct, max_length=8, num_beams=1)
