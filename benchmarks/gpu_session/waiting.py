"""Every kind of training of a denoiser, a few steps each: no step waits for the device, and losses are finite.

It uses the corpus and the runs of the phase programs. tests/pipelines/test_on_a_gpu.py compares these cases with and
without compilation, which takes longer than a session.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from importlib.util import find_spec

from benchmarks.gpu_session.no_waiting import no_waiting
from benchmarks.gpu_session.report import LeftOut, Report
from benchmarks.gpu_session.scales import Setting
from utils.trackers import read_metrics

LATENTS = "--latent_model_path {autoencoder} --self_condition --mixed_precision no"
WORDS = (
    "--mixed_precision no --latent_space embeddings --embedding_dim 16 --vocab_size 200 --timesteps 20 --self_condition"
)
CASES: Mapping[str, str] = {
    "plain": LATENTS,
    "accumulated": LATENTS + " --gradient_accumulation_steps 2",
    "bf16": LATENTS + " --mixed_precision bf16",
    "fp16": LATENTS + " --mixed_precision fp16",
    "muon": LATENTS + " --optimizer muon",
    "lion": LATENTS + " --optimizer lion --learning_rate 1e-5",
    "classes": LATENTS + " --class_conditional --cls_free_guidance 2 --class_id prior",
    "loss-aware times": LATENTS + " --schedule_sampler lossaware",
    "encoder states": "--enc_dec_model {lm} --self_condition --mixed_precision no",
    "embeddings": WORDS,
    "DiffuSeq-v2": WORDS + " --learned_mean_embed --denoise --padding masked",
}
PACKAGES = {"lion": "lion_pytorch"}  # that a case needs
WAITING = ("fp16",)  # its gradient scaler reads whether gradients overflowed
STEPS = 6
FIRST_STRICT_STEP = 2


def run(setting: Setting, report: Report) -> None:
    from pipelines import train_diffusion
    from pipelines.cli.programs import DIFFUSION
    from utils.cli.parse import parse
    from utils.errors import UserError

    root = setting.work / "programs"
    if not (root / "autoencoder" / "validation.json").is_file():
        raise LeftOut("it needs the autoencoder of the phase programs")
    common = (
        f"--dataset_name tales --data_dir {root} --max_seq_len 32 --lr_warmup_steps 2 --no_wandb --device "
        f"{setting.device.type} --tx_dim 64 --tx_depth 2 --train_batch_size 8 --eval_batch_size 8 --num_samples 2 "
        f"--sampling_timesteps 2 --decoding greedy --scorer {root / 'scorer'} --disable_dropout --compile off "
        f"--num_train_steps {STEPS} --log_every {STEPS} --save_and_sample_every 1000 --config val_loss_examples=8"
    )
    names = setting.scale.cases or tuple(CASES)
    if len(names) < len(CASES):
        report.note(f"{len(names)} of {len(CASES)} cases without a GPU: {', '.join(names)}")
    for name in names:
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            report.note(f"{name} is left out: {PACKAGES[name]} is not installed")
            continue
        flags = CASES[name].format(autoencoder=root / "autoencoder", lm=root / "lm")
        folder = setting.work / "waiting" / name.replace(" ", "_")
        began = time.perf_counter()
        try:
            with no_waiting(10**9 if name in WAITING else FIRST_STRICT_STEP):
                code = train_diffusion.train(parse(DIFFUSION, f"{common} {flags} --output_dir {folder}".split()))
        except (RuntimeError, UserError) as error:
            report.check(name, False, str(error).splitlines()[0])
            continue
        losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
        holds = code == 0 and bool(losses) and all(map(math.isfinite, losses))
        report.check(name, holds, f"exit code {code}, loss {losses[-1] if losses else 'none'}")
        report.measure(f"{name}, whole run", time.perf_counter() - began, "s")
