"""The training programs on a few hundred short texts with tiny models: a BART of width 64, 4 latents, a denoiser of two
blocks.

Programs run in this process through `train(parse(PROGRAM, argv))`, so that torch is imported once. The chain of runs
that the tests share is trained once per session.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_utils import synthetic_stories
from evaluation import local_lm
from latent_models.language_models import LanguageModel
from pipelines import pretrain, train_autoencoder, train_classifier, train_diffusion, train_draft_model
from pipelines.cli.programs import AUTOENCODER, CLASSIFIER, DIFFUSION, DRAFT_MODEL, PRETRAIN
from utils import checkpoint_folder, checkpoints
from utils.checkpoints import fingerprint
from utils.cli.parse import parse
from utils.trackers import read_metrics

MODEL = "--vocab_size 200 --d_model 64 --layers 1 --heads 2 --max_seq_len 40"
STOPS = [5, 9]  # steps of each of the first two invocations: 1 to 5, 6 to 14
# in float32: tests compare numbers of different ways to the same result
COMMON = "--device cpu --lr_warmup_steps 2 --no_wandb --mixed_precision no"


class Programs:
    """The programs with small defaults. Flags are written as in a shell; they take precedence over the defaults."""

    def __init__(self, corpus: Path, scorer: Path):
        self.corpus, self.scorer = corpus, scorer

    @property
    def data(self) -> str:
        return " ".join(f"--{split}_file {self.corpus / split}.jsonl" for split in ("train", "valid", "test"))

    def pretrain(self, out: Path, flags: str = "") -> int:
        defaults = (
            f"{self.data} {MODEL} {COMMON} --num_train_steps 4 --train_batch_size 16 --log_every 1 --eval_texts 8"
        )
        return pretrain.train(parse(PRETRAIN, f"{defaults} --output_dir {out} {flags}".split()))

    def autoencoder(self, lm: Path, out: Path, flags: str = "") -> int:
        defaults = (
            f"{self.data} {COMMON} --enc_dec_model {lm} --max_seq_len 40 --num_encoder_latents 4 --dim_ae 64 "
            "--num_layers 1 --num_train_steps 4 --train_batch_size 16 --log_every 1 --eval_texts 8 --decoding greedy"
        )
        return train_autoencoder.train(parse(AUTOENCODER, f"{defaults} --output_dir {out} {flags}".split()))

    def diffusion(self, space: str, out: Path, flags: str = "") -> int:
        """space: flags that name the latents, --latent_model_path or --enc_dec_model."""
        defaults = (
            f"{self.data} {COMMON} --max_seq_len 40 --tx_dim 64 --tx_depth 2 --num_train_steps 2 --train_batch_size 8 "
            f"--eval_batch_size 8 --num_samples 4 --sampling_timesteps 2 --log_every 1 --decoding greedy "
            f"--scorer {self.scorer} --save_and_sample_every 1000"
        )
        return train_diffusion.train(parse(DIFFUSION, f"{defaults} {space} --output_dir {out} {flags}".split()))

    def draft_model(self, ae: Path, flags: str = "") -> int:
        """Train a draft model on the corpus of the autoencoder."""
        defaults = f"--latent_model_path {ae} {COMMON} --num_train_steps 4 --train_batch_size 16 --log_every 1"
        return train_draft_model.train(parse(DRAFT_MODEL, f"{defaults} --learning_rate 5e-3 {flags}".split()))

    def student(self, teacher: Path, out: Path, flags: str = "") -> int:
        """A student of a diffusion run, with its corpus, layout and latents."""
        defaults = (
            f"{COMMON} --num_train_steps 2 --train_batch_size 8 --eval_batch_size 8 --num_samples 4 --log_every 2 "
            f"--config val_loss_examples=8 --decoding greedy --scorer {self.scorer} --save_and_sample_every 1000"
        )
        return train_diffusion.train(
            parse(DIFFUSION, f"{defaults} --distill_run {teacher} --output_dir {out} {flags}".split())
        )

    def resume(self, stage: str, folder: Path, flags: str = "") -> int:
        return self.again(stage, folder, f"--resume_training {flags}")

    def again(self, stage: str, folder: Path, flags: str) -> int:
        """Run a program on a trained run; other flags come from its args.json."""
        program, run = {
            "pretrain": (PRETRAIN, pretrain.train),
            "autoencoder": (AUTOENCODER, train_autoencoder.train),
            "diffusion": (DIFFUSION, train_diffusion.train),
            "draft_model": (DRAFT_MODEL, train_draft_model.train),
            "classifier": (CLASSIFIER, train_classifier.train),
        }[stage]
        return run(parse(program, f"--resume_dir {folder} --no_wandb {flags}".split()))


@pytest.fixture(scope="session")
def tales_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tales")
    synthetic_stories.write(folder, train=200, valid=40, test=40)
    return folder


@pytest.fixture(scope="session")
def programs(tales_folder, tmp_path_factory) -> Programs:
    texts = [line.split('"')[3] for line in (tales_folder / "train.jsonl").read_text().splitlines()]
    scorer = tmp_path_factory.mktemp("scorer") / "local_lm"
    local_lm.train_local(texts, scorer, steps=10, width=32, layers=1, heads=2, vocab_size=300, max_length=64)
    return Programs(tales_folder, scorer)


@pytest.fixture(scope="session")
def chain(programs, tmp_path_factory) -> Path:
    """A folder with the runs lm, ae, ae_l2 (normalized latents), diff (self-conditioned, on ae_l2) and states."""
    root = tmp_path_factory.mktemp("chain")
    assert programs.pretrain(root / "lm", "--num_train_steps 60 --learning_rate 5e-3 --log_every 20") == 0
    assert programs.autoencoder(root / "lm", root / "ae", "--num_train_steps 20 --learning_rate 2e-3") == 0
    assert programs.autoencoder(root / "lm", root / "ae_l2", "--l2_normalize_latents") == 0
    assert programs.diffusion(f"--latent_model_path {root / 'ae_l2'}", root / "diff", "--self_condition") == 0
    assert programs.diffusion(f"--enc_dec_model {root / 'lm'}", root / "states") == 0
    return root


@pytest.fixture
def stop_after(monkeypatch) -> Callable[[type, int], None]:
    """stop_after(Step, k): this process gets a SIGTERM during its k-th optimizer step."""

    def arrange(step_class: type, k: int) -> None:
        original, seen = step_class.__call__, set()

        def call(self: Any, step: int, micro: int) -> Any:
            if self is call.training and micro == 0:
                seen.add(step)
                if len(seen) == k:
                    os.kill(os.getpid(), signal.SIGTERM)
            return original(self, step, micro)

        def make(self: Any, *args: Any, **kwargs: Any) -> None:
            initialise(self, *args, **kwargs)
            if call.training is None:  # a program trains with the first one, and validates with the second
                call.training = self

        call.training, initialise = None, step_class.__init__
        monkeypatch.setattr(step_class, "__call__", call)
        monkeypatch.setattr(step_class, "__init__", make)

    with monkeypatch.context() as monkeypatch:
        yield arrange


def losses(folder: Path) -> list[dict[str, Any]]:
    """Every logged line with training or validation losses, without its seconds."""
    keys = {"learning_rate", "lr", "val_loss", "val/loss"}
    lines = [line for line in read_metrics(folder) if keys & line.keys()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def weights(folder: Path) -> dict[str, str]:
    """Hashes of the tensors of the newest checkpoint: model, averaged weights, optimizer."""
    return {name: fingerprint(tensors) for name, tensors in checkpoints.load(folder).tensors.items()}


@pytest.fixture(scope="session")
def fingerprints() -> Callable[[Path], tuple[Any, Any]]:
    """A function: run folder -> (logged losses, hashes of the newest checkpoint); equal runs share both."""
    return lambda folder: (losses(folder), weights(folder))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture
def stopped_run(programs, stop_after):
    """A function: train in three invocations; SIGTERM ends the first two."""

    def run(stage, step_class, start, folder):
        stop_after(step_class, STOPS[0])
        assert start() == 143
        stop_after(step_class, STOPS[1])
        assert programs.resume(stage, folder) == 143
        assert checkpoints.load(folder).step == sum(STOPS)
        assert programs.resume(stage, folder) == 0

    return run


@pytest.fixture
def steps_read(monkeypatch) -> Callable[[Path], list[int]]:
    """A function: run folder -> steps of its checkpoints that were read since the function was called last."""
    seen: list[tuple[Path, int]] = []
    read = checkpoint_folder.read

    def watched(path: Path) -> checkpoint_folder.Checkpoint:
        found = read(path)
        seen.append(((path.parent if path.name == "best" else path.parents[1]).resolve(), found.step))
        return found

    monkeypatch.setattr(checkpoint_folder, "read", watched)

    def steps(folder: Path) -> list[int]:
        found = [step for run, step in seen if run == folder.resolve()]
        seen.clear()
        return found

    return steps


@pytest.fixture
def encodings(monkeypatch) -> list[int]:
    """Number of texts of each batch that a language model encodes."""
    seen: list[int] = []
    encode = LanguageModel.encode

    def counted(self, input_ids, mask):
        seen.append(len(input_ids))
        return encode(self, input_ids, mask)

    monkeypatch.setattr(LanguageModel, "encode", counted)
    return seen
