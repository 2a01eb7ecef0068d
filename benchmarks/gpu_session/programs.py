"""The real programs, as a user starts them: a small BART from the embedded corpus, an autoencoder, a denoiser that gets
SIGTERM and is resumed, and an evaluation. Only the denoiser is compiled, where compilation is the default.

Leaves the corpus and the runs for the phase `waiting`.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from dataset_utils import synthetic_stories
from evaluation import local_lm
from utils.run_folder import ROOT
from utils.trackers import read_metrics

COMMON = "--dataset_name tales --data_dir {root} --max_seq_len 32 --lr_warmup_steps 20 --no_wandb --log_every {every}"
LM = "--tokenizer word --learning_rate 2e-3"
AUTOENCODER = (
    "--l2_normalize_latents --learning_rate 1.5e-3 --cache_encoder_states float16 --decoding greedy --compile off"
)
DENOISER = (
    "--objective pred_v --self_condition --scale_shift --disable_dropout --learning_rate 2e-3 --decoding greedy "
    "--num_samples 8 --sampling_timesteps 10"
)
SCORERS = {"mauve-text": "mauve", "spacy": "spacy"}  # packages of metrics, which are left out without them
SIGTERM_CODE = 128 + signal.SIGTERM
ENOUGH_LINES = 3  # log lines before the SIGTERM
# in a process that uses the Python API alone: the setting after a run is loaded
LOADED = """import sys, torch
from pipelines.text_diffusion import TextDiffusionPipeline
TextDiffusionPipeline.from_pretrained(sys.argv[1])
print("cuDNN attention:", torch.backends.cuda.cudnn_sdp_enabled())"""


def run(setting: Setting, report: Report) -> None:
    root = setting.work / "programs"
    scale = setting.scale
    synthetic_stories.write(root / "tales", train=scale.stories, valid=scale.evaluated, test=scale.evaluated)
    logs = setting.folder / "phases" / "programs"
    logs.mkdir(exist_ok=True)
    programs = Programs(logs, report, COMMON.format(root=root, every=scale.log_every))

    evaluated = f"--eval_texts {scale.evaluated}"
    program = ["-m", "latent_models.pretraining"]
    programs.start("language model", program, root / "lm", f"{LM} {scale.lm} {evaluated}")
    program, flags = ["train_latent_model.py"], f"{AUTOENCODER} {scale.autoencoder} {evaluated}"
    programs.start("autoencoder", program, root / "autoencoder", f"{flags} --enc_dec_model {root / 'lm'}")
    texts = [json.loads(line)["text"] for line in (root / "tales/train.jsonl").open(encoding="utf-8")]
    scorer = local_lm.train_local(texts, root / "scorer", steps=20, width=32, layers=1, heads=2, vocab_size=300)

    program, run_folder = ["train_text_diffusion.py"], root / "diffusion"
    flags = f"{DENOISER} {scale.denoiser} --eval_batch_size {scale.evaluated} --scorer {scorer}"
    flags += f" --latent_model_path {root / 'autoencoder'}"
    reached = programs.start("denoiser, SIGTERM", program, run_folder, flags, interrupt=True)
    resume = f"--resume_training --resume_dir {run_folder} --no_wandb"
    programs.start("denoiser, resumed", program, None, resume)
    _check_resumed(report, run_folder, reached)
    flags = f"--eval --resume_dir {run_folder} --no_wandb --compile off --num_samples {scale.evaluated}"
    programs.start("evaluation", program, None, flags)
    _check_evaluation(report, run_folder, programs.outputs["evaluation"])
    programs.start("Python API", ["-c", LOADED, str(run_folder)], None, "")
    is_off = "cuDNN attention: False" in programs.outputs["Python API"]
    report.check("cuDNN's attention is off in a pipeline that Python loads", is_off, "its backward can be nan")


class Programs:
    """Starts programs of the project one after another."""

    def __init__(self, logs: Path, report: Report, common: str) -> None:
        self.logs, self.report, self.common = logs, report, common
        self.outputs: dict[str, str] = {}

    def start(self, name: str, program: list[str], folder: Path | None, flags: str, interrupt: bool = False) -> int:
        """Run a program to its end. Returns the last step that its metrics name, 0 without any.

        folder: of a new run, which also gets the flags that all programs share. interrupt: send it SIGTERM when it has
        logged a few lines; it must then end with exit code 143.
        """
        words = [sys.executable, *program, *flags.split()]
        if folder is not None:
            words += [*self.common.split(), "--output_dir", str(folder)]
        log = self.logs / f"{name.replace(',', '').replace(' ', '_')}.log"
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output)
            try:
                if interrupt:
                    assert folder is not None
                    _wait_for_lines(folder, process)
                    process.send_signal(signal.SIGTERM)
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
        self.report.measure(f"{name}, from start to end", time.monotonic() - began, "s")
        self.outputs[name] = log.read_text(encoding="utf-8", errors="replace")
        wanted = SIGTERM_CODE if interrupt else 0
        detail = str(code) if code == wanted else f"{code}: {_last_line(self.outputs[name])}"
        self.report.check(f"{name}: exit code {wanted}", code == wanted, detail)
        if "torch.compile failed" in self.outputs[name]:
            self.report.check(f"{name}: compiles", False, _line(self.outputs[name], "torch.compile failed"))
        if code != wanted:
            print(self.outputs[name][-3000:], flush=True)
            raise RuntimeError(f"{name} ended with exit code {code}, and the programs after it need its run")
        lines = [] if folder is None else read_metrics(folder)
        return max((int(line["step"]) for line in lines if "step" in line), default=0)


def _wait_for_lines(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        if (folder / "metrics.jsonl").is_file() and len(read_metrics(folder)) >= ENOUGH_LINES:
            return
        time.sleep(0.02)


def _check_resumed(report: Report, folder: Path, reached: int) -> None:
    lines = [line for line in read_metrics(folder) if "loss" in line]
    later = [line for line in lines if line["step"] > reached]
    report.measure("SIGTERM after step", reached)
    finite = all(math.isfinite(line["loss"]) for line in lines)
    found = f"steps {later[0]['step']} to {later[-1]['step']}" if later else "no step"
    report.check("the resumed run goes on to its end", bool(later) and finite, f"{found}; losses finite: {finite}")
    if later:
        report.measure("loss, first and last", f"{lines[0]['loss']:.4g}, {lines[-1]['loss']:.4g}")
        rates = [line["steps_per_second"] for line in later if "steps_per_second" in line]
        if rates:
            report.measure("steps per second at the end", rates[-1], "/s")


def _check_evaluation(report: Report, folder: Path, output: str) -> None:
    path = folder / "evaluation" / "eval-valid.json"
    if not path.is_file():
        report.check("the evaluation writes its metrics", False, f"no {path.name}")
        return
    metrics = json.loads(path.read_text(encoding="utf-8"))
    ours = {
        name: value for name, value in metrics.items() if name.startswith("model/") and isinstance(value, int | float)
    }
    report.check("the evaluation writes its metrics", bool(ours), f"{len(ours)} numbers")
    for name in ("perplexity", "diversity", "memorization"):
        if f"model/greedy/{name}" in ours:
            report.measure(f"samples: {name}", float(ours[f"model/greedy/{name}"]))
    skipped = [line.strip() for line in output.splitlines() if "not installed" in line]
    for package, module in SCORERS.items():
        if find_spec(module) is None:
            said = sum(package in line for line in skipped)
            report.check(f"without {package} the evaluation says so in one line", said == 1, f"{said} lines")
    for line in skipped:
        report.note(line.removeprefix("note: "))


def _last_line(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


def _line(output: str, text: str) -> str:
    return next(line.strip() for line in output.splitlines() if text in line)
