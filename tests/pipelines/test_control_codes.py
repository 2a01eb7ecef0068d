"""Names of files, folders, columns and classes reach the terminal without control codes; a record is no command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines import sample
from pipelines.cli.programs import DIFFUSION
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.cli.parse import parse
from utils.errors import UserError

SPACE = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 16 --tx_dim 64 --tx_depth 1 --no_wandb "
    "--train_batch_size 8 --eval_batch_size 8 --sampling_timesteps 2 --device cpu --num_train_steps 2 --num_samples 4 "
    "--log_every 1 --lr_warmup_steps 1 --class_conditional"
)
CONTROLS = ("\x1b", "\x07", "\x9b", "\u202e", "\x00")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, programs) -> tuple[list[str], Path]:
    """Flags of a corpus whose folder, file, columns and classes hold control codes; and a folder of such a name."""
    root = tmp_path_factory.mktemp("names") / "r\x1b[31m\u202eun"
    root.mkdir()
    file = root / "co\x1b]0;evil\x07rpus.csv"
    names = ("co\u202eld", "wa\x1b[31mrm")
    rows = "".join(f"the plum {i} is red,{names[i % 2]}\n" for i in range(40))
    file.write_text("te\x1b[2Jxt,la\x9bbel\n" + rows)
    columns = ["--text_column", "te\x1b[2Jxt", "--label_column", "la\x9bbel"]
    return ["--train_file", str(file), *columns, "--scorer", str(programs.scorer)], root


def test_no_control_code_reaches_the_terminal(hostile, capsys):
    from pipelines.train_diffusion import train

    flags, root = hostile
    run = root / "out"
    shown = ""
    for argv in (
        [*SPACE.split(), *flags, "--dry_run"],
        [*SPACE.split(), *flags, "--output_dir", str(run)],
        ["--eval", "--resume_dir", str(run), "--num_samples", "4"],
        ["--resume_training", "--resume_dir", str(run)],
    ):
        assert train(parse(DIFFUSION, argv)) == 0
        out = capsys.readouterr()
        shown += out.out + out.err
    assert sample.main(["--run", str(run), "--device", "cpu", "--num_samples", "2"]) == 0
    with pytest.raises(SystemExit):
        sample.main(["--run", str(run), "--device", "cpu", "--class_id", "x\x1b[31m"])
    out = capsys.readouterr()
    shown += out.out + out.err
    assert "co]0;evilrpus" in shown and "te[2Jxt" in shown
    assert not [line for line in shown.splitlines() if any(c in line for c in CONTROLS)]


def test_the_record_of_a_run_names_no_folder_to_write_to(chain, tmp_path):
    """Flags of one invocation are not read from args.json: where to write, what to log to, on which device."""
    run = tmp_path / "run"
    shutil.copytree(chain / "diff", run)
    own = {"output_dir": "/elsewhere", "save_dir": "/elsewhere", "wandb": True, "config": "/x.yaml", "dry_run": True,
           "resume_training": True, "gen_data": True, "resume_dir": "/elsewhere", "device": "mps"}  # fmt: skip
    (run / "args.json").write_text(json.dumps({**json.loads((run / "args.json").read_text()), **own}))
    made = parse(DIFFUSION, ["--eval", "--resume_dir", str(run)])
    assert (made.get("output_dir"), made.get("wandb"), made.get("config"), made.mode) == (None, False, None, "eval")
    assert made.get("resume_dir") == str(run) and made.get("device") == "auto" and not made.get("dry_run")
    assert made.get("save_dir") == DIFFUSION.flags["save_dir"].default


@pytest.mark.parametrize(
    "entry",
    [{"class_names": 5}, {"class_names": [1]}, {"program": ["x"]}, {"seq2seq": "yes"}, {"max_seq_len": "long"},
     {"max_seq_len": 10**400}, {"schema_version": None}, {"schema_version": "2"}, {"language": 3}, {"scale": "x"},
     {"enc_dec_model_relative": []}, {"sampling_timesteps": True}, {"num_devices": -1}, {"latent_space": 7},
     {"tx_depth": 2**31}],
)  # fmt: skip
def test_an_entry_of_another_type_is_one_line(chain, tmp_path, entry):
    """benchmarks/fuzz.py found the last one, which made layers until the memory was full."""
    run = tmp_path / "run"
    shutil.copytree(chain / "diff", run)
    (run / "args.json").write_text(json.dumps({**json.loads((run / "args.json").read_text()), **entry}))
    with pytest.raises(UserError, match="args.json"):
        TextDiffusionPipeline.from_pretrained(run, device="cpu")
