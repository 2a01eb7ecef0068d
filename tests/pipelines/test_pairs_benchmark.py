"""The comparison on pairs: its stages are commands that the programs accept, its tables say what the rows hold."""

from __future__ import annotations

import json

import pytest

from benchmarks import pairs
from benchmarks.pairs_judge import Row
from benchmarks.pairs_systems import LENGTHS, OBJECTIVES, SIZES, SYSTEMS
from benchmarks.pairs_table import tables
from pipelines.recipe import Stage, scaled
from utils.config import parse
from utils.errors import UserError


def words(lm: str) -> dict[str, str]:
    target, source, packed = (str(n) for n in LENGTHS["qqp"])
    numbers = {"target": target, "source": source, "packed": packed, "longest": target}
    return {"dataset": "qqp", "data": "d", "device": "cpu", "scorer": "s", "lm": lm, "vocab": lm, **numbers}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_stage_is_a_command(name, size, tmp_path):
    given = {**words("{root}/lm"), "objective": OBJECTIVES.get(name, "pred_x0")}
    own = SYSTEMS[name].stages(SIZES[size], False, given)
    assert sum(share for _, share in own) == pytest.approx(1)
    for stage, _ in own:
        settings = parse(stage.program, stage.argv(tmp_path))
        assert settings.num_train_steps > 0 and "{" not in " ".join(stage.argv(tmp_path))
    with_lm = [stage.name for stage, _ in SYSTEMS[name].stages(SIZES[size], True, {**given, "lm": "/some/lm"})]
    assert with_lm == [stage.name for stage, _ in own if stage.name != "lm"]
    assert SYSTEMS[name].run == with_lm[-1]


def test_a_stage_is_scaled_with_its_intervals():
    stage = Stage(
        "a", SYSTEMS["latent"].parts[0][0].program, "", "", "--num_train_steps 100 --eval_every 50 --layers 2"
    )
    assert scaled(stage, 0.1).flags.split() == ["--num_train_steps", "10", "--eval_every", "5", "--layers", "2"]
    assert "--num_train_steps 1 " in scaled(stage, 1e-6).flags


def row(name: str, steps: int, bleu: float) -> Row:
    metrics = {"diffuseq_bleu": bleu, "mbr_diffuseq_bleu": bleu + 0.1, "rougeL": 0.5, "div4": 0.75}
    records = [{"reference": "a b c d", "sample": "a b", "chosen": "a b c d"}] * 4
    return Row(name, steps, [{"metrics": metrics, "seconds": 2.0, "records": records}])


def test_tables_show_each_kind_at_the_most_steps_and_every_number_of_steps():
    rows = [row("one", 2, 0.1), row("one", 9, 0.2), row("other", 9, 0.3)]
    facts = {
        "dataset": "qqp",
        "protocol": {"candidates": 3, "sources": 4},
        "results": [r.facts() for r in rows],
        "baselines": {"the source itself": {"diffuseq_bleu": 0.15}},
    }
    text = tables(facts)
    assert "BERTScore" not in text, "it was left out"
    assert "| one, one sample | 0.2 |" in text and "| one, MBR-3 | 0.3 |" in text
    assert "| the source itself | 0.15 |" in text
    assert "| one | 2 | 0.1 | 0.2 |" in text and "| other | 9 | 0.3 |" in text and text.count("0.500 |") == 3
    gain = rows[0].gain()
    assert gain["mean"] > 0 and gain["interval_95"] == [pytest.approx(gain["mean"])] * 2


def test_a_corpus_without_sources_is_one_line(tales_folder, tmp_path):
    root = tales_folder.parent
    argv = ["--dataset", "tales", "--data_dir", str(tales_folder), "--output_dir", str(tmp_path), "--size", "cpu"]
    with pytest.raises(UserError, match="has no sources") as error:
        pairs.run(pairs.arguments(argv), SIZES["cpu"], "cpu")
    assert "\n" not in str(error.value) and root.is_dir()


@pytest.mark.slow
def test_a_tiny_comparison(tales_folder, chain, tmp_path):
    argv = ["--dataset", "tales-pairs", "--data_dir", str(tales_folder), "--output_dir", str(tmp_path), "--size", "cpu"]
    argv += ["--steps_factor", "0.005", "--sources", "4", "--lm", str(chain / "lm")]
    assert pairs.main(argv) == 0
    before = (tmp_path / "table.md").read_text()
    record = json.loads((tmp_path / "record.json").read_text())
    assert {r["name"] for r in record["results"]} == {way for s in SYSTEMS.values() for way in s.ways}
    assert {r["steps"] for r in record["results"]} == set(SIZES["cpu"].steps)
    assert set(record["systems"]) == set(SYSTEMS) and "autoencoder" in record["systems"]["latent"]
    for name in ("samples.txt", "steps_diffuseq_bleu.png", "steps_rougeL.png"):
        assert (tmp_path / name).stat().st_size > 500
    assert pairs.main(argv) == 0, "run again, everything is found done"
    assert (tmp_path / "table.md").read_text() == before
