"""The adapted decoder in the folder of its diffusion run: samples are decoded by it without a flag, training goes on
without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from latent_models.spaces.compressed import CompressedSpace
from pipelines import sample
from pipelines.adapt_decoder import adapt_decoder
from pipelines.builders.adapted import use_adapted_decoder
from pipelines.builders.models import ADAPTED_COPY, AUTOENCODER_COPY
from pipelines.load_run import load_run
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError

SHORT = "--device cpu --no_wandb --decoding greedy --eval_texts 4 --config denoiser_steps=2 --lr_warmup_steps 1"


@pytest.fixture(scope="module")
def root(chain, tmp_path_factory) -> Path:
    """A folder with diff, a copy of the chain's run that uses its adapted decoder, and adapted, the decoder's run."""
    root = tmp_path_factory.mktemp("adapted_decoder")
    shutil.copytree(chain / "diff", root / "diff")
    flags = f"{SHORT} --num_train_steps 30 --train_batch_size 8 --learning_rate 1e-2 --denoiser_prob 0"
    assert adapt_decoder(root / "diff", root / "adapted", flags.split()) == 0
    use_adapted_decoder(root / "diff", root / "adapted")
    return root


def texts(run: Path, *flags: str) -> list[str]:
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", argv=flags)
    return list(pipeline(6, seed=3, decoding="greedy"))


def test_samples_are_decoded_by_it_without_a_flag(root, programs, capsys):
    run, adapted = root / "diff", f"--latent_model_path={root / 'adapted'}"
    assert texts(run) == texts(run, adapted) != texts(run, f"--latent_model_path={run / AUTOENCODER_COPY}")
    words = [str(run), "-n", "4", "--device", "cpu", "--output_dir"]
    assert sample.main([*words, str(root / "one")]) == 0
    one = capsys.readouterr().out
    assert sample.main([*words, str(root / "two"), adapted]) == 0
    assert one.replace("/one/", "/two/") == capsys.readouterr().out
    assert programs.again("diffusion", run, f"--eval --output_dir {root / 'evaluated'}") == 0
    (written,) = root.glob("evaluated/**/eval-valid.json")
    assert json.loads(written.read_text())["protocol"]["decoder"] == ADAPTED_COPY
    space = load_run(run, device="cpu").components.space.space
    assert isinstance(space, CompressedSpace)
    assert space.fingerprint() == CompressedSpace.from_pretrained(root / "adapted").fingerprint()


def test_a_saved_pipeline_holds_it(root, tmp_path):
    pipeline = TextDiffusionPipeline.from_pretrained(root / "diff", device="cpu")
    pipeline.save_pretrained(tmp_path / "saved")
    assert texts(tmp_path / "saved") == texts(root / "diff")


def test_training_goes_on_with_the_decoder_it_began_with(root, chain, programs, fingerprints, tmp_path):
    for name, source in (("with", root / "diff"), ("without", chain / "diff")):
        shutil.copytree(source, tmp_path / name)
        assert programs.resume("diffusion", tmp_path / name, "--num_train_steps 4") == 0
    assert fingerprints(tmp_path / "with") == fingerprints(tmp_path / "without")
    assert (tmp_path / "with" / ADAPTED_COPY / "args.json").is_file()


def test_it_replaces_an_earlier_one_whole(root, tmp_path):
    run = shutil.copytree(root / "diff", tmp_path / "diff")
    (run / ADAPTED_COPY / "of_the_earlier").touch()
    (run / f"{ADAPTED_COPY}.partial").mkdir()
    use_adapted_decoder(run, root / "adapted")
    assert sorted(path.name for path in (run / ADAPTED_COPY).iterdir()) == ["args.json", "best"]
    assert not (run / f"{ADAPTED_COPY}.partial").exists() and texts(run) == texts(root / "diff")


def test_a_student_gets_that_of_its_teacher(root, programs, tmp_path):
    run = tmp_path / "student"
    assert programs.student(root / "diff", run) == 0
    space = load_run(run, device="cpu").components.space.space
    assert isinstance(space, CompressedSpace)
    assert space.fingerprint() == CompressedSpace.from_pretrained(root / "adapted").fingerprint()
    assert programs.again("diffusion", run, "--eval --num_samples 2") == 0


def test_what_does_not_fit_is_refused(root, chain):
    with pytest.raises(UserError, match="gives other latents than the autoencoder"):
        use_adapted_decoder(root / "diff", chain / "ae")
    with pytest.raises(UserError, match="holds no decoder of its latents"):
        use_adapted_decoder(chain / "states", root / "adapted")
    assert not (chain / "states" / ADAPTED_COPY).exists()
