"""One table of several systems under one protocol, and the commands that train its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compare_systems, compare_systems_train
from dataset_utils import synthetic_stories
from evaluation import local_lm
from evaluation.ngram_lm import END, START, NgramLM
from evaluation.score.__main__ import main as score
from utils.errors import UserError

TEXTS = ["the cat sat", "the cat ran", "a dog sat", "the dog ran home"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    synthetic_stories.write(folder, train=150, valid=40, test=40)
    return folder


@pytest.fixture(scope="module")
def scorer(corpus) -> Path:
    texts = [json.loads(line)["text"] for line in (corpus / "train.jsonl").open()]
    folder = corpus / "scorer"
    local_lm.train_local(texts, folder, steps=10, width=32, layers=1, heads=2, vocab_size=300, max_length=64)
    return folder


def compare(corpus: Path, scorer: Path, out: Path, flags: str = "") -> int:
    files = " ".join(f"--{split}_file {corpus / split}.jsonl" for split in ("train", "valid", "test"))
    defaults = f"{files} --scorer {scorer} --num_samples 20 --seeds 2 --device cpu"
    return compare_systems.main(f"{defaults} --output_dir {out} {flags}".split())


def test_real_texts_and_the_n_gram_model_frame_the_table(corpus, scorer, tmp_path):
    assert compare(corpus, scorer, tmp_path) == 0
    stored = json.loads((tmp_path / "scores.json").read_text())
    rows = stored["systems"]
    assert list(rows) == ["n-gram", "training texts", "held-out texts"]
    assert rows["training texts"]["metrics"]["train_copy_rate"]["mean"] == 1
    assert rows["held-out texts"]["metrics"]["train_copy_rate"]["mean"] < 0.5
    assert all(len(row["metrics"]["diversity"]["values"]) == 2 for row in rows.values())
    assert stored["protocol"]["num_samples"] == 20 and stored["protocol"]["seeds"] == [42, 43]
    for name in ("n-gram", "training-texts", "held-out-texts"):
        assert len((tmp_path / f"samples-{name}.txt").read_text().splitlines()) == 20
    assert "n-gram" in (tmp_path / "table.txt").read_text() and (tmp_path / "table.md").read_text().startswith("| ")


def test_the_numbers_are_those_of_evaluation_score(corpus, scorer, tmp_path):
    assert compare(corpus, scorer, tmp_path, "--seeds 1 --baselines n-gram") == 0
    flags = f"--samples {tmp_path}/samples-n-gram.txt --references {corpus}/test.jsonl --train {corpus}/train.jsonl"
    words = f"{flags} --scorer {scorer} --mauve_encoder none --split test --json {tmp_path}/score.json"
    assert score(words.split()) == 0
    mine = json.loads((tmp_path / "scores.json").read_text())["systems"]["n-gram"]["metrics"]
    theirs = json.loads((tmp_path / "score.json").read_text())
    shared = [key for key in theirs if key in mine]
    assert "local_lm_test_mauve" in shared and "linear_auc" in shared and "corpus_perplexity" in shared
    assert {key: mine[key]["mean"] for key in shared} == {key: theirs[key] for key in shared}


def test_a_row_is_added_and_another_protocol_is_refused(corpus, scorer, tmp_path, capsys):
    assert compare(corpus, scorer, tmp_path, "--baselines n-gram") == 0
    before = json.loads((tmp_path / "scores.json").read_text())["systems"]["n-gram"]
    assert compare(corpus, scorer, tmp_path) == 0
    assert "n-gram: scored before" in capsys.readouterr().err
    stored = json.loads((tmp_path / "scores.json").read_text())["systems"]
    assert stored["n-gram"] == before and len(stored) == 3
    for flags, key in (("--num_samples 10", "num_samples"), ("--seeds 1", "seeds"), ("--split valid", "references")):
        with pytest.raises(SystemExit) as ended:
            compare(corpus, scorer, tmp_path, flags)
        err = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and f"another protocol: {key} differs" in err and "\n" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--runs x", "NAME=FOLDER"),
        ("--runs x={out}/absent", "no such folder"),
        ("--runs x={out}", "args.json"),
        ("--runs n-gram={out}", "two rows"),
        ("--num_samples 1", "too small"),
        ("--num_samples 500", "more than the 40 texts"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(corpus, scorer, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        compare(corpus, scorer, tmp_path, flags.format(out=tmp_path))
    assert ended.value.code == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


def test_the_n_gram_model_is_a_distribution_and_repeats_its_texts():
    model = NgramLM.fit(TEXTS)
    words = {word for text in TEXTS for word in text.split()} | {END}
    for context in ([START, START], [START, "the"], ["the", "cat"], ["unseen", "dog"], ["unseen", "words"]):
        assert sum(model.probability(word, context) for word in words) == pytest.approx(1)
    assert model.probability("cat", [START, "the"]) > model.probability("dog", [START, "the"])
    texts = model.sample(200, 1)
    assert texts == model.sample(200, 1) and texts[:5] == model.sample(5, 1) and texts != model.sample(200, 2)
    assert set(" ".join(texts).split()) <= words and len(set(texts)) > len(TEXTS)  # it joins parts of texts
    with pytest.raises(UserError, match="texts with words"):
        NgramLM.fit(["", "  "])


def test_sampled_words_have_the_probabilities_of_the_model():
    model, n = NgramLM.fit(TEXTS, order=2), 20_000
    first = [text.split()[0] if text else END for text in model.sample(n, 0)]
    for word in set(first):
        assert first.count(word) / n == pytest.approx(model.probability(word, [START]), abs=0.012)


def test_the_stages_of_a_row_share_its_minutes():
    preset = compare_systems_train.PRESETS["real"]
    for row in compare_systems_train.ROWS:
        budgets = compare_systems_train.stage_seconds(row, preset, 540)
        assert sum(budgets.values()) == pytest.approx(540) and min(budgets.values()) > 0
    lm = {row: compare_systems_train.stage_seconds(row, preset, 540).get("lm") for row in ("compressed", "states")}
    assert lm["compressed"] == lm["states"]  # it is trained once, and counts in both


@pytest.mark.parametrize("preset", ["synthetic", "real"])
@pytest.mark.parametrize("stage", compare_systems_train.STAGES)
def test_the_flags_of_the_presets_are_those_of_the_programs(preset, stage, tmp_path):
    from pipelines.cli import programs
    from utils.cli.parse import parse

    flags = compare_systems_train.PRESETS[preset]
    program = {
        "lm": programs.PRETRAIN, "autoencoder": programs.AUTOENCODER, "causal": programs.CAUSAL_LM
    }.get(stage, programs.DIFFUSION)  # fmt: skip
    words = compare_systems_train.fill(f"{flags.corpus} {flags.length} {flags.flags[stage]}", tmp_path)
    if stage in ("compressed", "states", "autoencoder"):
        words += ["--enc_dec_model", "lm"]
    if stage == "compressed":
        words += ["--latent_model_path", "autoencoder"]
    assert parse(program, words).config.loop.train_batch_size == 64


@pytest.mark.slow
def test_every_row_is_trained_and_scored_by_one_command_each(scorer, tmp_path):
    common = ["--preset", "tiny", "--output_dir", str(tmp_path)]
    for row in ("corpus", *compare_systems_train.ROWS):
        assert compare_systems_train.main([*common, row]) == 0
    table = ["table", "--scorer", str(scorer), "--num_samples", "20", "--seeds", "1"]
    assert compare_systems_train.main([*common, *table]) == 0
    rows = json.loads((tmp_path / "table/scores.json").read_text())["systems"]
    assert list(rows) == [*compare_systems_train.ROWS, "n-gram", "training texts", "held-out texts"]
    assert all("grammatical" in row["metrics"] for row in rows.values())
    with pytest.raises(UserError, match="holds no corpus"):
        compare_systems_train.train_row("causal", tmp_path / "other", compare_systems_train.PRESETS["tiny"], 3)
