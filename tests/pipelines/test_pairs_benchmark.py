"""The comparison on pairs: the programs accept its commands, and its tables show the values of its rows."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks import pairs
from benchmarks.pairs_metrics import KEEPS_CONTENT, PairsEvaluator, Row
from benchmarks.pairs_systems import CORPORA, OBJECTIVES, SIZES, SYSTEMS
from benchmarks.pairs_table import tables
from dataset_utils import synthetic_stories
from dataset_utils.packing import pack_pairs
from latent_models.tokenizers.special_ids import end_id, separator_id
from latent_models.tokenizers.training import train_tokenizer
from pipelines.stages import Stage, scale_steps
from utils.cli.parse import parse
from utils.errors import UserError

CORPUS = {"cpu": "qqp", "gpu": "qqp", "tales": "tales-pairs"}  # corpus of each size


def words(corpus: str, lm: str) -> dict[str, str]:
    asks = CORPORA[corpus]
    numbers = {"target": str(asks.target), "source": str(asks.source), "packed": str(asks.packed), "longest": "40"}
    names = {"dataset": corpus, "data": "d", "device": "cpu", "scorer": "s", "tokens": asks.lm, "vocab": asks.vocab}
    return {**names, **numbers, "lm": lm}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_stage_is_a_valid_command(name, size, tmp_path):
    given = {**words(CORPUS[size], "{root}/lm"), "objective": OBJECTIVES.get(name, "pred_x0")}
    own = SYSTEMS[name].stages(SIZES[size], False, given)
    assert sum(share for _, share in own) == pytest.approx(1)
    for stage, _ in own:
        settings = parse(stage.program, stage.argv(tmp_path))
        assert settings.config.loop.num_train_steps > 0 and "{" not in " ".join(stage.argv(tmp_path))
    with_lm = [stage.name for stage, _ in SYSTEMS[name].stages(SIZES[size], True, {**given, "lm": "/some/lm"})]
    assert with_lm == [stage.name for stage, _ in own if stage.name != "lm"]
    assert SYSTEMS[name].run == with_lm[-1]


def test_a_stage_is_scaled_with_its_intervals():
    stage = Stage(
        "a", SYSTEMS["latent"].parts[0][0].program, "", "", "--num_train_steps 100 --eval_every 50 --layers 2"
    )
    assert scale_steps(stage, 0.1).flags.split() == ["--num_train_steps", "10", "--eval_every", "5", "--layers", "2"]
    assert "--num_train_steps 1 " in scale_steps(stage, 1e-6).flags


def row(name: str, steps: int, bleu: float) -> Row:
    metrics = {"diffuseq_bleu": bleu, "mbr_diffuseq_bleu": bleu + 0.1, "rougeL": 0.5, "div4": 0.75}
    records = [{"reference": "a b c d", "sample": "a b", "chosen": "a b c d"}] * 4
    return Row(name, steps, [{"metrics": metrics, "seconds": 2.0, "records": records}])


def test_tables_show_all_systems_at_their_largest_common_steps_and_each_number_of_steps():
    rows = [row("one", 2, 0.1), row("one", 9, 0.2), row("other", 9, 0.3), row("other", 99, 0.4)]
    metadata = {
        "dataset": "qqp",
        "protocol": {"candidates": 3, "sources": 4, "steps": [2, 9]},
        "results": [r.metadata() for r in rows],
        "baselines": {"the source itself": {"diffuseq_bleu": 0.15}},
    }
    text = tables(metadata)
    assert "BERTScore" not in text, "no row has it"
    assert "slots kept" not in text, "no row has it"
    assert "| other, one sample | 0.3 |" in text, "all systems at the number of steps that all of them have"
    assert "| one, one sample | 0.2 |" in text and "| one, MBR-3 | 0.3 |" in text
    assert "| the source itself | 0.15 |" in text
    assert "| one | 2 | 0.1 | 0.2 |" in text and "| other | 9 | 0.3 |" in text and text.count("0.500 |") == 4
    gain = rows[0].gains()["diffuseq_bleu"]
    assert gain["mean"] > 0 and gain["interval_95"] == [pytest.approx(gain["mean"])] * 2


def test_a_corpus_without_sources_gives_one_error_line(tales_folder, tmp_path):
    root = tales_folder.parent
    argv = ["--dataset", "tales", "--data_dir", str(tales_folder), "--output_dir", str(tmp_path), "--size", "cpu"]
    with pytest.raises(UserError, match="has no sources") as error:
        pairs.run(pairs.arguments(argv), SIZES["cpu"], "cpu")
    assert "\n" not in str(error.value) and root.is_dir()


def test_kept_content_is_counted_for_each_kind_of_choice():
    rng = random.Random(1)
    stories = [synthetic_stories.sample_story(rng) for _ in range(4)]
    right = [synthetic_stories.paraphrase(story).text() for story in stories]
    evaluator = object.__new__(PairsEvaluator)
    evaluator.keeps_content = KEEPS_CONTENT["tales-pairs"]
    records = [
        {"source": story.text(), "sample": one, "chosen": chosen, "candidates": [one, chosen]}
        for story, one, chosen in zip(
            stories, [*right[:2], "no story", right[0]], [*right[:3], "no story"], strict=True
        )
    ]
    found = evaluator.kept_content(records, 42)
    assert found == {"kept": 0.5, "mbr_kept": 0.75, "oracle_kept": 0.75, "chance_kept": found["chance_kept"]}
    assert found["chance_kept"] <= 0.25, "the sample of another source keeps all content of one source only"
    row = Row("one", 2, [{"records": [{"reference": "a", **r} for r in records]}])
    assert row.gains()["kept"]["mean"] == 0.25


def test_only_the_synthetic_corpus_is_generated(tmp_path):
    assert pairs.arguments(["--output_dir", "x"]).dataset == "tales-pairs"
    with pytest.raises(UserError, match="--data_dir") as error:
        pairs.make_corpus("qqp", tmp_path / "corpus")
    assert "\n" not in str(error.value) and not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("corpus", ["tales-pairs"])
def test_packed_pairs_of_the_synthetic_corpus_are_not_truncated(corpus):
    """With one token less, the last full stop of every second text would be cut off."""
    rng = random.Random(0)
    stories = [synthetic_stories.sample_story(rng) for _ in range(300)]
    sources, targets = (
        [story.text() for story in stories],
        [synthetic_stories.paraphrase(story).text() for story in stories],
    )
    tokenizer = train_tokenizer(sources + targets, "word-level", 2000, 99)
    end, separator = end_id(tokenizer), separator_id(tokenizer)
    table = pack_pairs(tokenizer, sources, targets, CORPORA[corpus].packed, end_id=end, separator_id=separator)
    assert table.truncated == 0


@pytest.mark.slow
def test_a_tiny_comparison(tales_folder, chain, tmp_path):
    argv = ["--data_dir", str(tales_folder), "--output_dir", str(tmp_path), "--size", "tales"]
    argv += ["--steps_factor", "0.005", "--sources", "4", "--lm", str(chain / "lm")]
    assert pairs.main(argv) == 0
    before = (tmp_path / "table.md").read_text()
    record = json.loads((tmp_path / "record.json").read_text())
    assert {r["name"] for r in record["results"]} == {way for s in SYSTEMS.values() for way in s.sampler_settings}
    assert {r["steps"] for r in record["results"]} == {*SIZES["tales"].steps, *SIZES["tales"].more_steps["DiffuSeq"]}
    assert all("kept" in r["metrics"] for r in record["results"])
    assert set(record["systems"]) == set(SYSTEMS) and "autoencoder" in record["systems"]["latent"]
    for name in ("samples.txt", "steps_diffuseq_bleu.png", "steps_rougeL.png", "steps_kept.png"):
        assert (tmp_path / name).stat().st_size > 500
    assert pairs.main(argv) == 0, "a second call skips all stages"
    assert (tmp_path / "table.md").read_text() == before
