"""Compare two checkouts: losses, weights and samples of small runs bit for bit, and the speed of training and sampling.

    python benchmarks/same_results.py run --checkout OLD --corpus CORPUS --out before
    python benchmarks/same_results.py run --checkout .   --corpus CORPUS --out after
    python benchmarks/same_results.py compare before after
    python benchmarks/same_results.py speed OLD . --corpus CORPUS --runs before after --rounds 5
    python benchmarks/same_results.py quickstart OLD . --rounds 2

`run` trains, with the programs of a checkout, a small language model, an autoencoder around it, and a diffusion model
in each latent space (autoencoder latents, encoder states, token embeddings), draws 64 samples from each of them, and
writes results.json: the losses of every logged step, a hash of every tensor of the last checkpoint, and the texts. It
uses only flags whose names did not change. CORPUS is a folder of the embedded stories, written by the first run that
lacks it. `compare` prints a line for each part and exits with 1 where any value differs. A refactoring must not change
any. `speed` trains and samples with both checkouts at the same time, one core each, several rounds, and prints medians
and their ratio; it needs taskset and two idle cores. `quickstart` runs the quickstart of both checkouts in turn, with
all cores and the defaults of each, and prints the seconds of its stages and their ratios.

How long: about five minutes for each checkout on 2 cores; `speed` a minute and a half, and `quickstart` eight minutes
for each round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
NUM_SAMPLES = 64
COMPARED = ("loss", "val_loss", "val_ema_loss", "val/loss", "val/lm_loss", "grad_norm", "learning_rate", "lr")

CORPUS = "--dataset_name tales --data_dir {corpus} --max_seq_len 32 --device cpu --log_every 1"
SMALL_DENOISER = " --tx_dim 64 --tx_depth 2 --train_batch_size 32 --lr_warmup_steps 5 --learning_rate 2e-3"
SAMPLED = " --num_samples 16 --sampling_timesteps 10 --save_and_sample_every 10000"
RUNS = {  # name -> (module or script, flags)
    "language_model": (
        "-m latent_models.pretraining",
        CORPUS + " --tokenizer word --d_model 64 --layers 1 --heads 2 --num_train_steps 150 --train_batch_size 64"
        " --learning_rate 3e-3 --lr_warmup_steps 10 --eval_every 150 --eval_texts 64",
    ),
    "autoencoder": (
        "train_latent_model.py",
        CORPUS + " --enc_dec_model {out}/language_model --num_encoder_latents 8 --dim_ae 32 --num_layers 1"
        " --l2_normalize_latents --num_train_steps 100 --train_batch_size 32 --learning_rate 2e-3"
        " --lr_warmup_steps 10 --eval_every 100 --eval_texts 64 --decoding greedy",
    ),
    "latents": (
        "train_text_diffusion.py",
        CORPUS + " --enc_dec_model {out}/language_model --latent_model_path {out}/autoencoder --objective pred_v"
        " --self_condition --scale_shift --num_dense_connections 1 --num_train_steps 60 --decoding greedy"
        + SMALL_DENOISER
        + SAMPLED,
    ),
    "latents_accumulated": (
        "train_text_diffusion.py",
        CORPUS + " --enc_dec_model {out}/language_model --latent_model_path {out}/autoencoder --objective pred_x0"
        " --self_condition --num_train_steps 20 --decoding greedy --gradient_accumulation_steps 2"
        " --schedule_sampler lossaware --optimizer muon --T_schedule polynomial" + SMALL_DENOISER + SAMPLED,
    ),
    "encoder_states": (
        "train_text_diffusion.py",
        CORPUS + " --enc_dec_model {out}/language_model --self_condition --normalize_latent --num_train_steps 20"
        " --decoding greedy" + SMALL_DENOISER + SAMPLED,
    ),
    "embeddings": (
        "train_text_diffusion.py",
        CORPUS + " --latent_space embeddings --vocab word-level --config vocab_lowercase=true --self_condition"
        " --num_train_steps 20 --timesteps 200"
        " --beta_schedule sqrt --learned_mean_embed --denoise" + SMALL_DENOISER + SAMPLED,
    ),
    "distillation": (
        "train_text_diffusion.py",
        "--distill_run {out}/latents --distill_steps 4 --num_train_steps 20 --device cpu --log_every 1"
        " --train_batch_size 32 --lr_warmup_steps 5 --learning_rate 1e-3 --num_samples 16"
        " --save_and_sample_every 10000",
    ),
}
DIFFUSION_RUNS = tuple(name for name, (program, _) in RUNS.items() if program == "train_text_diffusion.py")


def environment(checkout: Path) -> dict[str, str]:
    """The environment of every process: no network, one source tree, one thread, so that sums have one order."""
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    return {**os.environ, **fixed, "PYTHONPATH": str(checkout), "TOKENIZERS_PARALLELISM": "false"}


def call(checkout: Path, program: str, flags: str, core: int | None = None) -> str:
    """Run a program of the checkout, on one core if it is given, and return its standard output."""
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    command = [*pinned, sys.executable, *program.split(), *flags.split()]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def write_corpus(folder: Path) -> None:
    """2,000 embedded stories for training, 200 for validation and 200 for the test."""
    from dataset_utils import synthetic_stories

    synthetic_stories.write(folder, train=2000, valid=200, test=200)


def logged_losses(folder: Path) -> list[dict[str, float]]:
    """The compared values of every logged step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [found for line in lines if (found := {key: line[key] for key in COMPARED if key in line})]


def tensor_hashes(folder: Path) -> dict[str, str]:
    """A hash of every tensor of the last checkpoint, by file and name."""
    checkpoint = max(folder.glob("checkpoints/step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name).contiguous().view(-1).view(torch.uint8)
                found[f"{path.stem}: {name}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]
    return found


def run(checkout: Path, corpus: Path, out: Path) -> None:
    """Train, sample, and write results.json into `out`."""
    if not corpus.is_dir():
        write_corpus(corpus)
    results: dict[str, Any] = {}
    for name, (program, flags) in RUNS.items():
        folder = out / name
        if not (folder / "metrics.jsonl").is_file():
            call(checkout, program, flags.format(corpus=corpus, out=out) + f" --output_dir {folder}")
        results[name] = {"losses": logged_losses(folder), "tensors": tensor_hashes(folder)}
        if name in DIFFUSION_RUNS:
            steps = "" if name == "distillation" else " --sampling_timesteps 20"
            sampled = f"--run {folder} --num_samples {NUM_SAMPLES} --seed 7 --device cpu{steps}"
            results[name]["texts"] = call(checkout, "-m pipelines.sample", sampled).splitlines()
        print(f"{name}: {len(results[name]['losses'])} logged steps", flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def compare(first: Path, second: Path) -> int:
    """Print what is equal; return 1 if anything differs."""
    one, other = (json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (first, second))
    failed = False
    for name in RUNS:
        for part, values in one[name].items():
            found = other[name][part]
            equal = values == found
            failed |= not equal
            print(f"{name:<20} {part:<8} {len(values):>5} {'equal' if equal else 'DIFFERENT'}")
            if not equal and isinstance(values, list):
                where = next((i for i, pair in enumerate(zip(values, found, strict=False)) if pair[0] != pair[1]), -1)
                print(f"    first difference at {where}: {values[where]} | {found[where]}")
    return int(failed)


SPEED_STEPS, SPEED_FROM = 400, 100  # steps of training; those before SPEED_FROM warm up and are not counted


def training_rate(checkout: Path, corpus: Path, runs: Path, name: str, folder: Path, core: int) -> float:
    """Optimizer steps per second of a run of RUNS, between two log lines."""
    program, flags = RUNS[name]
    steps = f" --num_train_steps {SPEED_STEPS} --log_every {SPEED_FROM} --output_dir {folder}"
    later = " --eval_every 100000" if program == "train_latent_model.py" else f" --scorer {runs}/latents/scorer"
    call(checkout, program, flags.format(corpus=corpus, out=runs) + later + steps, core)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return (SPEED_STEPS - SPEED_FROM) / (seconds[SPEED_STEPS] - seconds[SPEED_FROM])


def sampling_rate(checkout: Path, run: Path, folder: Path, core: int) -> float:
    """Texts per second of an evaluation of a trained run, noise to text."""
    flags = f"--eval --resume_dir {run} --num_samples 256 --sampling_timesteps 100 --decoding greedy --device cpu"
    call(checkout, "train_text_diffusion.py", f"{flags} --scorer {run}/scorer --output_dir {folder}", core)
    metrics = json.loads((folder / "evaluation" / "eval-valid.json").read_text(encoding="utf-8"))
    parts = [metrics["speed/denoise_texts_per_second"], metrics["speed/decode_texts_per_second"]]
    return 1 / sum(1 / part for part in parts)


def speed(checkouts: list[Path], corpus: Path, runs: list[Path], rounds: int) -> None:
    """Print the median rates of both checkouts, and the median ratio of the second to the first.

    Both run at the same time, one on each of two cores, and exchange the cores after every round: what slows the
    machine down slows both.
    """
    measured: dict[str, list[list[float]]] = {name: [[], []] for name in ("autoencoder", "latents", "sampling")}

    def rate(name: str, i: int, core: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            if name == "sampling":
                return sampling_rate(checkouts[i], runs[i] / "latents", Path(folder) / name, core)
            return training_rate(checkouts[i], corpus, runs[i], name, Path(folder) / name, core)

    for number in range(rounds):
        for name, values in measured.items():
            with ThreadPoolExecutor(2) as pool:
                pair = [pool.submit(rate, name, i, (i + number) % 2) for i in (0, 1)]
                for i in (0, 1):
                    values[i].append(pair[i].result())
        rates = ", ".join(f"{name} {first[-1]:.2f} {second[-1]:.2f}" for name, (first, second) in measured.items())
        print(f"round {number + 1}: {rates}", flush=True)
    for name, (first, second) in measured.items():
        ratios = sorted(b / a for a, b in zip(first, second, strict=True))
        print(
            f"{name:<12} median {statistics.median(first):.2f} and {statistics.median(second):.2f} per second, ratio "
            f"{statistics.median(ratios):.3f} (rounds {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def quickstart(checkouts: list[Path], rounds: int) -> None:
    """Print the seconds of every stage of the quickstart of both checkouts, and the median ratio of first to second."""
    found: list[list[dict[str, float]]] = [[], []]
    for number in range(rounds):
        for i in (0, 1):
            with tempfile.TemporaryDirectory() as folder:
                env = {**os.environ, "PYTHONPATH": str(checkouts[i]), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
                command = [sys.executable, "-m", "pipelines.quickstart", "--output_dir", f"{folder}/run"]
                done = subprocess.run(command, cwd=checkouts[i], env=env, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
                found[i].append(json.loads((Path(folder) / "run/seconds.json").read_text()))
            print(f"round {number + 1}, {('first', 'second')[i]}: {found[i][-1]}", flush=True)
    for name in found[1][0]:
        if name in found[0][0]:
            one, other = ([seconds[name] for seconds in part] for part in found)
            ratio = statistics.median(a / b for a, b in zip(one, other, strict=True))
            medians = f"{statistics.median(one):7.1f} s and {statistics.median(other):7.1f} s"
            print(f"{name:<20} {medians}, ratio {ratio:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run")
    training.add_argument("--checkout", type=Path, default=ROOT)
    training.add_argument("--corpus", type=Path, required=True)
    training.add_argument("--out", type=Path, required=True)
    comparison = commands.add_parser("compare")
    comparison.add_argument("folders", type=Path, nargs=2)
    timing = commands.add_parser("speed")
    timing.add_argument("checkouts", type=Path, nargs=2)
    timing.add_argument("--corpus", type=Path, required=True)
    timing.add_argument("--runs", type=Path, nargs=2, required=True, help="folders that `run` wrote")
    timing.add_argument("--rounds", type=int, default=5)
    whole = commands.add_parser("quickstart")
    whole.add_argument("checkouts", type=Path, nargs=2)
    whole.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.command == "quickstart":
        quickstart([path.resolve() for path in given.checkouts], given.rounds)
        return 0
    if given.command == "speed":
        resolved = [path.resolve() for path in (*given.checkouts, *given.runs)]
        speed(resolved[:2], given.corpus.resolve(), resolved[2:], given.rounds)
        return 0
    if given.command == "compare":
        return compare(*given.folders)
    run(given.checkout.resolve(), given.corpus.resolve(), given.out.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
