"""Names and values of the metrics that the programs log."""

from __future__ import annotations

import pytest

from utils.trackers import read_metrics

NAMES = {
    "ae": {"train/loss", "val/loss", "val/lm_loss", "grad_norm", "lr", "epoch", "samples", "bart/greedy/bleu"},
    "diff": {"loss", "learning_rate", "grad_norm", "epoch", "samples", "t_max", "val_loss", "val_ema_loss"}
    | {"loss_q0", "loss_q1", "loss_q2", "loss_q3"},
}


@pytest.mark.parametrize("run", NAMES)
def test_programs_log_their_metrics(chain, run):
    lines = read_metrics(chain / run)
    assert NAMES[run] <= set().union(*lines), NAMES[run] - set().union(*lines)
    assert all("step" in line for line in lines)


def test_the_losses_of_the_four_quarters_of_time_average_to_the_loss(chain):
    logged = [line for line in read_metrics(chain / "diff") if "loss_q0" in line]
    assert len(logged) == 2
    for line in logged:
        assert sum(line[f"loss_q{q}"] for q in (0, 1, 2, 3)) / 4 == pytest.approx(line["loss"], rel=1e-4)
