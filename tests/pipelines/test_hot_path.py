"""Between log points no training step reads a value: on a GPU each read would wait for all work in the queue.

On a CPU a read of a tensor's value is the same operation, so it can be counted here.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.cli.programs import AUTOENCODER, DIFFUSION
from pipelines.train_autoencoder import train as train_autoencoder
from pipelines.train_diffusion import train as train_diffusion
from utils import loop
from utils.cli.parse import parse

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive"}


class CountReads(TorchDispatchMode):
    """Counts operations whose result the host must have before it can continue."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in READS or masks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Reads of each optimizer step: forward, backward and update, in the order of steps."""
    steps: list[Counter[str]] = []
    gradients, update = loop._gradients, loop._update

    def counted(fn):
        def call(*args):
            with CountReads() as mode:
                result = fn(*args)
            steps[-1].update(mode.found)
            return result

        return call

    monkeypatch.setattr(loop, "_gradients", lambda *args: steps.append(Counter()) or counted(gradients)(*args))
    monkeypatch.setattr(loop, "_update", counted(update))
    return steps


COMMON = "--device cpu --no_wandb --max_seq_len 40 --num_train_steps 3 --log_every 3 --decoding greedy"
NET = "--tx_dim 64 --tx_depth 2 --self_condition --num_samples 2 --sampling_timesteps 2 --eval_batch_size 4"


@pytest.mark.parametrize(
    "flags",
    [
        "--latent_model_path {chain}/ae --normalize_latent --config normalize_batches=1 --class_conditional "
        "--class_id prior",
        "--enc_dec_model {chain}/lm --schedule_sampler lossaware --lr_schedule reduce_lr_on_plateau",
        "--latent_space embeddings --embedding_dim 16 --vocab_size 200",
        "--latent_model_path {chain}/ae --mixed_precision fp16",
    ],
)
def test_a_denoiser_step_reads_no_values(programs, chain, tmp_path, reads, flags):
    argv = f"{programs.data} {COMMON} {NET} {flags.format(chain=chain)} --train_batch_size 8 --output_dir {tmp_path}"
    assert train_diffusion(parse(DIFFUSION, f"{argv} --scorer {programs.scorer}".split())) == 0
    plateau = {"_local_scalar_dense": 1} if "plateau" in flags else {}  # this schedule reads each loss
    assert reads == [plateau] * 3


@pytest.mark.parametrize(
    "flags", ["--max_latent_noise 0.3", "--lm_mode ft --optimizer muon", "--cache_encoder_states float16"]
)
def test_an_autoencoder_step_reads_no_values(programs, chain, tmp_path, reads, flags):
    argv = (
        f"{programs.data} {COMMON} --enc_dec_model {chain / 'lm'} --num_encoder_latents 4 --dim_ae 32 --num_layers 1 "
        f"--train_batch_size 8 --eval_texts 4 --output_dir {tmp_path} {flags}"
    )
    assert train_autoencoder(parse(AUTOENCODER, argv.split())) == 0
    assert reads == [{}] * 3


def test_denoiser_augmentation_reads_only_timesteps(programs, chain, tmp_path, reads):
    """Timesteps of a sampler are on the CPU on every device: see test_another_device.py."""
    flags = (
        f"--lm_mode decoder --resume_dir {chain / 'ae_l2'} --l2_normalize_latents --denoiser_run {chain / 'diff'} "
        "--config denoiser_steps=3 --max_latent_noise 0.3 --num_train_steps 3 --log_every 3 --eval_texts 4"
    )
    assert programs.autoencoder(chain / "lm", tmp_path, flags) == 0
    assert len(reads) == 3 and all(step.keys() == {"_local_scalar_dense"} for step in reads)
