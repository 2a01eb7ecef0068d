"""Names and values of the metrics that the programs log, in metrics.jsonl and in other trackers."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.offline_panels import draw, read_offline_run
from utils.errors import UserError
from utils.trackers import read_metrics

QUARTERS = ("q0", "q1", "q2", "q3")

NAMES = {
    "ae": {"train/loss", "val/loss", "val/lm_loss", "grad_norm", "lr", "epoch", "samples", "bart/greedy/bleu"}
    | {"autoencoder/greedy/bleu", "seconds", "steps_per_second", "latent_norm/texts"},
    "diff": {"loss", "learning_rate", "grad_norm", "epoch", "samples", "t_max", "val_loss", "val_ema_loss"}
    | {f"{loss}_{quarter}" for loss in ("loss", "val_loss", "val_ema_loss") for quarter in QUARTERS}
    | {"seconds", "steps_per_second", "latent_norm/texts", "latent_norm/samples", "model/greedy/diversity"},
}


@pytest.mark.parametrize("run", NAMES)
def test_programs_log_their_metrics(chain, run):
    lines = read_metrics(chain / run)
    assert NAMES[run] <= set().union(*lines), NAMES[run] - set().union(*lines)
    assert all("step" in line for line in lines)


@pytest.mark.parametrize("loss", ["loss", "val_loss", "val_ema_loss"])
def test_the_losses_of_the_four_quarters_of_time_average_to_the_loss(chain, loss):
    logged = [line for line in read_metrics(chain / "diff") if f"{loss}_q0" in line]
    assert len(logged) == 2
    for line in logged:
        assert sum(line[f"{loss}_{quarter}"] for quarter in QUARTERS) / 4 == pytest.approx(line[loss], rel=1e-4)


def test_a_run_its_continuation_and_its_evaluation_share_trackers(programs, chain, tmp_path):
    """Three invocations of the program: wandb offline and TensorBoard, whose files are read back."""
    run, on = tmp_path / "run", "--wandb --wandb_mode offline --tensorboard"
    flags = f"{on} --wandb_name tiny --wandb_group g --wandb_tags a,b --self_condition --save_every 1 --max_seconds 0"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", run, f"{flags} --num_train_steps 3") == 0
    assert programs.resume("diffusion", run, on) == 0
    assert programs.again("diffusion", run, f"--eval --num_samples 6 --log_report {on}") == 0
    assert len(list(run.glob("wandb/offline-run-*"))) == 3
    found = read_offline_run(run)
    assert found.run_id == json.loads((run / "wandb_run.json").read_text())["id"]
    assert (found.name, found.group, found.tags) == ("tiny", "g", ["a", "b"])
    assert [row["step"] for row in found.history if "learning_rate" in row] == [1, 2, 3]
    steps = {name: row["step"] for row in found.history for name in row}  # the last of each
    assert steps["model/greedy/perplexity"] == steps["report"] == 3  # the evaluation, at the step of its checkpoint
    assert steps["val_ema_loss_q3"] == 3 and steps["model/greedy/samples"] == 3
    assert found.config["tx_dim"] == 64 and found.config["latent_dim"] == 64 and found.config["eval.num_samples"] == 6
    assert f"report-{found.run_id}" in found.artifacts and (run / "report.html").stat().st_size > 10_000
    norms = [row["latent_norm/samples"] for row in found.history if "latent_norm/samples" in row]
    assert all(len(norm["bins"]) == len(norm["values"]) + 1 for norm in norms) and len(norms) == 3
    draw(found, tmp_path / "panels.png")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("loss", "val_ema_loss_q3", "learning_rate", "grad_norm", "steps_per_second"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3], name
    tags = events.Tags()
    assert {"latent_norm/texts", "latent_norm/samples"} <= set(tags["histograms"])
    assert {"configuration/text_summary", "model/greedy/samples/text_summary"} <= set(tags["tensors"])


def test_a_report_that_cannot_be_made_is_refused_before_an_evaluation(programs, chain, tmp_path):
    with pytest.raises(UserError, match="--log_report: the report .* leave --output_dir out"):
        programs.again("diffusion", chain / "diff", f"--eval --log_report --output_dir {tmp_path / 'out'}")
    with pytest.raises(UserError, match="--gen_data evaluates nothing"):
        programs.again("diffusion", chain / "diff", "--gen_data --log_report")
    assert not (tmp_path / "out").exists()
