"""Frozen models stay unchanged, trained ones are saved with the runs, and cached latents are not encoded again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from dataset_utils.splits import Split
from latent_models.language_models import LanguageModel
from latent_models.spaces.compressed import CompressedSpace
from pipelines.builders.models import load_space
from pipelines.cli.programs import DIFFUSION
from pipelines.data.cached_latents import EncodedSplit
from pipelines.data.tokens import tokenize_for
from pipelines.steps.autoencoder import AutoencoderStep
from utils import checkpoints
from utils.array_cache import format_bytes
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics


def test_a_frozen_language_model_stays_in_eval_mode_and_gets_no_gradient(programs, chain, tmp_path, monkeypatch):
    states = []
    call = AutoencoderStep.__call__

    def watched(self, step, micro):
        model, own = self.space.language_model, self.space.autoencoder
        states.append((own.training, any(part.training for part in model.model.modules())))
        losses, values = call(self, step, micro)
        losses.sum().backward(retain_graph=True)
        assert all(p.grad is None for p in model.parameters())
        assert all(p.grad is not None for p in own.parameters())
        return losses, values

    monkeypatch.setattr(AutoencoderStep, "__call__", watched)
    assert programs.autoencoder(chain / "lm", tmp_path / "ae", "--eval_every 2") == 0  # with a validation in between
    assert states == [(True, False)] * 4
    checkpoint = checkpoints.load(tmp_path / "ae")
    assert (
        checkpoint.metadata["language_model_fingerprint"]
        == LanguageModel.from_pretrained(str(chain / "lm")).fingerprint()
    )
    frozen = {name for name in checkpoint.tensors["model"] if name.startswith("language_model")}
    assert frozen <= {"language_model.model.final_logits_bias"}, "frozen weights are not saved"


def test_a_finetuned_language_model_is_saved_with_the_runs(programs, chain, tmp_path):
    ae, diff = tmp_path / "ae", tmp_path / "diff"
    assert programs.autoencoder(chain / "lm", ae, "--lm_mode ft --learning_rate 1e-2") == 0
    base = LanguageModel.from_pretrained(str(chain / "lm")).model.state_dict()
    tuned = CompressedSpace.from_pretrained(ae).language_model.model.state_dict()
    assert any(not torch.equal(base[name], x) for name, x in tuned.items() if "encoder" in name)
    assert any(not torch.equal(base[name], x) for name, x in tuned.items() if "decoder" in name)
    assert programs.diffusion(f"--latent_model_path {ae}", diff) == 0
    shutil.rmtree(ae)
    settings = parse(DIFFUSION, f"--eval --resume_dir {diff}".split())
    used = load_space(settings, diff, torch.device("cpu")).language_model.model.state_dict()
    assert all(torch.equal(tuned[name], x) for name, x in used.items())
    assert programs.again("diffusion", diff, "--eval") == 0


def test_the_cache_is_made_once_for_each_content(programs, chain, tmp_path, encodings):
    cache, ae = tmp_path / "cache", f"--latent_model_path {chain / 'ae'}"
    runs = iter(range(100))

    def run(space: str, flags: str = "") -> int:
        """Train a run and return the number of texts that it encoded."""
        encodings.clear()
        assert programs.diffusion(space, tmp_path / str(next(runs)), f"--latent_cache_dir {cache} {flags}") == 0
        return sum(encodings)

    assert run(ae) == 240, "200 training and 40 validation texts, once each"
    first = sorted(p.name for p in cache.iterdir())
    assert run(ae, "--num_train_steps 5 --random_seed 1") == 0, "training must not run the language model"
    assert sorted(p.name for p in cache.iterdir()) == first
    assert run(f"--latent_model_path {chain / 'ae_l2'}") == 240, "other weights, other latents"
    assert run(ae, "--max_train_texts 100") == 100, "other texts; the validation split is the same"
    assert run(ae, "--max_seq_len 30") == 240
    assert run(f"--enc_dec_model {chain / 'lm'}") == 240
    assert run(ae) == 0


def test_without_a_cache_latents_are_those_of_a_cache_under_autocast_too(chain):
    space = CompressedSpace.from_pretrained(chain / "ae").eval()
    tokens = tokenize_for(space, Split(["Ben ran to the garden.", "Later she sent it."]), 40)
    encoded, rows = EncodedSplit(space, tokens, None, torch.device("cpu")), torch.arange(2)
    expected = encoded(rows).x0
    with torch.autocast("cpu", torch.bfloat16):
        found = encoded(rows).x0
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_without_a_cache_every_batch_is_encoded_and_gives_the_same_losses(programs, chain, tmp_path, encodings):
    ae = f"--latent_model_path {chain / 'ae'}"
    flags = "--num_train_steps 3 --self_condition --normalize_latent --config normalize_batches=2"
    assert programs.diffusion(ae, tmp_path / "cached", f"{flags} --latent_cache_dtype float32") == 0
    encodings.clear()
    assert programs.diffusion(ae, tmp_path / "live", f"{flags} --no_latent_cache") == 0
    # statistics; then a training batch a step, and twice the 40 validation texts; at last the norms of real latents
    assert len(encodings) == 2 + 3 * (1 + 2 * 5) + 1
    assert not (tmp_path / "live" / "latent_cache").exists()
    lines = [read_metrics(tmp_path / name) for name in ("cached", "live")]
    for one, other in zip(*lines, strict=True):
        for key in ("loss", "val_loss", "grad_norm"):
            assert (key in one) == (key in other)
            assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-5)


def test_latents_on_the_device_give_the_same_run(programs, chain, tmp_path, fingerprints):
    for flag in ("off", "on"):
        flags = f"--num_train_steps 3 --normalize_latent --config normalize_batches=2 --config latents_on_device={flag}"
        assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / flag, flags) == 0
    assert fingerprints(tmp_path / "on") == fingerprints(tmp_path / "off")


@pytest.mark.parametrize("flags", ["", "--max_latent_noise 0.3"])
def test_cached_encoder_states_train_the_same_autoencoder(programs, chain, tmp_path, encodings, flags):
    flags = f"{flags} --eval_every 4 --latent_cache_dir {tmp_path / 'cache'}"
    assert programs.autoencoder(chain / "lm", tmp_path / "live", flags) == 0
    live = len(encodings)
    for dtype, again in (("float32", False), ("float16", False), ("bfloat16", False), ("float32", True)):
        encodings.clear()
        out, tolerance = tmp_path / f"{dtype}{again}", {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
        assert programs.autoencoder(chain / "lm", out, f"{flags} --cache_encoder_states {dtype}") == 0
        assert len(encodings) == live - 4 + (0 if again else 1), "each text once instead of at each of the four steps"
        for one, other in zip(read_metrics(tmp_path / "live"), read_metrics(out), strict=True):
            for key in ("train/loss", "val/loss", "grad_norm"):
                assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=tolerance)


def test_the_size_of_the_cache_is_printed_before_encoding(programs, chain, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "cache"
    states = f"--cache_encoder_states float16 --latent_cache_dir {cache}"
    assert programs.autoencoder(chain / "lm", tmp_path / "first", states) == 0
    printed = capsys.readouterr().err
    (file,) = cache.glob("*/x0.npy")
    size = format_bytes(np.load(file, mmap_mode="r").nbytes)
    line = f"the encoder states of the training texts are encoded once, {size} in float16 in {file.parent}\n"
    assert printed.index(line) < printed.index("encode train:") < printed.index("autoencoder: 100%")
    assert programs.autoencoder(chain / "lm", tmp_path / "again", states) == 0
    assert "are encoded once" not in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6, 500))
    with pytest.raises(UserError, match="its disk has 500 bytes free: .*or leave --cache_encoder_states out"):
        programs.autoencoder(chain / "lm", tmp_path / "third", f"{states} --max_train_texts 100")
    assert list(cache.glob("*/x0.npy")) == [file]


def test_only_states_of_a_frozen_encoder_are_cached(programs, chain, tmp_path):
    with pytest.raises(UserError, match="--cache_encoder_states float16 needs a frozen encoder, and --lm_mode is ft"):
        programs.autoencoder(chain / "lm", tmp_path, "--lm_mode ft --cache_encoder_states float16")


def test_the_folder_of_an_aborted_run_does_not_affect_a_new_one(programs, chain, tmp_path):
    """The folder has no checkpoint, so it may be used again. It holds the copy of another autoencoder."""
    out = tmp_path / "run"
    shutil.copytree(chain / "diff" / "autoencoder", out / "autoencoder")  # of ae_l2
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", out) == 0
    assert json.loads((out / "autoencoder" / "args.json").read_text())["l2_normalize_latents"] is False
    kept = checkpoints.load_best(out / "autoencoder").tensors["model"]
    wanted = checkpoints.load_best(chain / "ae").tensors["model"]
    assert checkpoints.fingerprint(kept) == checkpoints.fingerprint(wanted)


def test_a_denoiser_run_accepts_an_autoencoder_with_an_adapted_decoder(programs, chain, tmp_path):
    """--lm_mode decoder keeps all latents bit for bit. Only such an autoencoder may replace that of a denoiser run."""
    tuned, adapted, diff = tmp_path / "tuned", tmp_path / "adapted", tmp_path / "diff"
    assert programs.autoencoder(chain / "lm", tuned, "--lm_mode ft") == 0
    assert programs.diffusion(f"--latent_model_path {tuned}", diff) == 0
    decoder_only = (
        f"--lm_mode decoder --resume_dir {tuned} --learning_rate 1e-2 --max_latent_noise 1 --latent_noise_prob 1"
    )
    assert programs.autoencoder(chain / "lm", adapted, decoder_only) == 0

    before = CompressedSpace.from_pretrained(tuned)
    after = CompressedSpace.from_pretrained(adapted)
    assert after.encoding_fingerprint() == before.encoding_fingerprint()
    assert after.fingerprint() != before.fingerprint()
    own, other = before.state_dict(), after.state_dict()
    moved = {name for name in own if not torch.equal(own[name], other[name])}
    assert any(name.startswith("autoencoder.decoder") for name in moved)
    assert any(name.startswith("language_model.model.model.decoder") for name in moved)
    assert not any("encoder.layers" in name or "shared" in name or "lm_head" in name for name in moved)

    assert programs.again("diffusion", diff, f"--eval --latent_model_path {adapted}") == 0
    with pytest.raises(UserError, match="gives other latents than the autoencoder that this run was trained with"):
        programs.again("diffusion", diff, f"--eval --latent_model_path {chain / 'ae'}")
    with pytest.raises(UserError, match="--lm_mode decoder trains the decoder of a trained autoencoder"):
        programs.autoencoder(chain / "lm", tmp_path / "none", "--lm_mode decoder")
