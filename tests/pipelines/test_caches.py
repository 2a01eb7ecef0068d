"""Encoded corpora: one cache for all runs, in half precision, below a bound; listed and removed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_utils.splits import Split
from latent_models.cache import cache_key
from latent_models.spaces.compressed import CompressedSpace
from pipelines import caches, train_classifier
from pipelines.cli.programs import CLASSIFIER
from pipelines.data.cached_latents import encode_or_load
from pipelines.data.tokens import tokenize_split
from utils.array_cache import format_bytes
from utils.cache_folder import cache_folder, encoded_folder, find_caches
from utils.cli.parse import parse
from utils.distributed import DistContext
from utils.errors import UserError
from utils.locks import exclusive
from utils.trackers import read_metrics

TEXTS = [f"{name} found a {color} kite" for name in ("lucy", "felix", "emma") for color in ("red", "blue", "white")]
ALIGNED = "--alignment_weight 0.5 --config alignment_layer=0"


def test_the_folder_is_that_of_the_flag_of_the_variable_or_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENT_DIFFUSION_CACHE", str(tmp_path / "variable"))
    assert cache_folder(str(tmp_path / "flag")) == tmp_path / "flag"
    assert encoded_folder() == tmp_path / "variable" / "encoded"
    assert encoded_folder(None, "own", [tmp_path]) == Path("own"), "--latent_cache_dir comes first"
    (tmp_path / "latent_cache").mkdir()
    assert encoded_folder(None, None, [None, tmp_path]) == tmp_path / "latent_cache", "a run of an earlier release"
    monkeypatch.delenv("LATENT_DIFFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "latent-text-diffusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "latent-text-diffusion"


def test_runs_share_a_cache_in_half_precision_and_losses_are_equal(programs, chain, tmp_path, encodings, capsys):
    """The denoiser sees latents with 11 bits of mantissa; its losses agree with those of float32 to a thousandth."""
    space, flags = f"--latent_model_path {chain / 'ae'}", "--num_train_steps 6 --learning_rate 1e-3 --self_condition"
    dtypes = ("float32", "float16", "bfloat16")
    for dtype in dtypes:
        run = tmp_path / dtype
        assert programs.diffusion(space, run, f"{flags} --latent_cache_dtype {dtype}") == 0
        assert not (run / "latent_cache").exists()
    losses = {d: [x["loss"] for x in read_metrics(tmp_path / d) if "loss" in x] for d in dtypes}
    assert losses["float16"] == pytest.approx(losses["float32"], rel=1e-3) and losses["float16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)
    errors = {d: np.abs(np.subtract(losses[d], losses["float32"])).max() for d in dtypes}
    assert errors["float16"] < errors["bfloat16"]

    encodings.clear()
    assert programs.diffusion(space, tmp_path / "again") == 0
    assert sum(encodings) == 0, "float16 is the default, and another run has encoded the corpus"
    sizes = {c.about["dtype"]: (c.folder / "x0.npy").stat().st_size for c in find_caches(encoded_folder())}
    assert sizes["float32"] > 1.9 * sizes["float16"] and sizes["bfloat16"] == sizes["float16"]

    capsys.readouterr()
    assert caches.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("train") == 3 and shown.count("4 x 64") == 6 and "6 caches" in shown and "float16" in shown
    assert shown.count(f"{programs.corpus.name}, train ") == 3, "a corpus of train.jsonl is called by its folder"


def test_a_run_of_an_earlier_release_goes_on_in_float32_in_its_own_folder(programs, chain, tmp_path, fingerprints):
    space = f"--latent_model_path {chain / 'ae'}"
    flags = "--latent_cache_dtype float32 --normalize_latent --config normalize_batches=2"
    for name in ("whole", "parts"):
        own = f"--latent_cache_dir {tmp_path / name / 'latent_cache'}"  # where earlier releases kept it
        steps = {"whole": 4, "parts": 2}[name]
        options = f"{flags} {own} --num_train_steps {steps} --lr_schedule constant"
        assert programs.diffusion(space, tmp_path / name, options) == 0
    args = json.loads((tmp_path / "parts/args.json").read_text())
    for flag in ("latent_cache_dtype", "latent_cache_dir", "cache_dir", "max_cache_gb"):
        del args[flag]
    (tmp_path / "parts/args.json").write_text(json.dumps(args))
    assert programs.resume("diffusion", tmp_path / "parts", "--num_train_steps 4") == 0
    assert not encoded_folder().exists(), "nothing was encoded again"
    whole, parts = fingerprints(tmp_path / "whole"), fingerprints(tmp_path / "parts")
    assert parts[1] == whole[1]


def test_what_is_above_the_bound_is_encoded_at_each_step(programs, chain, tmp_path, encodings, capsys):
    space = f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, tmp_path / "run", "--max_cache_gb 0.00005") == 0
    said = capsys.readouterr().err
    line = "note: the latents of the train split would take 102 kB on disk, more than --max_cache_gb 5e-05: "
    assert line in said and "a larger --max_cache_gb caches them" in said
    assert "the latents of the valid split are encoded once, 20 kB in float16" in said
    assert [cache.about["split"] for cache in find_caches(encoded_folder())] == ["valid"]
    assert encodings.count(8) >= 2, "a batch a step"
    assert f"corpus {programs.corpus.name}: train 200" in said

    flags = f"{ALIGNED} --cache_encoder_states float16 --num_train_steps 2 --eval_texts 1 --eval_every 2"
    encodings.clear()
    assert programs.autoencoder(chain / "lm", tmp_path / "ae", f"{flags} --max_cache_gb 0.00001") == 0
    said = capsys.readouterr().err
    for what in ("encoder states of the training texts", f"features by {chain / 'lm'} of the training texts"):
        (line,) = [line for line in said.splitlines() if line.startswith(f"note: the {what} would take ")]
        assert "more than --max_cache_gb 1e-05: they are encoded at each step" in line
    assert len(find_caches(encoded_folder())) == 1, "no other one is written"
    assert encodings.count(16) >= 2, "a batch a step"


def test_a_dry_run_says_what_is_encoded_and_where(programs, chain, tmp_path, capsys):
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'} --dry_run", tmp_path, "--max_cache_gb 0.00005") == 0
    out = capsys.readouterr().out
    assert f"encoded once, in float16: 20 kB in {encoded_folder()}" in out
    assert "train texts      102 kB, more than --max_cache_gb 5e-05: encoded at each step instead" in out
    assert not encoded_folder().exists()
    flags = f"--dry_run {ALIGNED} --cache_encoder_states bfloat16 --cache_dir {tmp_path}"
    assert programs.autoencoder(chain / "lm", tmp_path, flags) == 0
    out = capsys.readouterr().out
    assert "encoded once, in bfloat16 and float16: " in out and f" in {tmp_path / 'encoded'}" in out
    assert "  train texts      " in out and "  train features   26 kB\n" in out and "  valid texts" not in out
    flags = f"--diffusion_run {chain / 'diff'} --dry_run --max_cache_gb 0.00005 {programs.data}"
    assert train_classifier.train(parse(CLASSIFIER, flags.split())) == 0
    assert "train texts      102 kB, more than --max_cache_gb 5e-05" in capsys.readouterr().out
    assert programs.again("diffusion", chain / "diff", "--eval --dry_run") == 0
    assert "encoded once" not in capsys.readouterr().out, "an evaluation writes no cache"


def build(space: CompressedSpace, folder: Path, start: float) -> None:
    tokens = tokenize_split(Split(TEXTS * 40), space.language_model, 16)
    time.sleep(max(0.0, start - time.time()))
    latents = encode_or_load(space, tokens, folder, "train", "latents", DistContext(), "off", "float16", corpus="kites")
    rows = torch.arange(len(tokens))
    found = latents(rows).x0
    with torch.no_grad():
        wanted = space.encode(tokens.batch(rows)).x0.half().float()
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)


def test_two_runs_that_build_one_cache_at_once_do_not_corrupt_it(chain, tmp_path, monkeypatch, capfd):
    """Two processes, which know nothing of each other, start at the same moment; each reads what both have written."""
    monkeypatch.setattr("utils.array_cache.SHARD_ROWS", 16)  # 23 shards
    space, fork = CompressedSpace.from_pretrained(chain / "ae").eval(), multiprocessing.get_context("fork")
    start = time.time() + 0.3
    processes = [fork.Process(target=build, args=(space, tmp_path / "shared", start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], capfd.readouterr().err
    (cache,) = find_caches(tmp_path / "shared")
    key = cache_key(space, TEXTS * 40, "train", 16, "float16")
    assert cache.folder.name == key and cache.is_complete and cache.about["corpus"] == "kites"
    build(space, tmp_path / "alone", 0)
    assert all(
        np.array_equal(np.load(tmp_path / "alone" / key / name), np.load(cache.folder / name)) for name in ("x0.npy",)
    )


@pytest.fixture
def two_caches(chain, tmp_path) -> Path:
    space = CompressedSpace.from_pretrained(chain / "ae").eval()
    for n in (4, 9):
        tokens = tokenize_split(Split(TEXTS[:n]), space.language_model, 16)
        encode_or_load(space, tokens, encoded_folder(), "train", "latents", DistContext(), "off", corpus=f"kites{n}")
    return encoded_folder()


def test_caches_are_removed_by_key_age_or_state(two_caches, capsys):
    first, second = find_caches(two_caches)
    os.utime(second.folder / "about.json", (time.time() - 40 * 86400,) * 2)
    assert caches.main(["list", "--older_than", "30"]) == 0
    shown = capsys.readouterr().out
    assert second.folder.name[:12] in shown and first.folder.name[:12] not in shown and "1 caches" in shown
    assert caches.main(["remove", "--older_than", "30"]) == 0
    assert f"removed {second.folder.name[:12]}" in capsys.readouterr().out
    assert [cache.folder for cache in find_caches(two_caches)] == [first.folder]
    (first.folder / "cache.json").rename(first.folder / "plan.json")  # as if its run had been killed
    assert caches.main(["list"]) == 0 and "unfinished" in capsys.readouterr().out
    with exclusive(first.folder / "shards" / "0"):
        assert caches.main(["remove", "--unfinished"]) == 1
    captured = capsys.readouterr()
    assert "is being written by a run: it stays" in captured.err and "0 bytes freed" in captured.out
    assert caches.main(["remove", first.folder.name[:8]]) == 0
    assert not list(two_caches.iterdir())
    capsys.readouterr()
    assert caches.main(["list"]) == 0 and "no caches in" in capsys.readouterr().out


def test_a_cache_that_is_removed_while_it_is_read_stays_readable(chain, tmp_path):
    space = CompressedSpace.from_pretrained(chain / "ae").eval()
    tokens = tokenize_split(Split(TEXTS), space.language_model, 16)
    latents = encode_or_load(space, tokens, tmp_path, "train", "latents", DistContext(), "off")
    before = latents(torch.arange(9)).x0
    for cache in find_caches(tmp_path):
        cache.remove()
    assert not list(tmp_path.iterdir()) and torch.equal(latents(torch.arange(9)).x0, before)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["remove"], "remove needs to know what: name keys, --older_than DAYS, --unfinished or --all"),
        (["remove", "zz"], "no cache begin with zz"),
        (["remove", ""], "2 caches begin with"),
        (["list", "--older_than", "-1"], "--older_than -1 is no number of days"),
        (["list", "--folder", "nowhere"], "--folder nowhere does not exist"),
        (["clear"], "invalid choice: 'clear'"),
    ],
)
def test_wrong_arguments_are_one_line(two_caches, argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        caches.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert len(find_caches(two_caches)) == 2


def test_a_folder_that_cannot_be_made_is_one_line(chain, tmp_path):
    space = CompressedSpace.from_pretrained(chain / "ae").eval()
    tokens = tokenize_split(Split(TEXTS), space.language_model, 16)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made .*: name another one with --cache_dir"):
        encode_or_load(space, tokens, tmp_path / "file" / "x", "train", "latents", DistContext(), "off")


def test_sizes_count_what_is_on_disk(two_caches):
    for cache in find_caches(two_caches):
        files = [path for path in cache.folder.rglob("*") if path.is_file()]
        assert cache.bytes >= sum(path.stat().st_size for path in files)
        assert format_bytes(cache.bytes)
    shutil.rmtree(two_caches)
    assert find_caches(two_caches) == []
