"""Both sides of an evaluation have one spelling, which the protocol names; runs say what their tokenizer changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dataset_utils.corpus import Corpus
from dataset_utils.registry import load
from dataset_utils.round_trip import respell
from evaluation import scorers
from evaluation.fluency import perplexity
from evaluation.local_lm import train_local
from evaluation.protocols import evaluate_texts
from evaluation.report import notes
from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.from_flags import make_tokenizer
from latent_models.tokenizers.options import TokenizerOptions
from pipelines import train_diffusion
from pipelines.cli.programs import DIFFUSION
from pipelines.evaluators.spelling import respelled
from utils.cli.parse import parse
from utils.seeding import seeded_generator

CASES = Path(__file__).resolve().parents[1] / "cases"
EMBEDDINGS = "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 24"


def corpus_of(name: str) -> Corpus:
    return load(parse(DIFFUSION, f"--latent_space embeddings --train_file {CASES / name}".split()).config.data)


def in_thirds(name: str, folder: Path) -> str:
    """Flags of three files, for the three splits, with the rows of a case."""
    lines = (CASES / name).read_text(encoding="utf-8").split("\n")[:-1]
    size, flags = len(lines) // 3, []
    for i, split in enumerate(("train", "valid", "test")):
        path = folder / f"{split}{Path(name).suffix}"
        path.write_text("\n".join(lines[i * size : (i + 1) * size]) + "\n", encoding="utf-8")
        flags.append(f"--{split}_file {path}")
    return " ".join(flags)


def texts_in(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=["lower", "default"])
def cased_run(request, programs, tmp_path_factory) -> Path:
    """A run on texts with capitals, whose vocabulary has lower case only, and one with the default vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = f"{in_thirds('cased.jsonl', folder)} --class_conditional"
    if request.param == "lower":
        flags += " --config vocab_lowercase=true"
    assert programs.diffusion(EMBEDDINGS, folder / "run", flags) == 0
    return folder / "run"


def test_a_run_stores_what_its_tokenizer_changes_and_judges_in_one_spelling(cased_run, programs, tmp_path, capsys):
    lower = cased_run.parent.name.startswith("lower")
    protocol = json.loads((cased_run / "metrics.json").read_text())["protocol"]
    assert protocol["spelling"] == ("tokenizer" if lower else "raw")
    assert protocol["unchanged_by_tokenizer"] == dict.fromkeys(("train", "valid", "test"), 0.0 if lower else 1.0)
    survey = json.loads((cased_run / "survey.json").read_text())["splits"]["train"]["round_trip"]
    assert survey["unchanged"] == (0 if lower else 1) and survey["measured"] == 133
    assert (survey["before"] or "").lower() == (survey["after"] or "") and bool(survey["before"]) == lower

    assert (
        programs.again("diffusion", cased_run, f"--eval --class_id prior --num_samples 4 --output_dir {tmp_path}") == 0
    )
    printed = capsys.readouterr().err
    assert f"the tokenizer brings back unchanged: train {'0' if lower else '100'} %" in printed
    assert ("before: " in printed) == lower
    result = json.loads((tmp_path / "evaluation/eval-valid.json").read_text())
    assert result["protocol"]["spelling"] == protocol["spelling"]
    assert any("compared in its spelling" in note for note in notes(result)) == lower
    # the references, and so everything else that is compared with samples, have the spelling of the tokenizer
    texts = texts_in(cased_run.parent / "valid.jsonl")
    order = torch.randperm(len(texts), generator=seeded_generator(42, "references", "valid")).tolist()
    references = [texts[i] for i in order[:4]]
    tokenizer, scorer = load_tokenizer(str(cased_run / "tokenizer"), 24), scorers.load(programs.scorer)
    spelled = perplexity(respell(tokenizer, references), scorer)["perplexity"]
    assert result["reference/val_perplexity"] == pytest.approx(spelled, rel=1e-4)
    assert (perplexity(references, scorer)["perplexity"] == pytest.approx(spelled, rel=1e-4)) == (not lower)


def test_samples_in_lower_case_are_judged_as_what_they_are(tmp_path):
    """Texts that a perfect model of lower case writes: all are copies, and as likely and as spread as the real ones."""
    corpus = corpus_of("cased.jsonl")
    tokenizer = make_tokenizer(TokenizerOptions(vocab_lowercase=True), corpus.train.texts, 24)
    compared, spelling = respelled(corpus, tokenizer)
    samples = respell(tokenizer, corpus.train.texts[:100])
    assert spelling.metadata()["spelling"] == "tokenizer"
    small = {"steps": 60, "width": 32, "layers": 1, "heads": 2, "vocab_size": 300, "max_length": 64}
    found = {}
    for name, real in (("raw", corpus), ("one", compared)):
        scorer = scorers.load(train_local(real.train.texts, tmp_path / name, **small))
        references = {"train": real.train.texts[100:200]}
        found[name] = evaluate_texts(samples, references, real.train.texts, scorer)
        found[f"{name} real"] = perplexity(real.train.texts[100:200], scorer)["perplexity"]
    assert found["one"]["train_copy_rate"] == found["one"]["memorization"] == 1
    assert found["one"]["perplexity"] < 1.2 * found["one real"]
    assert found["one"]["local_lm_train_mauve"] > 0.8
    # this is what two spellings do to the same texts
    assert found["raw"]["train_copy_rate"] == 0
    assert found["raw"]["perplexity"] > 2 * found["raw real"]
    assert found["raw"]["local_lm_train_mauve"] < 0.5


@pytest.mark.parametrize("name", ["cased.jsonl", "pairs_chinese.jsonl", "scripts.txt", "line_breaks.jsonl"])
def test_texts_that_come_back_are_the_very_same_objects(name):
    corpus = corpus_of(name)
    tokenizer = make_tokenizer(TokenizerOptions(), corpus.train.texts, 24)
    compared, spelling = respelled(corpus, tokenizer)
    assert compared is corpus and spelling.metadata()["spelling"] == "raw"


@pytest.mark.parametrize(
    "name, tokenizer, spelling",
    [
        ("line_breaks.jsonl", "word", "raw"),
        ("scripts.txt", "bpe", "raw"),
        ("special_tokens.txt", "word", "tokenizer"),  # its words are "</", "s", ">"
        ("special_tokens.txt", "bpe", "raw"),
    ],
)
def test_a_language_model_is_judged_by_what_its_tokenizer_writes(programs, tmp_path, capsys, name, tokenizer, spelling):
    flags = f"{in_thirds(name, tmp_path)} --tokenizer {tokenizer} --vocab_size 400 --num_train_steps 2"
    assert programs.pretrain(tmp_path / "lm", flags) == 0
    protocol = json.loads((tmp_path / "lm/validation.json").read_text())["protocol"]
    assert protocol["spelling"] == spelling
    assert protocol["unchanged_by_tokenizer"] == {"valid": 0.0 if spelling == "tokenizer" else 1.0}
    printed = capsys.readouterr().err
    assert ("samples and real texts are compared in its spelling" in printed) == (spelling == "tokenizer")
    survey = json.loads((tmp_path / "lm/survey.json").read_text())["splits"]["train"]
    assert survey["unknown"] == 0 and survey["round_trip"]["special_texts"] == 0
    if spelling == "tokenizer":
        assert "  before: " in printed and "</ s >" in survey["round_trip"]["after"]


def test_an_autoencoder_names_the_spelling(chain):
    protocol = json.loads((chain / "ae" / "validation.json").read_text())["protocol"]
    assert protocol["spelling"] == "raw" and protocol["unchanged_by_tokenizer"] == {"valid": 1.0}


def test_a_dry_run_prints_what_the_tokenizer_changes(programs, tmp_path, capsys):
    flags = f"{in_thirds('cased.jsonl', tmp_path)} --dry_run --config vocab_lowercase=true"
    assert programs.diffusion(EMBEDDINGS, tmp_path / "run", flags) == 0
    printed = capsys.readouterr().out
    assert "brings back unchanged: train 0 %, valid 0 %, test 0 % (of at most 2,000 texts of a split)" in printed
    assert "  before: Hugo left Cairo in the rain.\n  after:  hugo left cairo in the rain.\n" in printed


@pytest.mark.slow
def test_a_trained_run_on_texts_with_capitals(tmp_path):
    """The case: perplexity 687 for 1.55, MAUVE .004 for .94, no copies found for .57, where spellings differed."""
    flags = (
        f"{EMBEDDINGS} --embedding_dim 16 --timesteps 50 --tx_dim 64 --tx_depth 1 --train_batch_size 16 --device cpu "
        f"--sampling_timesteps 5 --num_samples 8 --eval_batch_size 8 --learning_rate 5e-3 --num_train_steps 600 "
        f"--class_conditional --config vocab_lowercase=true --train_file {CASES / 'cased.jsonl'} "
        f"--output_dir {tmp_path / 'run'}"
    )
    assert train_diffusion.train(parse(DIFFUSION, flags.split())) == 0
    again = f"--resume_dir {tmp_path / 'run'} --eval --num_samples 200 --class_id prior"
    assert train_diffusion.train(parse(DIFFUSION, again.split())) == 0
    result = json.loads((tmp_path / "run/evaluation/eval-valid.json").read_text())
    assert result["model/greedy/corpus_perplexity"] < 4 and result["model/greedy/train_copy_rate"] > 0.4
    assert result["model/greedy/local_lm_train_mauve"] > 0.8
