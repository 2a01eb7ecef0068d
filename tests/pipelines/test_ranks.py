"""Several processes give the same texts, metrics and training curves as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
import torch
from utils.distributed import cleanup, gather_objects, init_distributed
torch.set_num_threads(1)
dist = init_distributed("cpu")
from pipelines.text_diffusion import TextDiffusionPipeline
pipeline = TextDiffusionPipeline.from_pretrained(sys.argv[1], device="cpu", argv=sys.argv[4:], eval_batch_size=8)
generator = pipeline.generator
generator.dist = dist
prepare, drawn = generator.prepare, []
generator.prepare = lambda seed, b, *rest: drawn.append(b) or prepare(seed, b, *rest)
sampled = generator.sample(int(sys.argv[3]), 42, ["greedy", "nucleus"], quiet=True)
shares = gather_objects(dist, [(dist.world_size, drawn, sampled.speed.texts["denoise"])])
everywhere = gather_objects(dist, [sampled.texts])
if dist.is_main:
    json.dump({"shares": shares, "texts": everywhere}, open(sys.argv[2], "w"))
cleanup()
"""


WATCHED = """
import json, sys
import torch
torch.set_num_threads(1)
from pipelines import train_diffusion
from pipelines.steps.embeddings import EmbeddingStep
from pipelines.cli.programs import DIFFUSION
from pipelines.steps.diffusion import TimestepSampler
from utils.cli.parse import parse

seen = {"rows": [], "losses": [], "counts": []}
rank = 0
call, sync_losses = EmbeddingStep.__call__, TimestepSampler.sync_losses

def stepped(self, step, micro):
    global rank
    if self.timestep_sampler is not None:  # training, not validation
        rank = self.batch_sampler.rank
        seen["rows"].append([step, self.batch_sampler.rows(step, micro, len(self.data)).tolist()])
    return call(self, step, micro)

def synced(self, state, report):
    sync_losses(self, state, report)
    seen["losses"].append(self.importance.losses.tolist())
    seen["counts"].append(self.importance.counts.tolist())

EmbeddingStep.__call__, TimestepSampler.sync_losses = stepped, synced
out, *argv = sys.argv[1:]
code = train_diffusion.train(parse(DIFFUSION, argv))
json.dump(seen, open(f"{out}-{rank}.json", "w"))
sys.exit(code)
"""


def start(processes: int, *argv: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*launch, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_texts_do_not_depend_on_the_number_of_processes_nor_on_drafts(programs, chain, tmp_path, processes):
    n = 29  # four batches of 8: two ranks have two each, three ranks have two, one and one
    script, out = tmp_path / "program.py", tmp_path / "out.json"
    script.write_text(PROGRAM)
    drafter = tmp_path / "drafter"
    assert programs.draft_model(chain / "ae_l2", f"--output_dir {drafter} --config val_loss_examples=4") == 0
    start(processes, str(script), str(chain / "diff"), str(out), str(n), "--draft_model", str(drafter))
    found = json.loads(out.read_text())
    worlds, drawn, counted = zip(*found["shares"], strict=True)
    assert list(worlds) == [processes] * processes
    assert sorted(b for blocks in drawn for b in blocks) == [0, 1, 2, 3] and all(0 < len(b) < 3 for b in drawn)
    assert list(counted) == [32] * processes, "speeds cover all processes"
    alone = TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu", eval_batch_size=8).generator
    expected = alone.sample(n, 42, ["greedy", "nucleus"], quiet=True).texts
    assert found["texts"] == [expected] * processes, "every rank has every text"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_evaluate_to_the_same_metrics_as_one(programs, chain, tmp_path, processes):
    flags = f"--eval --num_samples 20 --eval_batch_size 4 --decoding greedy,nucleus --scorer {programs.scorer}"
    assert programs.again("diffusion", chain / "diff", f"{flags} --output_dir {tmp_path / 'one'}") == 0
    argv = f"--resume_dir {chain / 'diff'} --no_wandb {flags} --output_dir {tmp_path / 'two'}"
    start(processes, "train_text_diffusion.py", *argv.split())
    names = sorted(path.name for path in (tmp_path / "one" / "evaluation").glob("*samples*"))
    assert len(names) == 4
    for name in names:
        one, two = ((tmp_path / run / "evaluation" / name).read_text() for run in ("one", "two"))
        assert one == two
    one, two = (json.loads((tmp_path / run / "evaluation" / "eval-valid.json").read_text()) for run in ("one", "two"))
    for result in (one, two):
        assert all(result.pop(f"speed/{part}_texts_per_second") > 0 for part in ("denoise", "decode"))
    assert one == two


@pytest.mark.slow
def test_three_processes_evaluate_classes_as_one(programs, chain, tmp_path):
    """Compares MAUVE of every pair of classes, and label accuracies."""
    flags = "--class_conditional --label_column class --class_id all --num_samples 6"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", tmp_path / "run", flags) == 0
    flags = f"--eval --class_id all --num_samples 6 --eval_batch_size 2 --scorer {programs.scorer}"
    assert programs.again("diffusion", tmp_path / "run", f"{flags} --output_dir {tmp_path / 'one'}") == 0
    argv = f"--resume_dir {tmp_path / 'run'} --no_wandb {flags} --output_dir {tmp_path / 'three'}"
    start(3, "train_text_diffusion.py", *argv.split())
    for name in ("eval-valid.json", "eval-valid-classes.json"):
        one, three = (json.loads((tmp_path / run / "evaluation" / name).read_text()) for run in ("one", "three"))
        for result in (one, three):
            for key in [key for key in result if key.startswith("speed/")]:
                result.pop(key)
        assert one == three


@pytest.mark.slow
def test_a_sharded_language_model_trains_as_in_one_process(programs, chain, tmp_path):
    flags = "--lm_mode ft --num_train_steps 4 --eval_every 4 --save_every 2 --decoding greedy,nucleus"
    assert programs.autoencoder(chain / "lm", tmp_path / "one", f"{flags} --train_batch_size 8") == 0
    argv = (
        f"{programs.data} --device cpu --mixed_precision no --lr_warmup_steps 2 --no_wandb "
        f"--enc_dec_model {chain / 'lm'} --max_seq_len 40 --num_encoder_latents 4 --dim_ae 64 "
        f"--num_layers 1 --log_every 1 --eval_texts 8 {flags} --fsdp "
        f"--train_batch_size 2 --gradient_accumulation_steps 2 --output_dir {tmp_path / 'two'}"
    )
    start(2, "train_latent_model.py", *argv.split())
    assert json.loads((tmp_path / "two" / "args.json").read_text())["num_devices"] == 2
    one, two = ([line for line in read_metrics(tmp_path / run) if "train/loss" in line] for run in ("one", "two"))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        for key in ("train/loss", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-5)
    newest = {run: checkpoints.load(tmp_path / run) for run in ("one", "two")}
    tied = [json.loads((checkpoint.path / "state.json").read_text())["tied"] for checkpoint in newest.values()]
    assert tied[0] == tied[1] and tied[0]["model"], "tied embeddings are saved once"
    held = {run: checkpoint.tensors for run, checkpoint in newest.items()}
    for file in ("model", "optimizer"):
        assert held["one"][file].keys() == held["two"][file].keys()
        for name, x in held["one"][file].items():
            torch.testing.assert_close(held["two"][file][name], x, atol=1e-4, rtol=1e-2)
    # a run that was killed after the second step resumes exactly
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000004")
    start(2, "train_latent_model.py", *f"--resume_training --resume_dir {tmp_path / 'two'} --no_wandb".split())
    again = checkpoints.load(tmp_path / "two").tensors
    assert all(fingerprint(again[file]) == fingerprint(held["two"][file]) for file in again)


@pytest.mark.slow
def test_importance_sampling_has_the_same_losses_on_two_ranks(programs, tmp_path):
    """Each rank trains on its own texts. Both record the losses of all texts, as one process does."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    flags = (
        f"{programs.data} --latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 40 --tx_dim 64 "
        "--tx_depth 1 --disable_dropout --schedule_sampler lossaware --config importance_bins=3 --device cpu "
        "--no_wandb "
        f"--lr_warmup_steps 2 --num_train_steps 12 --save_every 5 --save_and_sample_every 1000 --num_samples 4 "
        f"--eval_batch_size 4 --sampling_timesteps 2 --log_every 1 --scorer {programs.scorer}"
    )
    for processes, batch in ((2, "--train_batch_size 4"), (1, "--train_batch_size 8")):
        out = f"{flags} {batch} --gradient_accumulation_steps 2 --output_dir {tmp_path / str(processes)}"
        start(processes, str(script), str(tmp_path / f"seen{processes}"), *out.split())
    first, second, alone = (json.loads((tmp_path / f"seen{name}.json").read_text()) for name in ("2-0", "2-1", "1-0"))
    for key in ("losses", "counts"):
        assert first[key] == second[key] and len(first[key]) == 12
    assert first["counts"] == alone["counts"] and sum(first["counts"][-1]) == 12 * 16
    assert min(first["counts"][7]) >= 10, "from then on times are no longer uniform"
    torch.testing.assert_close(torch.tensor(first["losses"]), torch.tensor(alone["losses"]), rtol=1e-3, atol=1e-5)
    mine, theirs = ([row for _, rows in seen["rows"] for row in rows] for seen in (first, second))
    assert len(mine) == len(theirs) == 12 * 8 and len({*mine, *theirs}) == 12 * 16, "one epoch: no text twice"
    assert {*mine, *theirs} == {row for _, rows in alone["rows"] for row in rows}
    held = checkpoints.load(tmp_path / "2").tensors
    assert held["times"]["counts"].tolist() == first["counts"][-1]
    shutil.rmtree(tmp_path / "2" / "checkpoints" / "step_00000012")
    again = f"--resume_training --resume_dir {tmp_path / '2'} --no_wandb"
    start(2, str(script), str(tmp_path / "again"), *again.split())
    resumed = [json.loads((tmp_path / f"again-{rank}.json").read_text()) for rank in (0, 1)]
    assert resumed[0]["losses"] == resumed[1]["losses"] == first["losses"][10:]
    found = checkpoints.load(tmp_path / "2").tensors
    assert {name: fingerprint(x) for name, x in found.items()} == {name: fingerprint(x) for name, x in held.items()}


def test_fsdp_needs_a_trained_language_model(programs, chain, tmp_path):
    with pytest.raises(UserError, match="--fsdp.*--lm_mode ft"):
        programs.autoencoder(chain / "lm", tmp_path, "--fsdp")


OTHERS = """
import sys
import torch
torch.set_num_threads(1)
from pipelines import train_autoencoder, train_causal_lm, train_classifier, train_diffusion, train_draft_model
from pipelines import train_seq2seq
from pipelines.cli.programs import AUTOENCODER, CAUSAL_LM, CLASSIFIER, DIFFUSION, DRAFT_MODEL, SEQ2SEQ
from utils.cli.parse import parse
runs = {"ae": (AUTOENCODER, train_autoencoder.train), "classifier": (CLASSIFIER, train_classifier.train),
        "diffusion": (DIFFUSION, train_diffusion.train), "drafter": (DRAFT_MODEL, train_draft_model.train),
        "causal": (CAUSAL_LM, train_causal_lm.train), "seq2seq": (SEQ2SEQ, train_seq2seq.train)}
for line in open(sys.argv[1]).read().splitlines():
    kind, *argv = line.split()
    program, run = runs[kind]
    assert run(parse(program, argv)) == 0, line
"""


@pytest.mark.slow
def test_other_programs_train_on_two_processes_as_on_one(programs, chain, tmp_path):
    """Configurations that no other test starts on two processes, which fail on a parameter without a gradient."""
    (tmp_path / "others.py").write_text(OTHERS)
    common = "--device cpu --no_wandb --lr_warmup_steps 2 --log_every 1 --num_train_steps 3"
    ae = (
        f"{programs.data} --enc_dec_model {chain / 'lm'} --max_seq_len 40 --num_encoder_latents 4 --dim_ae 64 "
        f"--num_layers 1 --eval_texts 4 --decoding greedy --l2_normalize_latents --resume_dir {chain / 'ae_l2'}"
    )
    pairs = " ".join(f"--{split}_file {programs.corpus}/pairs_{split}.jsonl" for split in ("train", "valid", "test"))
    kinds = {
        "states": (
            f"diffusion {programs.data} --enc_dec_model {chain / 'lm'} --max_seq_len 40 --denoiser_variant states "
            "--beta_schedule cosine --class_conditional --class_id prior --self_condition --disable_dropout "
            "--tx_dim 64 --tx_depth 2 --num_samples 2 --sampling_timesteps 2 --decoding greedy "
            f"--scorer {programs.scorer}"
        ),
        "classifier": (
            f"classifier --diffusion_run {chain / 'diff'} {programs.data} --classifier_dim 64 --classifier_depth 1 "
            "--config classifier_dropout=0"
        ),
        "drafter": f"drafter --latent_model_path {chain / 'ae'} --config val_loss_examples=8",
        "causal": (
            f"causal {programs.data} --d_model 32 --layers 1 --heads 2 --vocab_size 300 --max_seq_len 64 "
            "--config val_loss_examples=16,lm_dropout=0 --eval_every 2"
        ),
        "seq2seq": (
            f"seq2seq {pairs} --d_model 32 --layers 1 --heads 2 --vocab_size 300 --max_seq_len 40 --max_source_len 40 "
            "--config val_loss_examples=16,lm_dropout=0 --eval_every 2"
        ),
        "decoder": (
            f"ae {ae} --lm_mode decoder --denoiser_run {chain / 'diff'} --config denoiser_steps=2 "
            "--max_latent_noise 0.3"
        ),
    }
    for name, processes, batch in (("two", 2, 4), ("one", 1, 8)):
        lines = (
            f"{flags} {common} --train_batch_size {batch} --output_dir {tmp_path / name / kind}"
            for kind, flags in kinds.items()
        )
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        start(processes, str(tmp_path / "others.py"), str(tmp_path / f"{name}.txt"))
    for kind in kinds:
        curves = []
        for name in ("one", "two"):
            logged = [line for line in read_metrics(tmp_path / name / kind) if "grad_norm" in line]
            curves.append([(line.get("loss", line.get("train/loss")), line["grad_norm"]) for line in logged])
        assert len(curves[0]) == 3
        for a, b in zip(*curves, strict=True):
            assert a == pytest.approx(b, rel=1e-5), kind


EMBEDDINGS = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 40 --tx_dim 64 --tx_depth 1 --device cpu "
    "--no_wandb --train_batch_size 8 --eval_batch_size 8 --num_samples 8 --lr_warmup_steps 1 --log_every 1 "
    "--sampling_timesteps 2"
)


def launch(*argv: str) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen([*start, *argv], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_without_a_scorer_leave_a_run_that_can_be_evaluated(programs, tmp_path):
    """transformers saves no weights on other ranks than 0, so that a scorer of the first to come may have none."""
    flags = f"{programs.data} {EMBEDDINGS} --class_conditional --label_column class --class_id prior"
    argv = f"{flags} --num_train_steps 2 --sampling_timesteps 2 --output_dir {tmp_path / 'run'}"
    start(2, "train_text_diffusion.py", *argv.split())
    assert (tmp_path / "run/scorer/model.safetensors").is_file()
    assert programs.again("diffusion", tmp_path / "run", "--eval --num_samples 8") == 0
    assert "model/greedy/perplexity" in json.loads((tmp_path / "run/evaluation/eval-valid.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--no_such_flag 3", "--train_file /nowhere.jsonl", "--output_dir /proc/run"])
def test_a_mistake_is_printed_once(programs, flags):
    """The last one is met by rank 0 alone, and must not leave the other one hanging."""
    process = launch("train_text_diffusion.py", *f"{programs.data} {EMBEDDINGS} --num_train_steps 2 {flags}".split())
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1, "torchrun's own code"
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors


FAILING = """
import sys
from pipelines import train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.steps.embeddings import EmbeddingStep
from utils.cli.parse import parse
from utils.errors import UserError, exit_on_user_error

call = EmbeddingStep.__call__
def step(self, step, micro):
    if step == 2 and self.timestep_sampler is not None and self.batch_sampler.rank == 1:
        raise UserError("a disk of this machine is full")
    return call(self, step, micro)
EmbeddingStep.__call__ = step
sys.exit(exit_on_user_error(lambda: train_diffusion.train(parse(DIFFUSION)))())
"""


@pytest.mark.slow
def test_a_rank_that_fails_while_training_ends_the_others(programs, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    flags = f"{programs.data} {EMBEDDINGS} --num_train_steps 9 --save_every 2 --output_dir {tmp_path / 'run'}"
    began = time.monotonic()
    process = launch(str(tmp_path / "failing.py"), *f"{flags} --scorer {programs.scorer}".split())
    _, errors = process.communicate(timeout=200)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and time.monotonic() - began < 150
    assert "error: a disk of this machine is full (rank 1)" in lines and len(lines) <= 2, errors
    assert "Traceback" not in errors.split("failed (exitcode")[0], "what follows is torchrun's own report"
    assert checkpoints.load(tmp_path / "run").step == 2


@pytest.mark.slow
def test_torchrun_has_its_processes_leave_an_evaluation(programs, tmp_path):
    """It sends SIGKILL 30 seconds after SIGTERM; the checkpoint before the evaluation holds everything."""
    run = tmp_path / "run"
    flags = f"{programs.data} {EMBEDDINGS} --num_train_steps 2 --sampling_timesteps 20 --output_dir {run}"
    process = launch("train_text_diffusion.py", *f"{flags} --scorer {programs.scorer}".split())
    limit = time.monotonic() + 120
    while not list(run.glob("checkpoints/step_*/state.json")):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=100)
    assert time.monotonic() - sent < 25, errors
    assert checkpoints.load(run).step == 2
    assert programs.resume("diffusion", run, "--train_batch_size 16") == 0
    assert [line["step"] for line in read_metrics(run) if "model/greedy/diversity" in line] == [2]
