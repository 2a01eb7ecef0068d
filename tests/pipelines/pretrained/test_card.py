"""The model card is filled from the run; texts of a run are text in it, and paths of a machine are not."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from pipelines.pretrained import card
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.pipelines.pretrained.conftest import KINDS

RESULT = {
    "model/beam/perplexity": {"mean": 12.345, "std": 0.5, "values": [12, 13]},
    "model/beam/perplexity_seed42": 12.0,
    "model/beam/local_lm_val_mauve": {"mean": 0.91234, "std": 0.01, "values": [0.9, 0.92]},
    "model/beam/broken": {"mean": None, "std": None, "values": [None, None]},
    "speed/denoise_texts_per_second": 5.0,
    "protocol": {
        "runs": [
            {
                "n": 1000, "scorer": "/srv/somebody/models/smollm2", "fingerprint": "abc", "comparable": False,
                "note": "perplexity <b>is</b> not comparable", "mauve": {"buckets": 50}, "versions": {"torch": "2.13"},
            },
            {"n": 1000, "note": "perplexity <b>is</b> not comparable"},
        ]
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(runs, tmp_path_factory):
    """The pipeline of a class-conditional run that was evaluated, with a hostile class name."""
    run = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(runs("classes"), run)
    args = json.loads((run / "args.json").read_text())
    args["class_names"][0] = "<script>alert(1)</script> | `x` ```"
    args["dataset_name"] = "simple"
    (run / "args.json").write_text(json.dumps(args))
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "eval-test.json").write_text(json.dumps(RESULT))
    return TextDiffusionPipeline.from_pretrained(run, device="cpu", sampling_timesteps=3)


def test_the_card_states_data_scores_protocol_limits_and_license(scored, tmp_path):
    scored.save_pretrained(tmp_path / "model", license="cc-by-4.0", language="en")
    made = ModelCard.load(tmp_path / "model" / "README.md")
    assert made.data.license == "cc-by-4.0" and made.data.language == "en"
    assert made.data.pipeline_tag == "text-generation" and made.data.library_name == "latent-text-diffusion"
    results = {result.metric_name: result.metric_value for result in made.data.eval_results}
    assert results == {"model/beam/perplexity": 12.345, "model/beam/local_lm_val_mauve": 0.91234}
    for says in (
        "## Use", "from_pretrained(", "class_id=", "## Model", "3 steps", "## Training data",
        "License of the texts: MIT",
        "| train | 200 |", "## Scores", "Split: test.", "| model/beam/perplexity | 12.35 ± 0.5 (2 seeds) |",
        "n: 1000", "scorer: smollm2", "mauve.buckets: 50", "## Limits", "at most 40 tokens", "not comparable",
        "## License", "The weights: cc-by-4.0",
    ):  # fmt: skip
        assert says in made.content, says
    digest = json.loads((tmp_path / "model/args.json").read_text())["corpus"]["splits"]["train"]["texts"]
    assert digest in made.content
    assert made.content.count("Perplexity \\<b\\>is\\</b\\> not comparable") == 1


def test_the_card_counts_the_texts_of_all_parts_of_a_batch_and_names_no_place(scored, tmp_path):
    args = scored.run.settings.checkpoint_args
    more = {"gradient_accumulation_steps": 4, "num_devices": 2, "converted_from": str(tmp_path / "ld4lg")}
    before = {name: args.get(name) for name in more}
    args.update(more)
    try:
        scored.save_pretrained(tmp_path / "model")
    finally:
        args.update(before)
    texts = 8 * args["train_batch_size"]
    assert f"steps of {texts:,} texts" in (tmp_path / "model/README.md").read_text()
    assert json.loads((tmp_path / "model/args.json").read_text())["converted_from"] == "ld4lg"


def test_texts_of_a_run_are_neither_markup_nor_paths(scored, tmp_path):
    scored.save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "<script>" not in text.replace("\\<script\\>", "").split("```")[2] and "/srv/somebody" not in text
    assert text.count("```") == 2  # of one block of code
    row = next(line for line in text.splitlines() if line.startswith("| classes |"))
    assert row.count("|") - row.count("\\|") == 3
    assert "Not stated. The license of the weights depends" in text
    scores = json.loads((tmp_path / "model/evaluation.json").read_text())
    assert scores["eval-test"]["protocol"]["runs"][0]["scorer"] == "smollm2"
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == text  # the scores come with the folder


def test_a_run_that_was_not_evaluated_says_so(runs, tmp_path):
    # A copy: other tests of this process may have evaluated the shared run before.
    shutil.copytree(runs("latents"), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu", **KINDS["latents"])
    pipe.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "This run was not evaluated" in text and "Its quality was not measured." in text


def test_the_card_of_each_kind_shows_a_call_that_works(saved, loaded, monkeypatch, capsys):
    """The block of code of the card, executed beside the folder."""
    for kind in ("latents", "classes", "pairs", "student", "packed"):
        text = (saved(kind) / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(saved(kind)))
        capsys.readouterr()
        exec(compile(code, "card", "exec"), {})
        assert len(capsys.readouterr().out.splitlines()) >= 4


@pytest.mark.parametrize(
    ("given", "stays"),
    [("/a/b/lm", "lm"), ("runs/lm/", "lm"), ("facebook/bart-base", "facebook/bart-base"), ("C:\\x\\lm", "lm"),
     ("lm", "lm"), (None, None), (5, 5), ("../../x", "x")],
)  # fmt: skip
def test_of_a_path_only_its_last_part_stays(given, stays):
    assert card.without_folders(given) == stays
