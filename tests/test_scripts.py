"""The recipes below scripts/, and the commands of docs/migrating.md and docs/reproduce.md: each is parsed and dry-run
as its program would be.

A stand-in for the interpreter writes down what a script starts; the program then runs here, with --dry_run and a tiny
language model, so that one import of torch serves all.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for room in ("autoencoder", "diffusion", "eval")
    for path in (ROOT / "scripts" / room).glob("*.sh")
)
EVALUATIONS = [name for name in RECIPES if "eval" in name]
TRAININGS = [name for name in RECIPES if "eval" not in name]
LATENT = "scripts/diffusion/bart_latent_v-pred.sh"
ON_LATENTS = [name for name in TRAININGS if "_latent_" in name]
CLASS_NAMES = ["world", "sports", "business", "sci_tech"]
ASSIGNMENT = re.compile(r"[A-Z_]+=")

# --------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny BART, 64 wide so that attention heads fit."""
    from latent_models.language_models import LanguageModel
    from latent_models.options import PretrainingOptions
    from latent_models.pretraining.small_bart import small_bart
    from latent_models.tokenizers.training import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny bart")  # a blank, as paths may have
    tokenizer = train_tokenizer(["The dog ran home.", "A cat sat down."], "word", 100, 64)
    LanguageModel(small_bart(PretrainingOptions(d_model=64, layers=1), tokenizer), tokenizer, "tiny").save(folder)
    return folder


def record(program: str, argv: list[str], folder: Path, **facts: Any) -> Path:
    """A run folder as a training leaves it, as far as a dry run looks."""
    from pipelines import programs
    from utils.config import parse
    from utils.flag_files import write_args

    write_args(parse(getattr(programs, program), argv), folder, **facts)
    return folder


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> dict[str, Path]:
    """AUTOENCODER, runs on its latents and of the first release, by class and not, and one of a corpus of pairs."""
    root = tmp_path_factory.mktemp("runs")
    base = ["--dataset_name", "roc", "--enc_dec_model", str(model)]
    autoencoder = record("AUTOENCODER", [*base, "--dim_ae", "8"], root / "autoencoder")
    run_flags = ["--latent_model_path", str(autoencoder)]
    run = record("DIFFUSION", [*base, *run_flags], root / "diffusion")
    states = record("DIFFUSION", [*base, "--beta_schedule", "linear", "--denoiser_variant", "states"], root / "states")
    of_pairs = ["--dataset_name", "qqp", *base[2:], *run_flags, "--max_source_len", "64"]
    pairs = record("DIFFUSION", of_pairs, root / "pairs", seq2seq=True)
    by_class = ["--dataset_name", "ag_news", *base[2:], "--class_conditional"]
    first = [*by_class, "--beta_schedule", "linear", "--denoiser_variant", "states"]
    runs = {"AUTOENCODER": autoencoder, "RUN": run, "STATES": states, "PAIRS": pairs}
    runs["STATES BY CLASS"] = record("DIFFUSION", first, root / "states by class", class_names=CLASS_NAMES)
    runs["RUN BY CLASS"] = record("DIFFUSION", [*by_class, *run_flags], root / "by class", class_names=CLASS_NAMES)
    return runs


@pytest.fixture
def started(tmp_path):
    """(words of a command, environment) -> what the script would start after the interpreter, and how it ended."""
    words = tmp_path / "words"
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\nif [[ "$1" == */pins.py ]]; then exit 0; fi\nprintf "%s\\0" "$@" >"$WORDS"\n'
    )
    python.chmod(0o755)
    names = ("ENC_DEC_MODEL", "DATA_DIR", "SCORER", "NUM_PROCESSES", "LATENT_MODEL_PATH")
    clean = {name: value for name, value in os.environ.items() if name not in names}

    def of(command: list[str], **environment: str) -> tuple[list[str], subprocess.CompletedProcess]:
        words.unlink(missing_ok=True)
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**clean, "USE_PYTHON": str(python), "WORDS": str(words), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return (words.read_text().split("\0")[:-1] if words.exists() else []), done

    return of


@pytest.fixture
def dry_run(model, tmp_path, monkeypatch, capsys):
    """(program, its arguments) -> what it prints, once it has exited with 0 and written nothing."""

    def of(program: str, argv: list[str]) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [program, *argv, "--enc_dec_model", str(model), "--dry_run"])
        before = sorted(tmp_path.rglob("*"))
        assert importlib.import_module(Path(program).stem).main() == 0
        assert sorted(tmp_path.rglob("*")) == before, "a dry run writes nothing"
        return capsys.readouterr().out

    return of


def split(words: list[str]) -> tuple[str, list[str]]:
    """What stands before the entry script is the launcher's; the script's name, and its arguments."""
    at = next(i for i, word in enumerate(words) if re.search(r"(^|/)train_\w+\.py$", word))
    return Path(words[at]).name, words[at + 1 :]


def arguments(script: str, folders: dict[str, Path]) -> list[str]:
    if script in ON_LATENTS:
        return ["--latent_model_path", str(folders["AUTOENCODER"])]
    if script in EVALUATIONS:
        return [str(folders[kind_of_run(script)])]
    return []


def kind_of_run(script: str) -> str:
    """Which of the run folders a script, or a command, evaluates."""
    if re.search("scripts/eval/(e2e_mr|xsum|qqp|wmt14)", script):
        return "PAIRS"
    by_class = " BY CLASS" if "--class_id" in script or "--gen_data" in script else ""
    return ("STATES" if "eval_text_diffusion" in script else "RUN") + by_class


# ---------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("script", RECIPES)
def test_every_recipe_dry_runs(started, dry_run, folders, model, script):
    words, done = started(["bash", str(ROOT / script), *arguments(script, folders)], ENC_DEC_MODEL=str(model))
    assert done.returncode == 0, done.stderr
    program, argv = split(words)
    assert (ROOT / program).is_file()
    printed = dry_run(program, argv)
    assert "trained" in printed and "frozen" in printed


# from the published scripts: latent-space recipe, then those of the first release and of its annealed fork
LD4LG = dict(tx_dim=768, tx_depth=12, self_condition=True, scale_shift=True, num_samples=1000, sampling_timesteps=250)
FIRST = dict(
    LD4LG,
    learning_rate=1e-4,
    train_batch_size=64,
    objective="pred_x0",
    loss_type="l1",
    beta_schedule="linear",
    timesteps=1000,
    normalize_latent=True,
    denoiser_variant="states",
    latent_model_path=None,
    ddim_sampling_eta=1.0,
    sampler="ddim",
)
PUBLISHED = {
    "scripts/autoencoder/bart_base_roc.sh": dict(
        dataset_name="roc",
        learning_rate=1e-4,
        lr_warmup_steps=1000,
        lr_schedule="linear",
        train_batch_size=256,
        num_train_steps=50000,
        num_encoder_latents=32,
        dim_ae=64,
        num_layers=3,
        l2_normalize_latents=True,
        eval_every=1000,
        lm_mode="freeze",
    ),
    LATENT: dict(
        LD4LG,
        dataset_name="roc",
        learning_rate=2e-4,
        num_train_steps=250000,
        train_batch_size=128,
        objective="pred_v",
        loss_type="l2",
        train_schedule="cosine",
        train_prob_self_cond=0.5,
        num_dense_connections=3,
        save_and_sample_every=5000,
        denoiser_variant="latent",
    ),
    "scripts/diffusion/text_diffusion_roc.sh": dict(
        FIRST, dataset_name="roc", num_train_steps=500000, disable_dropout=True, adam_weight_decay=1e-6
    ),
    "scripts/diffusion/text_diffusion_e2e.sh": dict(
        FIRST, dataset_name="e2e", num_train_steps=100000, disable_dropout=False, adam_weight_decay=0.01
    ),
    "scripts/diffusion/text_diffusion_sst.sh": dict(
        FIRST,
        dataset_name="sst",
        num_train_steps=100000,
        disable_dropout=False,
        adam_weight_decay=0.01,
        class_conditional=True,
    ),
    "scripts/diffusion/text_diffusion_ag_news.sh": dict(
        FIRST, dataset_name="ag_news", num_train_steps=250000, disable_dropout=True, class_conditional=True
    ),
    "scripts/diffusion/annealed_e2e.sh": dict(
        FIRST,
        dataset_name="e2e",
        num_train_steps=80000,
        adam_weight_decay=0.01,
        T_schedule="polynomial",
        polynomial_T_power=2,
        optimizer="adamw",
        random_seed=41,
        save_and_sample_every=5000,
    ),
    "scripts/diffusion/eval.sh": dict(
        eval=True, num_samples=1000, sampling_timesteps=250, sampler="ddpm", sampling_schedule="cosine"
    ),
    "scripts/diffusion/eval_text_diffusion.sh": dict(
        eval=True, eval_test=False, num_samples=1000, sampling_timesteps=250, sampler="ddim", ddim_sampling_eta=1.0
    ),
    "scripts/diffusion/test_eval_text_diffusion.sh": dict(
        eval=False, eval_test=True, num_samples=1000, sampling_timesteps=250, sampler="ddim", ddim_sampling_eta=1.0
    ),
}
TEST = dict(eval_test=True, sampling_timesteps=250, sampler="ddpm", sampling_schedule="cosine")
PUBLISHED |= {f"scripts/eval/{name}.sh": dict(TEST, num_samples=1000) for name in ("roc", "ag_news")}
PUBLISHED |= {
    f"scripts/eval/{name}.sh": dict(TEST, cls_free_guidance=2.0, seq2seq_candidates=5, num_samples=whole_test_set)
    for name, whole_test_set in {"xsum": 11334, "qqp": 2500, "wmt14_en_de": 3003, "wmt14_de_en": 3003}.items()
}

# what nobody published: the recipe of ROCStories, and what differs from it
AUTOENCODER = PUBLISHED["scripts/autoencoder/bart_base_roc.sh"]
OF_CLASSES = dict(class_conditional=True, class_unconditional_prob=0.1)
OF_SOURCES = dict(seq2seq_unconditional_prob=0.1, seq2seq_candidates=5)
OURS = {f"scripts/autoencoder/{name}.sh": dict(AUTOENCODER, **changes) for name, changes in {
    "bart_base_ag_news": dict(dataset_name="ag_news"),
    "bart_base_e2e": dict(dataset_name="e2e", num_train_steps=20000),
    "bart_base_sst": dict(dataset_name="sst", num_train_steps=10000),
    "flan_t5_base_xsum": dict(dataset_name="xsum", enc_dec_model="google/flan-t5-base"),
    "flan_t5_base_qqp": dict(dataset_name="qqp", enc_dec_model="google/flan-t5-base"),
    "mt5_base_wmt14_de": dict(dataset_name="wmt14-de-de", enc_dec_model="google/mt5-base"),
    "mt5_base_wmt14_en": dict(dataset_name="wmt14-en-en", enc_dec_model="google/mt5-base"),
}.items()} | {f"scripts/diffusion/{name}.sh": dict(PUBLISHED[LATENT], **changes) for name, changes in {
    "bart_latent_ag_news": dict(OF_CLASSES, dataset_name="ag_news"),
    "bart_latent_sst": dict(OF_CLASSES, dataset_name="sst", num_train_steps=100000),
    "bart_latent_e2e": dict(dataset_name="e2e", num_train_steps=100000),
    "bart_latent_e2e_mr": dict(OF_SOURCES, dataset_name="e2e-mr", num_train_steps=100000),
    "flan_t5_latent_xsum": dict(OF_SOURCES, dataset_name="xsum"),
    "flan_t5_latent_qqp": dict(OF_SOURCES, dataset_name="qqp"),
    "mt5_latent_wmt14_de_en": dict(OF_SOURCES, dataset_name="wmt14-de-en"),
    "mt5_latent_wmt14_en_de": dict(OF_SOURCES, dataset_name="wmt14-en-de"),
}.items()} | {f"scripts/eval/{name}.sh": dict(TEST, num_samples=1000) for name in ("e2e", "sst")}  # fmt: skip
OURS["scripts/eval/e2e_mr.sh"] = dict(PUBLISHED["scripts/eval/qqp.sh"], num_samples=4693)


@pytest.mark.parametrize("script", RECIPES)
def test_every_recipe_has_the_published_hyper_parameters(started, folders, script):
    from pipelines import programs
    from utils.config import parse

    words, _ = started(["bash", str(ROOT / script), *arguments(script, folders)])
    program, argv = split(words)
    settings = parse({"train_latent_model.py": programs.AUTOENCODER}.get(program, programs.DIFFUSION), argv)
    wanted = (PUBLISHED | OURS)[script]
    assert {name: settings.values[name] for name in wanted} == wanted
    if script in TRAININGS and script not in ON_LATENTS:
        assert settings.enc_dec_model == wanted.get("enc_dec_model", "facebook/bart-base") and settings.scorer is None
    if script in EVALUATIONS:
        assert settings.scorer == "openai-community/gpt2-large" and "enc_dec_model" not in settings.typed


@pytest.mark.parametrize("script", RECIPES)
def test_flags_of_the_caller_come_last_and_the_environment_names_the_parts(started, folders, script):
    typed = ["--num_train_steps", "7", "--output_dir", "a folder"]
    words, done = started(
        ["bash", str(ROOT / script), *arguments(script, folders), *typed],
        ENC_DEC_MODEL="some model",
        DATA_DIR="some data",
        SCORER="some scorer",
        NUM_PROCESSES="3",
    )
    assert done.returncode == 0, done.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    assert words[: len(launcher)] == launcher and words[-len(typed) :] == typed
    pairs = list(zip(words, words[1:], strict=False))
    assert ("--enc_dec_model", "some model") in pairs and ("--data_dir", "some data") in pairs
    assert (("--scorer", "some scorer") in pairs) == (script in EVALUATIONS)


def test_the_latent_recipe_finds_its_autoencoder(started, tmp_path):
    """As typed, else as the environment says, else the newest; none is one line."""
    command = ["bash", str(ROOT / LATENT)]
    words, done = started(command)
    assert done.returncode == 2 and not words
    assert done.stderr.startswith("error: no run below saved_latent_models/roc") and done.stderr.count("\n") == 1
    for day in ("2024-05-01_10-00-00", "2024-06-01_09-00-00"):
        (tmp_path / "saved_latent_models/roc" / day).mkdir(parents=True)
        (tmp_path / "saved_latent_models/roc" / day / "args.json").write_text("{}")
    (tmp_path / "saved_latent_models/roc/2024-07-01_00-00-00").mkdir()  # not a run yet

    def path(*typed: str, **environment: str) -> list[str]:
        words, _ = started([*command, *typed], **environment)
        return [value for flag, value in zip(words, words[1:], strict=False) if flag == "--latent_model_path"]

    assert path() == ["saved_latent_models/roc/2024-06-01_09-00-00"]
    assert path(LATENT_MODEL_PATH="elsewhere") == ["elsewhere"]
    assert path("--latent_model_path", "typed", LATENT_MODEL_PATH="elsewhere") == ["typed"]


@pytest.mark.parametrize("script", EVALUATIONS)
def test_an_evaluation_says_in_one_line_how_it_is_used(started, tmp_path, script):
    for words in ([], ["--num_samples", "3"], [str(tmp_path)]):
        begun, done = started(["bash", str(ROOT / script), *words])
        assert done.returncode == 2 and not begun and done.stderr.count("\n") == 1
        assert ("usage:" in done.stderr) == (words != [str(tmp_path)])


def test_the_test_set_replaces_the_validation_set(started, folders):
    words, _ = started(["bash", str(ROOT / "scripts/diffusion/eval.sh"), str(folders["RUN"]), "--eval_test"])
    assert "--eval_test" in words and "--eval" not in words


@pytest.mark.parametrize("script", RECIPES)
def test_a_recipe_opens_with_what_one_wants_to_know(script):
    header = (ROOT / script).read_text().split("set -euo pipefail")[0]
    for title in ("Expect:", "Cost:", "Needs:", "Use:"):
        assert f"# {title}" in header
    assert "# Paper:" in header or "# Source:" in header
    assert ("ours:" in header) == (script in OURS), "what nobody published is called ours, and nothing else is"
    assert f"bash {script}" in header
    assert all(len(line) <= 120 for line in (ROOT / script).read_text().splitlines())


# ------------------------------------------------------------------------ docs/migrating.md and docs/reproduce.md


def commands(document: str) -> list[str]:
    """Right-hand cells of the tables, and blocks of shell: what can be typed here."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    cells = []
    for line in prose.splitlines():
        if line.startswith("|"):
            cells += re.split(r"(?<!\\)\|", line)[2:-1]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    start = re.compile(r"([A-Z_]+=\S+ )*(bash scripts/|python train_|accelerate launch |torchrun )")
    return [block.replace("\\\n", " ") for block in blocks] + [span for span in spans if start.match(span)]


MIGRATING, REPRODUCE = (commands(f"docs/{name}.md") for name in ("migrating", "reproduce"))
COMMANDS = sorted({*MIGRATING, *REPRODUCE})


def scripts_of(found: list[str]) -> set[str]:
    return {word for command in found for word in command.split() if word.startswith("scripts/")}


def test_the_documents_hold_every_recipe():
    assert scripts_of(REPRODUCE) == set(RECIPES)
    assert scripts_of(MIGRATING) < set(RECIPES) and len(MIGRATING) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documents_dry_runs(started, dry_run, folders, model, command):
    places = {**folders, "RUN": folders[kind_of_run(command)]}
    words = [re.sub(r"^(LATENT_MODEL_PATH=)?(AUTOENCODER|RUN)$",
                    lambda found: (found[1] or "") + str(places[found[2]]), word)
             for word in shlex.split(command)]  # fmt: skip
    environment = {"ENC_DEC_MODEL": str(model)}
    while ASSIGNMENT.match(words[0]):
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
    if words[0] == "bash":
        if words[1] in ON_LATENTS and "LATENT_MODEL_PATH" not in environment:
            words += arguments(words[1], folders)
        words, done = started(["bash", str(ROOT / words[1]), *words[2:]], **environment)
        assert done.returncode == 0, done.stderr
    dry_run(*split(words))


# ------------------------------------------------------------------------------- the published documents themselves

# Commands of the three READMEs, without the blanks after their backslashes; RUN: a path that a reader puts in. "runs":
# as it stands; "row": docs/migrating.md says what takes its place. also: what those documents offer beside it.
PUBLISHED_COMMANDS = json.loads((ROOT / "tests/published_commands.json").read_text(encoding="utf-8"))
THERE = " ".join(
    line.split(" | ")[0] for line in (ROOT / "docs/migrating.md").read_text().splitlines() if line.startswith("| ")
)


@pytest.mark.parametrize("entry", PUBLISHED_COMMANDS, ids=lambda entry: f"{entry['document']}: {entry['command'][:60]}")
def test_a_published_command_runs_or_has_its_row(started, dry_run, folders, model, entry):
    if entry["here"] == "row":
        assert entry["command"] in THERE
        return
    words = shlex.split(entry["command"])
    words = [str(folders[kind_of_run(entry["command"])]) if word == "RUN" else word for word in words]
    if words[0] != "python":
        at = ROOT / words[0]
        assert os.access(at, os.X_OK)
        autoencoder = {"LATENT_MODEL_PATH": str(folders["AUTOENCODER"])}
        words, done = started([str(at), *words[1:]], ENC_DEC_MODEL=str(model), **autoencoder)
        assert done.returncode == 0, done.stderr
    for also in ("", *entry.get("also", [])):
        dry_run(*split([*words, *also.split()]))


def test_a_dry_run_of_an_evaluation_leaves_the_run_alone(dry_run, folders):
    before = json.loads((folders["RUN"] / "args.json").read_text())
    dry_run("train_text_diffusion.py", ["--eval", "--resume_dir", str(folders["RUN"])])
    assert [path.name for path in folders["RUN"].iterdir()] == ["args.json"]
    assert json.loads((folders["RUN"] / "args.json").read_text()) == before
