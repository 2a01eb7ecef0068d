"""The recipes below scripts/, and the commands of docs/migrating.md and docs/reproduce.md: each is parsed and dry-run
as its program would be.

A stand-in for the interpreter writes down what a script starts; the program then runs here, with --dry_run and a tiny
language model, so that one import of torch serves all. Programs without --dry_run run whole, on a tiny trained run.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("autoencoder", "diffusion", "embedding", "eval")
    for path in (ROOT / "scripts" / folder).glob("*.sh")
)
EVALUATIONS = [name for name in RECIPES if re.search("eval|decode", name)]
TRAININGS = [name for name in RECIPES if name not in EVALUATIONS]
EMBEDDED = [name for name in RECIPES if name.startswith("scripts/embedding/")]
DIFFUSEQ = [name for name in TRAININGS if "diffuseq" in name]
LATENT = "scripts/diffusion/bart_latent_v-pred.sh"
ON_LATENTS = [name for name in TRAININGS if "_latent_" in name]
CLASS_NAMES = ["world", "sports", "business", "sci_tech"]
ASSIGNMENT = re.compile(r"[A-Z_]+=")
# every word more than ten times, since Diffusion-LM maps rarer ones to the unknown token
COLOURS, FOODS = ("red", "blue", "pink", "grey"), ("pear", "fig", "plum", "kiwi")
TEXTS = [f"The {colour} {food} is {taste}." for colour in COLOURS for food in FOODS for taste in "abcdefgh"]

# --------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny BART, 64 wide so that attention heads fit."""
    from latent_models.language_models import LanguageModel
    from latent_models.pretraining.options import PretrainingOptions
    from latent_models.pretraining.small_bart import small_bart
    from latent_models.tokenizers.training import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny bart")  # a blank, as paths may have
    tokenizer = train_tokenizer(["The dog ran home.", "A cat sat down."], "word", 100, 64)
    bart = small_bart(PretrainingOptions(d_model=64, layers=1), tokenizer)
    LanguageModel(bart, tokenizer, "tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Path:
    """A BERT-style tokenizer."""
    from latent_models.tokenizers.training import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny vocabulary")
    train_tokenizer(TEXTS, "word-level", 100, 64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Each corpus of the recipes of embeddings, in its own form."""
    root = tmp_path_factory.mktemp("some corpora")
    files = {f"{name}/{name}-train.txt": TEXTS for name in ("simple", "greetings")}
    files["simple/simple_labeled.tsv"] = [f"{text}\t{int('red' in text)}" for text in TEXTS]
    for split in ("train", "valid", "test"):
        files[f"e2e_data/src1_{split}.txt"] = [f"name : Blue Fig | area : riverside || {text}" for text in TEXTS]
        for name in ("qqp", "quasar-t", "wiki-auto", "commonsense"):
            files[f"{name}/{split}.jsonl"] = [json.dumps({"src": f"{text} {text}", "trg": text}) for text in TEXTS]
    for split in ("train", "valid"):
        files[f"ROCstory/roc_{split}.json"] = [json.dumps([text]) for text in TEXTS]
    for name, lines in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(f"{line}\n" for line in lines))
    return root


def record(program: str, argv: list[str], folder: Path, **metadata: Any) -> Path:
    """A run folder with the files that a dry run reads."""
    from pipelines.cli import programs
    from utils.cli.args_io import write_args
    from utils.cli.parse import parse

    write_args(parse(getattr(programs, program), argv), folder, **metadata)
    return folder


@pytest.fixture(scope="module")
def folders(model, data, vocabulary, tmp_path_factory) -> dict[str, Path]:
    """AUTOENCODER, runs on its latents and of the first release, by class and not, of a corpus of pairs, of embeddings;
    and what a reader puts in the place of FILE, FOLDER and TEXT FILE."""
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
    runs |= {"FILE": data / "simple/simple-train.txt", "FOLDER": data / "qqp"}
    runs["STATES BY CLASS"] = record("DIFFUSION", first, root / "states by class", class_names=CLASS_NAMES)
    runs["RUN BY CLASS"] = record("DIFFUSION", [*by_class, *run_flags], root / "by class", class_names=CLASS_NAMES)
    for name, corpus in (("EMBEDDINGS", "simple"), ("EMBEDDED PAIRS", "qqp")):
        runs[name] = embeddings_run(root / name.lower(), corpus, data, vocabulary)
    return runs


def embeddings_run(folder: Path, corpus: str, data: Path, vocabulary: Path) -> Path:
    from latent_models.tokenizers.files import load_tokenizer
    from utils.tokenizer_fingerprint import fingerprint

    argv = ["--latent_space", "embeddings", "--dataset_name", corpus, "--data_dir", str(data)]
    metadata = {"tokenizer_fingerprint": fingerprint(load_tokenizer(str(vocabulary), 64))}
    shutil.copytree(vocabulary, folder / "tokenizer")
    return record("DIFFUSION", argv, folder, seq2seq=corpus == "qqp", embedding_width=128, **metadata)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A run of embeddings with a checkpoint, small and hardly trained, on a chain of 2,000 steps."""
    import train_text_diffusion
    from evaluation import local_lm

    folder = tmp_path_factory.mktemp("trained") / "run"
    network = "--max_seq_len 10 --embedding_dim 8 --tx_dim 64 --tx_depth 1 --device cpu"
    short = "--num_train_steps 2 --train_batch_size 4 --num_samples 4 --sampling_timesteps 2 --no_wandb"
    argv = f"--latent_space embeddings --dataset_name simple {network} {short}".split()
    scorer = folder.parent / "scorer"
    local_lm.train_local(TEXTS, scorer, steps=2, width=32, layers=1, heads=2, vocab_size=100, max_length=32)
    argv += ["--scorer", str(scorer)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *argv, "--data_dir", str(data), "--output_dir", str(folder)])
        assert train_text_diffusion.main() == 0
    return folder


@pytest.fixture
def started(tmp_path):
    """(words of a command, environment) -> the arguments for the interpreter, and the finished process."""
    words = tmp_path / "words"
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\nif [[ "$1" == */pins.py ]]; then exit 0; fi\nprintf "%s\\0" "$@" >"$WORDS"\n'
    )
    python.chmod(0o755)
    names = ("ENC_DEC_MODEL", "DATA_DIR", "SCORER", "NUM_PROCESSES", "LATENT_MODEL_PATH", "VOCAB", "BERTSCORE_MODEL")
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
    """(program, its arguments) -> its output; asserts that it exits with 0 and writes no file."""

    def of(program: str, argv: list[str]) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [program, *argv, "--enc_dec_model", str(model), "--dry_run"])
        before = sorted(tmp_path.rglob("*"))
        assert importlib.import_module(Path(program).stem).main() == 0
        assert sorted(tmp_path.rglob("*")) == before, "a dry run writes nothing"
        return capsys.readouterr().out

    return of


SMALL = {
    "pipelines.train_classifier": "--device cpu --num_train_steps 2 --classifier_dim 64 --classifier_depth 1",
    "pipelines.sample": "--device cpu --sampling_timesteps 3",
    "pipelines.infill": "--device cpu --sampling_timesteps 3",
    "pipelines.rewrite": "--device cpu --sampling_timesteps 6",
}


@pytest.fixture
def run_module(tmp_path, monkeypatch, capsys):
    """(module, its arguments) -> the lines that python -m MODULE prints, once it has run whole, if in fewer steps, and
    exited with 0."""

    def of(module: str, argv: list[str]) -> list[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module, *argv, *SMALL.get(module, "").split()])
        spec = importlib.util.find_spec(module)
        main = f"{module}.__main__" if spec and spec.submodule_search_locations else module
        capsys.readouterr()
        assert importlib.import_module(main).main() == 0
        return capsys.readouterr().out.splitlines()

    return of


@pytest.fixture(scope="module")
def classifier(trained, data, tmp_path_factory) -> Path:
    """A classifier of the latents of the trained run."""
    from pipelines import train_classifier
    from pipelines.cli.programs import CLASSIFIER
    from utils.cli.parse import parse

    folder = tmp_path_factory.mktemp("classifier") / "run"
    argv = ["--diffusion_run", str(trained), "--train_file", str(data / "simple/simple_labeled.tsv")]
    argv += SMALL["pipelines.train_classifier"].split()
    assert train_classifier.train(parse(CLASSIFIER, [*argv, "--output_dir", str(folder)])) == 0
    return folder


def split(words: list[str]) -> tuple[str, list[str]]:
    """(name of the entry script, its arguments), without the arguments of a launcher before them."""
    at = next(i for i, word in enumerate(words) if re.search(r"(^|/)train_\w+\.py$", word))
    return Path(words[at]).name, words[at + 1 :]


def arguments(script: str, folders: dict[str, Path]) -> list[str]:
    if script in ON_LATENTS:
        return ["--latent_model_path", str(folders["AUTOENCODER"])]
    if script in EVALUATIONS:
        return [str(folders[kind_of_run(script)])]
    return []


def kind_of_run(script: str) -> str:
    """The name of the run folder that a script or command evaluates."""
    if re.search("scripts/eval/(e2e_mr|xsum|qqp|wmt14)", script):
        return "PAIRS"
    if script.startswith("bash scripts/embedding/") or script in EMBEDDED:
        return "EMBEDDED PAIRS" if "decode" in script else "EMBEDDINGS"
    by_class = " BY CLASS" if "--class_id" in script or "--gen_data" in script else ""
    return ("STATES" if "eval_text_diffusion" in script else "RUN") + by_class


# ---------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("script", RECIPES)
def test_every_recipe_dry_runs(started, dry_run, folders, model, data, vocabulary, script):
    places = {"ENC_DEC_MODEL": str(model)}
    if script in EMBEDDED:  # with their corpora, which are small enough to be made here
        places = {"VOCAB": str(vocabulary), "DATA_DIR": str(data)}
    words, done = started(["bash", str(ROOT / script), *arguments(script, folders)], **places)
    assert done.returncode == 0, done.stderr
    program, argv = split(words)
    assert (ROOT / program).is_file()
    printed = dry_run(program, argv)
    assert "trained" in printed and "frozen" in printed
    if script in EMBEDDED:
        assert "split   " in printed, "the survey of its corpus, by its tokenizer"


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
    save_and_sample_every=5000,
    sample_every=50000,  # ours; published is 5000
    mixed_precision="no",
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
        eval_every=5000,  # ours; published is 1000
        save_every=1000,
        lm_mode="freeze",
        mixed_precision="no",
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
        sample_every=25000,  # ours; published is 5000
        mixed_precision="no",
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

# not published: the recipe of ROCStories, and recipes that differ from it
AUTOENCODER = PUBLISHED["scripts/autoencoder/bart_base_roc.sh"]
OF_CLASSES = dict(class_conditional=True, class_unconditional_prob=0.1)
OF_SOURCES = dict(seq2seq_unconditional_prob=0.1, seq2seq_candidates=5, num_samples=500, sample_every=50000)
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

# systems that diffuse token embeddings
EMBEDDINGS = dict(
    latent_space="embeddings",
    denoiser_variant="encoder",
    encoder_config=None,
    encoder_init="random",
    encoder_dropout=None,
    objective="pred_x0",
    beta_schedule="sqrt",
    timesteps=2000,
    learning_rate=1e-4,
    lr_schedule="linear",
    lr_warmup_steps=0,
    adam_weight_decay=0.0,
    ema_decay=0.9999,
    padding="generated",
)
MINIMAL = dict(
    EMBEDDINGS,
    max_seq_len=50,
    embedding_dim=128,
    train_batch_size=64,
    random_seed=10708,
    vocab="word-level",
    sampling_timesteps=2000,
    posterior_variance="small",
    truncate_noise=0.9,
)
FIRST_DIFFUSEQ = dict(
    EMBEDDINGS,
    max_seq_len=128,
    embedding_dim=128,
    encoder_time_dim=128,
    schedule_sampler="lossaware",
    importance_bins=None,
    random_seed=102,
    train_batch_size=64,
    gradient_accumulation_steps=32,
    sampling_timesteps=2000,
    posterior_variance="large",
    clamp=True,
)
SECOND_DIFFUSEQ = dict(
    FIRST_DIFFUSEQ,
    train_batch_size=425,
    gradient_accumulation_steps=1,
    learned_mean_embed=True,
    denoise=True,
    denoise_rate=0.5,
    mixed_precision="fp16",
    sampler="dpmpp",
    sampling_timesteps=10,
    clamp=False,
)
STEPS = {"qqp": 50_000, "quasar-t": 40_000, "commonsense": 140_000, "wiki-auto": 80_000}
NAMES = {"qqp": "qqp", "quasar-t": "quasar_t", "commonsense": "dialogue", "wiki-auto": "wiki_auto"}
PUBLISHED |= {f"scripts/embedding/{name}.sh": dict(MINIMAL, dataset_name=name, num_train_steps=steps)
              for name, steps in (("simple", 25_001), ("greetings", 5_000))}  # fmt: skip
for corpus, steps in STEPS.items():
    own = dict(dataset_name=corpus, num_train_steps=steps)
    PUBLISHED[f"scripts/embedding/diffuseq_{NAMES[corpus]}.sh"] = FIRST_DIFFUSEQ | own
    group = PUBLISHED if corpus == "qqp" else OURS
    group[f"scripts/embedding/diffuseq_v2_{NAMES[corpus]}.sh"] = SECOND_DIFFUSEQ | own
OURS |= {f"scripts/embedding/diffusion_lm_{corpus}.sh":
         dict(EMBEDDINGS, dataset_name=corpus, train_batch_size=64, embedding_dim=dim, sampling_timesteps=200)
         for corpus, dim in (("e2e", 16), ("roc", 128))}  # fmt: skip
DECODING = dict(eval_test=True, seq2seq_candidates=10, mbr_utility="diffuseq_bleu", eval_batch_size=100)
PUBLISHED |= {f"scripts/embedding/decode_{name}.sh": dict(DECODING, sampler=sampler, sampling_timesteps=steps)
              for name, sampler, steps in (("ancestral", "ddpm", 2000), ("ddim", "ddim", 200),
                                           ("solver", "dpmpp", 10))}  # fmt: skip
PUBLISHED["scripts/embedding/eval.sh"] = dict(eval_test=True, num_samples=1000, sampler="ddpm", sampling_timesteps=200)


@pytest.mark.parametrize("script", RECIPES)
def test_every_recipe_has_the_published_hyper_parameters(started, folders, script):
    from pipelines.cli import programs
    from utils.cli.parse import parse

    words, _ = started(["bash", str(ROOT / script), *arguments(script, folders)])
    program, argv = split(words)
    settings = parse({"train_latent_model.py": programs.AUTOENCODER}.get(program, programs.DIFFUSION), argv)
    wanted = (PUBLISHED | OURS)[script]
    assert {name: settings.get(name) for name in wanted} == wanted
    if script in TRAININGS and script not in ON_LATENTS + EMBEDDED:
        assert (
            settings.config.language_model.enc_dec_model == wanted.get("enc_dec_model", "facebook/bart-base")
            and settings.config.evaluation.scorer is None
        )
    if script in EVALUATIONS:
        scorer = None if "decode" in script else "openai-community/gpt2-large"
        assert settings.config.evaluation.scorer == scorer and "enc_dec_model" not in settings.explicit
    if script in DIFFUSEQ:
        assert settings.config.tokenizer.vocab == "bert"


@pytest.mark.parametrize("script", RECIPES)
def test_flags_of_the_caller_come_last_and_environment_variables_name_the_parts(started, folders, script):
    typed = ["--num_train_steps", "7", "--output_dir", "a folder"]
    words, done = started(
        ["bash", str(ROOT / script), *arguments(script, folders), *typed],
        ENC_DEC_MODEL="some model",
        DATA_DIR="some data",
        SCORER="some scorer",
        VOCAB="some vocabulary",
        NUM_PROCESSES="3",
    )
    assert done.returncode == 0, done.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    assert words[: len(launcher)] == launcher and words[-len(typed) :] == typed
    pairs = list(zip(words, words[1:], strict=False))
    assert ("--data_dir", "some data") in pairs
    assert (("--enc_dec_model", "some model") in pairs) == (script not in EMBEDDED or script.endswith("/eval.sh"))
    assert (("--scorer", "some scorer") in pairs) == (script in EVALUATIONS and "decode" not in script)
    assert (("--vocab", "some vocabulary") in pairs) == (script in DIFFUSEQ)


def test_the_latent_recipe_finds_its_autoencoder(started, tmp_path):
    """The flag, else the environment variable, else the newest; without any, an error of one line."""
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
def test_an_evaluation_script_prints_its_usage_in_one_line(started, tmp_path, script):
    for words in ([], ["--num_samples", "3"], [str(tmp_path)]):
        begun, done = started(["bash", str(ROOT / script), *words])
        assert done.returncode == 2 and not begun and done.stderr.count("\n") == 1
        assert ("usage:" in done.stderr) == (words != [str(tmp_path)])


def test_the_test_set_replaces_the_validation_set(started, folders):
    words, _ = started(["bash", str(ROOT / "scripts/diffusion/eval.sh"), str(folders["RUN"]), "--eval_test"])
    assert "--eval_test" in words and "--eval" not in words


@pytest.mark.parametrize("script", RECIPES)
def test_the_header_of_a_recipe_has_every_section(script):
    header = (ROOT / script).read_text().split("set -euo pipefail")[0]
    for title in ("Expect:", "Cost:", "Needs:", "Use:"):
        assert f"# {title}" in header
    encodes = script in TRAININGS and script.startswith("scripts/diffusion/")
    assert ("# Disk:" in header) == encodes, "what is written before the first step"
    assert "# Paper:" in header or "# Source:" in header
    assert ("ours:" in header) == (script in OURS), "exactly the unpublished recipes are called ours"
    assert f"bash {script}" in header
    assert all(len(line) <= 120 for line in (ROOT / script).read_text().splitlines())


# ------------------------------------------------------------------------ docs/migrating.md and docs/reproduce.md


def commands(document: str) -> list[str]:
    """Commands in right-hand cells of the tables and in blocks of shell."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    cells = []
    for line in prose.splitlines():
        if line.startswith("|"):
            cells += re.split(r"(?<!\\)\|", line)[2:-1]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    start = re.compile(r"([A-Z_]+=\S+ )*(bash scripts/|python (train_|-m )|accelerate launch |torchrun )")
    return [block.replace("\\\n", " ") for block in blocks] + [span for span in spans if start.match(span)]


MIGRATING, REPRODUCE = (commands(f"docs/{name}.md") for name in ("migrating", "reproduce"))
COMMANDS = sorted({*MIGRATING, *REPRODUCE})


def scripts_of(found: list[str]) -> set[str]:
    return {word for command in found for word in command.split() if word.startswith("scripts/")}


TEXT_SAMPLE = "scripts/text_sample.sh"
WHOLE = re.compile(rf"({TEXT_SAMPLE}|python -m )")  # no dry run: on the trained run


def test_the_documents_list_every_recipe():
    assert scripts_of(REPRODUCE) == {*RECIPES, TEXT_SAMPLE}
    assert scripts_of(MIGRATING) < {*RECIPES, TEXT_SAMPLE} and len(MIGRATING) > 20


def environment_of(words: list[str]) -> dict[str, str]:
    """NAME=value before a command, removed from its words."""
    found = {}
    while ASSIGNMENT.match(words[0]):
        name, value = words.pop(0).split("=", 1)
        found[name] = value
    return found


@pytest.mark.parametrize("command", [command for command in COMMANDS if WHOLE.search(command)])
def test_every_command_without_a_dry_run_runs(started, run_module, trained, classifier, data, tmp_path, command):
    places = {"RUN": trained, "CLASSIFIER": classifier, "FOLDER": tmp_path / "a folder"}
    places |= {"FILE": data / "simple/simple-train.txt", "LABELLED": data / "simple/simple_labeled.tsv"}
    words = [str(places.get(word, word)) for word in shlex.split(command)]
    environment = environment_of(words)
    if words[0] == "python":
        run_module(words[2], words[3:])
        return
    _, script, run, steps, count, *_ = words
    words, done = started(["bash", str(ROOT / script), *words[2:]], **environment)
    assert done.returncode == 0, done.stderr
    asked = ["--run", run, "--sampling_timesteps", steps, "--num_samples", count]
    assert words[:8] == ["-m", "pipelines.sample", *asked]
    assert len(run_module(words[1], words[2:])) == int(count)


def test_text_sample_prints_its_usage_in_one_line(started, tmp_path):
    for words, message in (([], "usage:"), ([str(tmp_path)], "usage:"), (["run.pt", "20", "3"], "run.pt is no folder")):
        begun, done = started(["bash", str(ROOT / TEXT_SAMPLE), *words])
        assert done.returncode == 2 and not begun and done.stderr.count("\n") == 1 and message in done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if not WHOLE.search(command)])
def test_every_command_of_the_documents_dry_runs(started, dry_run, folders, model, command):
    places = {**folders, "RUN": folders[kind_of_run(command)]}
    words = [re.sub(r"^(LATENT_MODEL_PATH=)?(AUTOENCODER|RUN|FILE|FOLDER)$",
                    lambda found: (found[1] or "") + str(places[found[2]]), word)
             for word in shlex.split(command)]  # fmt: skip
    environment = {"ENC_DEC_MODEL": str(model), **environment_of(words)}
    if words[0] == "bash":
        if words[1] in ON_LATENTS and "LATENT_MODEL_PATH" not in environment:
            words += arguments(words[1], folders)
        words, done = started(["bash", str(ROOT / words[1]), *words[2:]], **environment)
        assert done.returncode == 0, done.stderr
    dry_run(*split(words))


# ------------------------------------------------------------------------------- the published documents themselves

# Commands and flags of the published READMEs, without the blanks after their backslashes; RUN: a path that a reader
# puts in. "runs": unchanged; "row": docs/migrating.md names its replacement. also: flags that they offer with it.
PUBLISHED_COMMANDS = json.loads((ROOT / "tests/published_commands.json").read_text(encoding="utf-8"))
ROWS = [
    line.strip("| ").split(" | ", 1)  # the published command, the one of this project
    for line in (ROOT / "docs/migrating.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `") or " | " in line
]


@pytest.mark.parametrize("entry", PUBLISHED_COMMANDS, ids=lambda entry: f"{entry['document']}: {entry['command'][:60]}")
def test_a_published_command_runs_or_has_its_row(started, dry_run, folders, model, entry):
    if entry["here"] == "row":
        assert any(entry["command"] in row[0] and row[1].strip() for row in ROWS)
        return
    if WHOLE.search(entry["command"]):
        assert entry["command"] in MIGRATING, "it runs above"
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
